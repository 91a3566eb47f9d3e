"""Small updates of bfloat16 weights: how many are lost, and what keeps them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from act_lightning.callbacks import LostUpdates
from act_lightning.training.loss import answer_loss
from act_lightning.training.optimizers import make_optimizer
from tests.loops import padded, random_samples
from tests.tiny import tiny_model
from tests.training.test_finetuning import fit, saved

SAMPLES = random_samples(16, seed=4)
RATE, UPDATES = 2.0e-5, 40  # the paper's rate
TORCHAO = {
    "class_path": "torchao.optim.AdamW8bit",
    "init_args": {"weight_decay": 0.0, "bf16_stochastic_round": True},
}


def losses(dtype: torch.dtype, optimizer: Any) -> list[float]:
    """Before every update on the same batch, and after the last."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=64, dtype=dtype).train()
    steps = make_optimizer(optimizer, model.parameters(), RATE)
    (batch,) = padded(SAMPLES, rows=16)
    found = []
    for _ in range(UPDATES + 1):
        loss, tokens = answer_loss(model, batch)
        found.append(float(loss.detach()) / tokens)
        steps.zero_grad()
        (loss / tokens).backward()
        steps.step()
    return found


@pytest.fixture(autouse=True)
def _without_a_compiler() -> Any:
    """Torchao compiles its update, which takes a C++ compiler minutes and changes no number that matters here."""
    with torch.compiler.set_stance("force_eager"), torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_random_rounding_falls_where_plain_bfloat16_stalls() -> None:
    """The shipped recipe for one GPU: it falls as far as float32 weights do, a third more or less."""
    falls = {}
    for name, dtype, optimizer in (
        ("full", torch.float32, "adam"),
        ("plain", torch.bfloat16, "adam"),
        ("random", torch.bfloat16, TORCHAO),
    ):
        course = losses(dtype, optimizer)
        falls[name] = course[0] - course[-1]
    assert falls["full"] > 0
    assert abs(falls["plain"]) < 0.35 * falls["full"]
    assert falls["random"] == pytest.approx(falls["full"], rel=0.34)


class Counted(L.Callback):
    """Counts the weights that an update was meant for and did not change, every one of them."""

    def __init__(self) -> None:
        self.shares: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before = copy.deepcopy(dict(pl_module.named_parameters()))
        self.due = {name: values.grad != 0 for name, values in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        lost = sum(
            int((self.due[name] & (values == self.before[name])).sum()) for name, values in pl_module.named_parameters()
        )
        self.shares.append(
            (lost / sum(int(due.sum()) for due in self.due.values()), trainer.callback_metrics["lost_updates"].item())
        )


@pytest.mark.parametrize(
    ("precision", "optimizer", "least", "most"),
    [("bf16-true", "adam", 0.7, 1.0), ("bf16-mixed", "adam", 0.0, 0.01), ("bf16-true", TORCHAO, 0.7, 1.0)],
)
def test_the_share_of_lost_updates(precision: str, optimizer: Any, least: float, most: float, tmp_path: Path) -> None:
    """Random rounding leaves most weights as they are, too; those that it moves, it moves far enough."""
    counted = Counted()
    folder = saved(tiny_model("llama"), tmp_path)
    module = {"optimizer": optimizer, "learning_rate": RATE}
    fit(folder, padded(SAMPLES), LostUpdates(), counted, module=module, precision=precision)
    assert len(counted.shares) == 4
    for share, logged in counted.shares:
        assert logged == pytest.approx(share, abs=0.02)
        assert least <= share <= most
