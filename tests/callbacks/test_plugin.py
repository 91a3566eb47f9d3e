"""The callbacks in a training loop of someone else's, as the contract's snippet has it.

The module below knows nothing of ACT: it keeps its model where it likes, and has its own loss and optimizer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, BatchEncoding

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.errors import ActError
from tests.front_door import left
from tests.loops import quiet_trainer

Batch = dict[str, Tensor]
RATIO, SCALE = 0.1, 0.4


class TheirModule(L.LightningModule):
    """A language model under a name of its own, wrapped once more, with a decoy attribute ``target``."""

    def __init__(self, folder: Path, late: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.target = "sentiment"
        self.wrapped = nn.ModuleDict()
        if not late:
            self._build()

    def configure_model(self) -> None:
        if not self.wrapped:
            self._build()

    def _build(self) -> None:
        self.wrapped["writer"] = AutoModelForCausalLM.from_pretrained(self.folder).train()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        logits: Tensor = self.wrapped["writer"](batch["input_ids"]).logits
        return nn.functional.mse_loss(logits, torch.zeros_like(logits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=0.0)


def samples(count: int = 10) -> list[Batch]:
    """Samples of 12 tokens, the last five of them the answer."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(3, 300, (count, 12), generator=generator)
    labels = rows.clone()
    labels[:, :7] = -100
    whole = torch.ones(12, dtype=torch.int64)
    return [
        {"input_ids": ids, "attention_mask": whole, "labels": answer} for ids, answer in zip(rows, labels, strict=True)
    ]


def loader(count: int = 10) -> DataLoader[Batch]:
    return DataLoader(samples(count), batch_size=4)  # type: ignore[arg-type]


def fit(module: L.LightningModule, root: Path, *callbacks: L.Callback) -> None:
    quiet_trainer(root, *callbacks).fit(module, loader())


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


@pytest.fixture
def science(source_folder: Path) -> AbilitySource:
    return AbilitySource(str(source_folder), abilities={"science-ar": loader()}, name="source")


def assert_transferred(module: TheirModule, target: Path, source: Path, root: Path) -> None:
    """Some elements are θ_trg + λ(θ_abl − θ_trg), all others are the target's to the bit."""
    now, before, other = module.wrapped["writer"].state_dict(), weights(target), weights(source)
    moved = 0
    for name, values in now.items():
        expected = before[name] + SCALE * (other[name] - before[name])
        changed = values != before[name]
        assert torch.equal(values[changed], expected[changed])
        moved += int(changed.sum())
    report = json.loads((root / "transfer.json").read_text())["sources"]["source"]
    assert 0 < moved <= report["parameters"]
    assert report["abilities"]["science-ar"] == {"selected": report["union"], "tokens": 50}


def test_weights_made_in_init(science: AbilitySource, target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    module = TheirModule(target_folder)
    fit(module, tmp_path, ActivationDifferenceProfiler([science]), MaskedTaskVectorInjection(ratio=RATIO, scale=SCALE))
    assert_transferred(module, target_folder, source_folder, tmp_path)
    assert left(tmp_path) == ["scores", "scores/source", "scores/source/science-ar.safetensors", "transfer.json"]


def test_weights_made_in_configure_model(
    science: AbilitySource, target_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    module = TheirModule(target_folder, late=True)
    profiler = ActivationDifferenceProfiler([science], target=str(target_folder))
    fit(module, tmp_path, MaskedTaskVectorInjection(ratio=RATIO, scale=SCALE), profiler)  # in either order
    assert_transferred(module, target_folder, source_folder, tmp_path)


def test_folders_without_tokenizers_are_enough(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    bare = {}
    for name, folder in (("target", target_folder), ("source", source_folder)):
        bare[name] = tmp_path / name
        bare[name].mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(folder / file, bare[name] / file)
    module, root = TheirModule(bare["target"], late=True), tmp_path / "run"
    science = AbilitySource(bare["source"], abilities={"science-ar": loader()})  # type: ignore[arg-type]  # a path
    profiler = ActivationDifferenceProfiler([science], target=str(bare["target"]))
    fit(module, root, profiler, MaskedTaskVectorInjection(ratio=RATIO, scale=SCALE))
    assert_transferred(module, target_folder, source_folder, root)


def test_both_ways_measure_the_same_scores(science: AbilitySource, target_folder: Path, tmp_path: Path) -> None:
    fit(TheirModule(target_folder), tmp_path / "in", ActivationDifferenceProfiler([science]))
    late = ActivationDifferenceProfiler([science], target=str(target_folder))
    fit(TheirModule(target_folder, late=True), tmp_path / "late", late)
    files = [tmp_path / name / "scores" / "source" / "science-ar.safetensors" for name in ("in", "late")]
    tensors = [file.read_bytes()[-4 * 300 :] for file in files]
    assert tensors[0] == tensors[1]


def test_a_second_fit_neither_profiles_nor_injects_again(
    science: AbilitySource, target_folder: Path, tmp_path: Path
) -> None:
    module = TheirModule(target_folder)
    for root in ("first", "second"):
        injection = MaskedTaskVectorInjection(ratio=RATIO, scale=SCALE)
        fit(module, tmp_path / root, ActivationDifferenceProfiler([science]), injection)
        if root == "first":
            after = {name: values.clone() for name, values in module.wrapped["writer"].state_dict().items()}
    assert all(torch.equal(after[name], values) for name, values in module.wrapped["writer"].state_dict().items())
    assert not (tmp_path / "second" / "scores").exists()


def test_batches_of_a_collator_of_transformers(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    batches = [BatchEncoding(batch) for batch in loader()]
    science = AbilitySource(str(source_folder), abilities={"science-ar": batches}, name="source")
    fit(TheirModule(target_folder), tmp_path, ActivationDifferenceProfiler([science]))
    assert (tmp_path / "scores" / "source" / "science-ar.safetensors").is_file()


class NoModel(TheirModule):
    def _build(self) -> None:
        self.wrapped["writer"] = nn.Linear(4, 4)


class TwoModels(TheirModule):
    def _build(self) -> None:
        super()._build()
        self.wrapped["teacher"] = AutoModelForCausalLM.from_pretrained(self.folder).train()


@pytest.mark.parametrize(
    ("kind", "late", "words"),
    [
        (NoModel, False, "NoModel': must hold one causal language model"),
        (TwoModels, False, r"wrapped\.writer, wrapped\.teacher': must hold one causal language model"),
        (TheirModule, True, r"Give ActivationDifferenceProfiler\(target=\.\.\.\)"),
    ],
)
def test_modules_that_hold_not_one_model(
    science: AbilitySource, target_folder: Path, tmp_path: Path, kind: type[TheirModule], late: bool, words: str
) -> None:
    callbacks = ActivationDifferenceProfiler([science]), MaskedTaskVectorInjection(ratio=RATIO)
    with pytest.raises(ActError, match=words):
        fit(kind(target_folder, late), tmp_path, *callbacks)
    assert left(tmp_path) == []


def test_an_injection_needs_a_profiler(target_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ActError, match="needs an ActivationDifferenceProfiler in the same Trainer"):
        fit(TheirModule(target_folder), tmp_path, MaskedTaskVectorInjection())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 2}, r"transfer\.ratio"),
        ({"scale": float("nan")}, r"transfer\.scale"),
        ({"method": "averaging"}, r"transfer\.method"),
        ({"exclude": ["nothing*"]}, r"transfer\.exclude"),
        ({"ratio": 1.0e-6}, "at least one of 940 channels"),
        ({"scores": "nowhere"}, r"transfer\.scores"),
    ],
)
def test_settings_are_refused_before_anything_is_measured(
    science: AbilitySource, target_folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ActError, match=words):
        fit(
            TheirModule(target_folder),
            tmp_path,
            ActivationDifferenceProfiler([science]),
            MaskedTaskVectorInjection(**settings),
        )
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("abilities", "words"),
    [
        (["science-ar"], "give the source's abilities as a dict of batches"),
        ({"science-ar": []}, "must hold answer tokens"),
        ({"science-ar": [{"input_ids": torch.ones(1, 3, dtype=torch.int64)}]}, "must be dicts of input_ids, labels"),
        ({"science-ar": samples()}, "Wrap a data set in a DataLoader"),
        ({"science-ar": [torch.ones(2, 3)]}, "must be dicts of input_ids, labels"),
        ({"science/ar": loader()}, "A-Za-z0-9"),
        ({}, "must name an ability"),
    ],
)
def test_abilities_that_are_none(
    target_folder: Path, source_folder: Path, tmp_path: Path, abilities: Any, words: str
) -> None:
    source = AbilitySource(str(source_folder), abilities=abilities)
    with pytest.raises(ActError, match=words):
        fit(TheirModule(target_folder), tmp_path, ActivationDifferenceProfiler([source]), MaskedTaskVectorInjection())
    assert left(tmp_path) == []


def test_sources_none_means_nothing_is_done_and_an_empty_list_is_an_error(target_folder: Path, tmp_path: Path) -> None:
    fit(TheirModule(target_folder), tmp_path, ActivationDifferenceProfiler(), MaskedTaskVectorInjection())
    assert left(tmp_path) == []
    with pytest.raises(ActError, match=r"profile\.sources"):
        fit(TheirModule(target_folder), tmp_path, ActivationDifferenceProfiler([]), MaskedTaskVectorInjection())
