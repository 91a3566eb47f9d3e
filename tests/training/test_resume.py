"""Fits that go on: from a checkpoint, with the same module, or where a run was killed. Nothing is injected twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.module import AbilityTransferModule
from tests.front_door import Config, basic, changed, left, run
from tests.loops import PlainModule, messages, padded, quiet_trainer, random_samples
from tests.reference.act import assert_same_bits

Weights = dict[str, Tensor]
# Lightning then keeps no account of the best checkpoint of the other folder, which nobody asks for.
elsewhere = pytest.mark.filterwarnings("ignore:The dirpath has changed from")
unvalidated = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return basic(tmp_path, target_folder, source_folder, ability_file)


def root_of(config: Config) -> Path:
    return Path(config["trainer"]["default_root_dir"])


def in_another_place(config: Config, name: str) -> Config:
    return changed(config, "trainer.default_root_dir", str(root_of(config).with_name(name)))


def fit(config: Config, *arguments: object) -> Path:
    """A fit, and the folder that it writes to."""
    outcome = run("fit", config, *arguments)
    assert outcome.status == 0, outcome.err
    return root_of(config)


def exported(root: Path) -> Weights:
    return load_file(root / "model" / "model.safetensors")


def record(folder: Path) -> Any:
    return json.loads((folder / "transfer.json").read_text())


def uninterrupted(config: Config) -> Path:
    """The run of two epochs at a stretch that a resumed one must equal."""
    return fit(in_another_place(config, "straight"), "--trainer.max_epochs", 2)


@pytest.mark.parametrize("lost", [(), ("scores",), ("scores", "transfer.json", "model", "logs")])
def test_from_the_last_checkpoint(config: Config, lost: tuple[str, ...]) -> None:
    root = fit(config)
    first = record(root)
    for name in lost:
        place = root / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    before = {path: path.stat().st_mtime_ns for path in (root / "scores").rglob("*")}
    with messages() as said:
        fit(config, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert not any("measuring" in line or "scores used again" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in (root / "scores").rglob("*")} == before
    assert_same_bits(exported(root), exported(uninterrupted(config)))
    assert record(root) == record(root / "model") == first


@elsewhere
def test_from_a_checkpoint_of_another_folder(config: Config) -> None:
    first = fit(config)
    other = in_another_place(config, "other")
    root = fit(other, "--ckpt_path", first / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 2)
    assert not (root / "scores").exists()
    assert_same_bits(exported(root), exported(uninterrupted(config)))
    assert record(root) == record(root / "model") == record(first)
    cards = [(folder / "model" / "README.md").read_text() for folder in (first, root)]
    assert [what_moved(card) for card in cards] == [what_moved(cards[0])] * 2
    assert "| d | 94 |" in what_moved(cards[0])


def what_moved(card: str) -> str:
    """A card without the recipe, whose folder and checkpoint differ."""
    return card.split("```yaml")[0]


def test_a_fit_that_resumes_twice_still_tells_what_was_transferred(config: Config) -> None:
    first = record(fit(config))
    root = root_of(config)
    for epochs in (2, 3):
        fit(config, "--ckpt_path", "last", "--trainer.max_epochs", epochs)
    assert record(root / "model") == first


def test_without_a_last_checkpoint_a_fit_starts_from_the_beginning(config: Config) -> None:
    with pytest.warns(UserWarning, match="there is no last checkpoint"):
        root = fit(config, "--ckpt_path", "last")
    assert left(root / "scores") == ["s", "s/d.safetensors"]
    assert record(root / "model") == record(root)
    assert_same_bits(exported(root), exported(fit(in_another_place(config, "straight"))))


def callbacks_for(source: Path) -> list[L.Callback]:
    """The contract's two callbacks, new ones."""
    science = AbilitySource(str(source), abilities={"science": loader()}, name="s")
    return [ActivationDifferenceProfiler([science]), MaskedTaskVectorInjection(ratio=0.1)]


def loader() -> DataLoader[Any]:
    return DataLoader(padded(random_samples(8)), batch_size=None)  # type: ignore[arg-type]


def weights(module: L.LightningModule) -> Weights:
    return {name: values.detach().clone() for name, values in module.named_parameters()}


def plain_fit(module: L.LightningModule, root: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """A fit by a Trainer that keeps ``last.ckpt``; a module of ours also wants to validate."""
    checkpoint, path = ModelCheckpoint(root, save_top_k=0, save_last=True), settings.pop("ckpt_path", None)
    trainer = quiet_trainer(
        root, *callbacks, checkpoint, enable_checkpointing=True, limit_val_batches=0, num_sanity_val_steps=0, **settings
    )
    trainer.fit(module, loader(), loader(), ckpt_path=path)
    return trainer


@elsewhere
@unvalidated
def test_a_loop_of_someone_elses_resumes(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    def module() -> PlainModule:
        return PlainModule(AutoModelForCausalLM.from_pretrained(target_folder).train(), rate=0.05)

    straight, first, resumed = module(), module(), module()
    plain_fit(straight, tmp_path / "straight", *callbacks_for(source_folder), max_epochs=2)
    plain_fit(first, tmp_path / "first", *callbacks_for(source_folder))
    again = callbacks_for(source_folder)
    plain_fit(resumed, tmp_path / "again", *again, max_epochs=2, ckpt_path=tmp_path / "first" / "last.ckpt")
    assert not (tmp_path / "again" / "scores").exists()
    assert_same_bits(weights(resumed), weights(straight))
    plain_fit(resumed, tmp_path / "third", *callbacks_for(source_folder))
    assert not (tmp_path / "third" / "scores").exists(), "a fit after one that resumed is a second fit"
    assert record(tmp_path / "third") == record(tmp_path / "again") == record(tmp_path / "first")


def test_a_second_fit_of_the_same_module(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    still = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    module = AbilityTransferModule(str(target_folder), optimizer=still)
    before = AutoModelForCausalLM.from_pretrained(target_folder)
    found = []
    for name in ("first", "second"):
        root = tmp_path / name
        plain_fit(module, root, *callbacks_for(source_folder))
        found.append(weights(module))
    assert_same_bits(found[1], found[0])
    assert any(not torch.equal(found[0][f"model.{name}"], values) for name, values in before.named_parameters())
    assert not (tmp_path / "second" / "scores").exists()
    assert record(tmp_path / "second") == record(tmp_path / "first")


@elsewhere
@unvalidated
def test_a_trainer_that_has_resumed_one_module_transfers_into_another(
    target_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    """What the first fit left in Trainer and callbacks is nothing to the second module."""

    def module() -> PlainModule:
        return PlainModule(AutoModelForCausalLM.from_pretrained(target_folder).train())

    plain_fit(transferred := module(), tmp_path / "first", *callbacks_for(source_folder))
    root, path = tmp_path / "again", tmp_path / "first" / "last.ckpt"
    trainer = plain_fit(module(), root, *callbacks_for(source_folder), max_epochs=2, ckpt_path=path)
    assert not (root / "scores").exists()
    trainer.fit(other := module(), loader(), loader())
    assert left(root / "scores") == ["s", "s/science.safetensors"]
    assert_same_bits(weights(other), weights(transferred))


class Killed(L.Callback):
    """Ends the process, as far as a test may."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise KeyError("killed")


@unvalidated
def test_killed_between_profiling_and_injection(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    def module() -> PlainModule:
        return PlainModule(AutoModelForCausalLM.from_pretrained(target_folder).train())

    profiler, injection = callbacks_for(source_folder)
    dying = module()
    with pytest.raises(KeyError, match="killed"):
        plain_fit(dying, tmp_path, profiler, Killed(), injection)
    assert left(tmp_path) == ["scores", "scores/s", "scores/s/science.safetensors"]
    written = (tmp_path / "scores" / "s" / "science.safetensors").stat().st_mtime_ns
    with messages() as said:
        plain_fit(next_one := module(), tmp_path, *callbacks_for(source_folder))
    assert any("s/science: scores used again" in line for line in said)
    assert (tmp_path / "scores" / "s" / "science.safetensors").stat().st_mtime_ns == written
    plain_fit(never_killed := module(), tmp_path / "fresh", *callbacks_for(source_folder))
    assert_same_bits(weights(next_one), weights(never_killed))
    plain_fit(dying, tmp_path, *callbacks_for(source_folder))  # nothing was injected into this one yet
    assert_same_bits(weights(dying), weights(never_killed))
