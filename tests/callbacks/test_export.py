"""Export when fitting ends: layout, precision, record and card, and what stops it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, HuggingFaceExport
from act_lightning.callbacks import MaskedTaskVectorInjection as Injection
from act_lightning.checkpoints.manifest import MANIFEST
from act_lightning.errors import ActError
from tests.front_door import left
from tests.loops import quiet_trainer
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer


class Writer(L.LightningModule):
    """A language model that one step moves by ``rate`` times the sign of a gradient; or ruins, with a rate of NaN."""

    def __init__(self, folder: Path | None, rate: float = 0.0, late: bool = False) -> None:
        super().__init__()
        self.folder, self.rate = folder, rate
        self.net: nn.Module | None = None if late else self._load()

    def _load(self) -> nn.Module:
        net: nn.Module = AutoModelForCausalLM.from_pretrained(self.folder) if self.folder else tiny_model()
        return net.train()

    def configure_model(self) -> None:
        self.net = self.net or self._load()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        assert self.net is not None
        logits: Tensor = self.net(batch).logits
        return logits.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self.parameters():
            assert parameter.grad is not None
            parameter.grad.sign_().mul_(self.rate)


def fit(module: L.LightningModule, root: Path, *callbacks: L.Callback) -> Path:
    quiet_trainer(root, *callbacks).fit(module, DataLoader(torch.randint(3, 300, (2, 6)), batch_size=2))  # type: ignore[arg-type]
    return root / "model"


def test_writes_what_the_module_holds_when_fitting_ends(target_folder: Path, tmp_path: Path) -> None:
    module = Writer(target_folder, rate=0.125)
    folder = fit(module, tmp_path, HuggingFaceExport(recipe="seed: 1"))
    assert module.net is not None
    written, before = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict(),
        load_file(target_folder / "model.safetensors"),
    )
    assert all(torch.equal(written[name], values) for name, values in module.net.state_dict().items())
    assert any(not torch.equal(written[name], before[name]) for name in before)
    assert (folder / "config.json").read_bytes() == (target_folder / "config.json").read_bytes()
    assert "seed: 1" in (folder / "README.md").read_text()
    assert left(tmp_path) == ["model", *(f"model/{path.name}" for path in sorted(folder.iterdir()))]
    assert not (folder / "transfer.json").exists(), "nothing was transferred"


def test_the_record_of_a_transfer_comes_along(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    labels = torch.tensor([[-100, 5, 6]])
    source = AbilitySource(str(source_folder), {"a": [{"input_ids": torch.tensor([[4, 5, 6]]), "labels": labels}]})
    callbacks = ActivationDifferenceProfiler([source]), Injection(ratio=0.1), HuggingFaceExport()
    folder = fit(Writer(target_folder), tmp_path, *callbacks)
    assert json.loads((folder / "transfer.json").read_text()) == json.loads((tmp_path / "transfer.json").read_text())
    assert source.label in (folder / "README.md").read_text()


def test_keeps_shards_and_precision_of_the_target_unless_told(tmp_path: Path) -> None:
    target = save_model(tiny_model(dtype=torch.bfloat16), tiny_tokenizer(), tmp_path / "target", max_shard_size="20KB")
    files = {path.name for path in target.iterdir()}
    as_stored = fit(Writer(target), tmp_path / "same", HuggingFaceExport())
    assert {path.name for path in as_stored.iterdir()} == files | {"README.md", MANIFEST}
    wide = fit(Writer(target), tmp_path / "wide", HuggingFaceExport(dtype="float32"))
    for folder, dtype in ((as_stored, torch.bfloat16), (wide, torch.float32)):
        shards = [load_file(path) for path in folder.glob("*.safetensors")]
        assert {values.dtype for shard in shards for values in shard.values()} == {dtype}


def test_an_earlier_export_is_replaced_if_that_is_asked_for(target_folder: Path, tmp_path: Path) -> None:
    folder = fit(Writer(target_folder), tmp_path, HuggingFaceExport())
    first = load_file(folder / "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ActError, match=r"must not be replaced unasked.* HuggingFaceExport\(overwrite=True\)"):
        fit(Writer(target_folder, rate=0.5), tmp_path, HuggingFaceExport())
    assert (folder / "model.safetensors").read_bytes() == before
    fit(Writer(target_folder, rate=0.5), tmp_path, HuggingFaceExport(overwrite=True))
    assert not torch.equal(load_file(folder / "model.safetensors")["lm_head.weight"], first["lm_head.weight"])


@pytest.mark.parametrize(("target", "late"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_layout_must_be_known(target_folder: Path, tmp_path: Path, target: bool, late: bool) -> None:
    """A model made from a config, or not made yet, names no checkpoint; ``target`` does."""
    export = HuggingFaceExport(target=str(target_folder) if target else None)
    module = Writer(target_folder if late else None, late=late)
    if target:
        assert (fit(module, tmp_path, export) / "model.safetensors").is_file()
        return
    with pytest.raises(ActError, match=r"HuggingFaceExport\(target=\.\.\.\)"):
        fit(module, tmp_path, export)
    assert left(tmp_path) == []


def test_weights_that_training_has_ruined_are_not_written(target_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ActError, match="must be finite"):
        fit(Writer(target_folder, rate=float("nan")), tmp_path, HuggingFaceExport())
    assert left(tmp_path) == []


def test_a_place_that_is_taken_is_refused_before_training(target_folder: Path, tmp_path: Path) -> None:
    class Untrained(Writer):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise AssertionError("training has begun")

    (tmp_path / "model").write_text("in the way")
    with pytest.raises(ActError, match="must be a folder, and is a file"):
        fit(Untrained(target_folder), tmp_path, HuggingFaceExport())
    (tmp_path / "model").unlink()
    shutil.copytree(target_folder, tmp_path / "model")
    with pytest.raises(ActError, match="must not be or hold the target"):
        fit(Untrained(tmp_path / "model"), tmp_path, HuggingFaceExport())


def test_a_sibling_of_the_target_may_be_trained(target_folder: Path, tmp_path: Path) -> None:
    """Only layout and texts come from the target, every value from the module."""
    folder = save_model(sibling_of(tiny_model(), seed=9), tiny_tokenizer(), tmp_path / "sibling")
    written = load_file(fit(Writer(folder), tmp_path, HuggingFaceExport(str(target_folder))) / "model.safetensors")
    assert all(torch.equal(written[name], values) for name, values in load_file(folder / "model.safetensors").items())
