"""Lightning's averages of weights beside profiling and injection."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.module import AbilityTransferModule
from act_lightning.training.sharding import averaging_issues
from tests.front_door import basic, changed, run, write_yaml
from tests.loops import padded, quiet_trainer, random_samples
from tests.reference.act import assert_same_bits
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import call_program, weights

pytestmark = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
RATE, DECAY = 1.0e-2, 0.5


class Steps(L.Callback):
    """Notes the weights when training starts and after every update."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights.append({name: values.detach().clone() for name, values in pl_module.named_parameters()})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_train_start(trainer, pl_module)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    target = tiny_model("llama", dtype=torch.bfloat16)
    folder = save_model(target, tiny_tokenizer(), tmp_path / "target")
    return folder, save_model(sibling_of(target, 1), tiny_tokenizer(), tmp_path / "source")


def fit(pair: tuple[Path, Path], root: Path, *averaging: L.Callback, first: bool = True) -> tuple[Any, Steps]:
    """Three updates after a transfer; the averaging callback stands before or behind the others."""
    target, source = pair
    loader: DataLoader[Any] = DataLoader(padded(random_samples(12), rows=4), batch_size=None)  # type: ignore[arg-type]
    module = AbilityTransferModule(str(target), learning_rate=RATE)
    transfer = [
        ActivationDifferenceProfiler([AbilitySource(str(source), {"any": loader}, name="s")]),
        MaskedTaskVectorInjection(ratio=0.1),
    ]
    steps = Steps()
    callbacks = [*averaging, *transfer, steps] if first else [*transfer, steps, *averaging]
    quiet_trainer(root, *callbacks, limit_val_batches=0).fit(module, loader, loader)
    return module, steps


@pytest.mark.parametrize("first", [True, False])
def test_an_average_of_the_injected_model(first: bool, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Scores are those of a fit without averages; the result is the average of the weights after each update."""
    _, plain = fit(pair, tmp_path / "plain")
    averaging = EMAWeightAveraging(decay=DECAY)
    module, steps = fit(pair, tmp_path / "averaged", averaging, first=first)
    scores = [load_file(tmp_path / name / "scores" / "s" / "any.safetensors") for name in ("plain", "averaged")]
    assert_same_bits(scores[1], scores[0])
    for one, other in zip(steps.weights, plain.weights, strict=True):
        assert_same_bits(one, other)
    expected = steps.weights[1]
    for later in steps.weights[2:]:
        expected = {name: DECAY * values + (1 - DECAY) * later[name] for name, values in expected.items()}
    for name, values in module.named_parameters():
        torch.testing.assert_close(values.detach(), expected[name], rtol=0, atol=1e-6, msg=name)


def test_an_average_that_was_never_updated_is_the_injected_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Lightning gives the model the average when training ends, whether it was updated or not."""

    class Never(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return False

    module, steps = fit(pair, tmp_path, Never())
    assert_same_bits(dict(module.named_parameters()), steps.weights[0])
    start = dict(AbilityTransferModule(str(pair[0])).named_parameters())
    assert not start, "the module is built late"
    before = dict(tiny_model("llama", dtype=torch.bfloat16).named_parameters())
    assert any(not torch.equal(before[name[6:]].float(), values) for name, values in steps.weights[0].items())


def averaged_config(pair: tuple[Path, Path], root: Path) -> Any:
    rows = ({"prompt": f"Say {n}", "answer": "one two"} for n in range(24))
    config = basic(root, *pair, write_jsonl(root / "d.jsonl", rows))
    callback = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": DECAY}}
    return changed(config, "trainer.callbacks", [callback])


def test_from_a_config_with_validation(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = averaged_config(pair, tmp_path)
    config["data"]["validation"] = 0.3
    outcome = run("fit", config)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("transfer", [True, False])
def test_refused_under_fsdp2(transfer: bool, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Before anything is profiled; and in plain fine-tuning, which has no transfer that could say so first."""
    config = averaged_config(pair, tmp_path)
    sizes = {"data_parallel_size": 1, "tensor_parallel_size": 1}
    strategy = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": sizes}
    config["trainer"] |= {"strategy": strategy, "devices": 1}
    outcome = run("fit", config if transfer else changed(changed(config, "profile", ...), "transfer", ...))
    assert outcome.status == 1
    assert "trainer.callbacks = 'EMAWeightAveraging': must not be combined with a strategy that shards" in outcome.err
    assert not [*(tmp_path / "run").rglob("*.safetensors")]


def test_refused_under_fsdp1() -> None:
    """Which Lightning makes a Trainer of only where there is a GPU."""
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy(), callbacks=[EMAWeightAveraging()])
    (issue,) = averaging_issues(trainer)
    assert (issue.setting, issue.value) == ("trainer.callbacks", "EMAWeightAveraging")


@pytest.mark.slow
def test_two_processes_under_ddp_export_the_averages_of_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Which are others than the weights of a fit without an average."""
    found = {}
    for name, processes in (("plain", 1), ("alone", 1), ("together", 2)):
        (tmp_path / name).mkdir()
        config = averaged_config(pair, tmp_path / name)
        config["model"]["export_dtype"] = "float32"
        config["trainer"] |= {"devices": processes, "accumulate_grad_batches": 16 // processes}
        if name == "plain":
            config = changed(config, "trainer.callbacks", ...)
        if processes == 1:
            outcome = run("fit", config)
            assert outcome.status == 0, outcome.err
        else:
            file = write_yaml(tmp_path / "together.yaml", changed(config, "trainer.strategy", "ddp"))
            call_program("-m", "act_lightning", "fit", "--config", file)
        found[name] = weights(tmp_path / name / "run" / "model")
    for name, values in found["alone"].items():
        torch.testing.assert_close(found["together"][name], values, rtol=0, atol=1e-6, msg=name)
    assert any(not torch.allclose(found["plain"][name], one, atol=1e-5) for name, one in found["alone"].items())
