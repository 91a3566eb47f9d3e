"""The loss that balances experts: as transformers computes it, and updates as a plain loop of torch makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel

from act_lightning.architecture import has_router_loss
from act_lightning.errors import ActError
from act_lightning.module import AbilityTransferModule
from act_lightning.training.loss import answer_loss
from tests.loops import padded, quiet_trainer, random_samples
from tests.model_types import tiny_type_config
from tests.tiny import perturb, save_model, tiny_model, tiny_tokenizer

SAMPLES = random_samples(8, longest=12, seed=5, shortest=4)


def mixture(model_type: str = "qwen3_moe") -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_type_config(model_type, router_aux_loss_coef=0.3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    perturb(model, 0, 0.1)
    return model


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_it_is_what_transformers_adds_to_the_mean(model_type: str) -> None:
    model = mixture(model_type)
    batch = padded(SAMPLES, rows=8)[0]
    loss, tokens = answer_loss(model, batch, router_aux_loss_coef=0.3)
    expected = model(**batch, output_router_logits=True, use_cache=False).loss
    plain = model(**batch, use_cache=False).loss
    torch.testing.assert_close(loss / tokens, expected)
    assert float((expected - plain).detach()) > 0.1


class Module(AbilityTransferModule):
    """Ours, around a model that is in memory."""

    def __init__(self, net: PreTrainedModel, router_aux_loss_coef: float) -> None:
        super().__init__("unused", router_aux_loss_coef=router_aux_loss_coef)
        self.model = net

    def configure_model(self) -> None:
        """Nothing to load."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One that shows gradients as they are."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_updates_equal_a_plain_loop(tmp_path: Path) -> None:
    ours, plain = mixture(), mixture()
    batches = padded(SAMPLES, rows=2)  # four micro-batches, of which two make an update
    trainer: L.Trainer = quiet_trainer(tmp_path, accumulate_grad_batches=2)
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(Module(ours, 0.3), loader)
    optimizer = torch.optim.SGD(plain.train().parameters(), lr=0.1)
    for first in (0, 2):
        optimizer.zero_grad()
        micro = batches[first : first + 2]
        counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in micro]
        for batch, count in zip(micro, counts, strict=True):
            loss = plain(**batch, output_router_logits=True, use_cache=False).loss  # a mean, and 0.3 times the other
            (loss * count / sum(counts)).backward()
        optimizer.step()
    theirs = dict(plain.named_parameters())
    for name, values in ours.named_parameters():
        torch.testing.assert_close(values, theirs[name], rtol=1e-5, atol=1e-6)


def test_it_is_off_by_default_and_refused_without_routers(tmp_path: Path) -> None:
    model = mixture()
    batch = padded(SAMPLES, rows=8)[0]
    loss, tokens = answer_loss(model, batch)
    torch.testing.assert_close(loss / tokens, model(**batch, use_cache=False).loss)
    assert has_router_loss(model)
    dense = tiny_model("llama")
    assert not has_router_loss(dense)
    folder = save_model(dense, tiny_tokenizer(), tmp_path / "model")
    module = AbilityTransferModule(str(folder), router_aux_loss_coef=0.1)
    with pytest.raises(ActError, match=r"model\.router_aux_loss_coef = 0\.1: must be 0 for a model without a loss"):
        quiet_trainer(tmp_path).validate(module, DataLoader(padded(SAMPLES), batch_size=None), verbose=False)  # type: ignore[arg-type]
    (issue,) = AbilityTransferModule(str(folder), router_aux_loss_coef=-1.0).issues()
    assert issue.setting == "model.router_aux_loss_coef"
