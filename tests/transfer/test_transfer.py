"""``merge`` and ``fit`` from files to files: bit for bit what a slow re-statement merges, rounded once."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from act_lightning.scorers import Attribution
from act_lightning.transfer.preparation import resumed_issues
from act_lightning.transfer.settings import AbilitySource, TransferSettings
from tests.checkpoints.test_bin_conversion import pickled
from tests.front_door import Config, basic, changed, run
from tests.reference import act as reference
from tests.reference.act import Moving
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

MODELS = [
    ("llama", True, torch.float32),
    ("llama", False, torch.bfloat16),
    ("qwen2", True, torch.bfloat16),
    ("gpt2", True, torch.float32),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Transfer:
    """Two sources on disk, the second with two abilities and settings of its own."""

    target: PreTrainedModel
    sources: dict[str, PreTrainedModel]
    config: Config
    root: Path

    def moving(self) -> list[Moving]:
        """What moves, from the scores that the run has written."""
        abilities = {"m": (["d"], "0.1", 0.4), "n": (["d", "e"], "0.23", 0.7)}
        sources = []
        for name, (names, ratio, scale) in abilities.items():
            files = [self.root / "scores" / name / f"{ability}.safetensors" for ability in names]
            sources.append(Moving(self.sources[name], reference.union_of(files, self.target, ratio), scale))
        return sources

    def check(self, part: str, dtype: torch.dtype | None = None) -> None:
        """Every parameter in a folder of the run, to the bit."""
        expected = reference.merged(self.target, self.moving(), dtype)
        parameters = stored(self.root / part)
        assert set(parameters) == set(expected)
        reference.assert_same_bits(parameters, expected)


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: values for path in folder.glob("*.safetensors") for name, values in load_file(path).items()}


def a_transfer(tmp_path: Path, data: Path, architecture: str, tied: bool, dtype: torch.dtype) -> Transfer:
    target = tiny_model(architecture, dtype=dtype, tie_word_embeddings=tied)
    with torch.no_grad():  # −0 has a bit of its own
        next(iter(target.parameters()))[3:9, ::2] = -0.0
    sources = {name: sibling_of(target, seed) for seed, name in enumerate(("m", "n"), start=1)}
    folders = {
        name: save_model(model, tiny_tokenizer(), tmp_path / name, max_shard_size="30KB")
        for name, model in {"target": target, **sources}.items()
    }
    more = [{"prompt": f"What is {number}?", "answer": "three " * (1 + number % 4)} for number in range(8)]
    config = basic(tmp_path, folders["target"], folders["m"], data)
    config["data"]["abilities"]["e"] = {"path": str(write_jsonl(tmp_path / "e.jsonl", more))}
    named: dict[str, Any] = {"model": str(folders["n"]), "abilities": ["d", "e"], "scale": 0.7, "ratio": 0.23}
    config["profile"]["sources"] = [{"model": str(folders["m"]), "abilities": ["d"]}, named]
    return Transfer(target, sources, config, tmp_path / "run")


@pytest.mark.parametrize(("architecture", "tied", "dtype"), MODELS)
def test_merge(architecture: str, tied: bool, dtype: torch.dtype, tmp_path: Path, ability_file: Path) -> None:
    """Sharded, tied or not, with biases or columns: selected elements are the sums, all others keep every bit."""
    transfer = a_transfer(tmp_path, ability_file, architecture, tied, dtype)
    outcome = run("merge", transfer.config)
    assert outcome.status == 0, outcome.err
    transfer.check("merged")
    report = json.loads((transfer.root / "transfer.json").read_text())
    for moving, counts in zip(transfer.moving(), report["sources"].values(), strict=True):
        assert counts["parameters"] == reference.moved_count(transfer.target, moving.channels)
        assert counts["union"] == len(moving.channels) == sum(counts["by_layer"].values())
        assert sum(counts["by_module_type"].values()) == counts["union"]
    assert json.loads((transfer.root / "merged" / "transfer.json").read_text()) == report


@pytest.mark.parametrize(("stored_as", "written"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_sums_are_rounded_once_to_the_exported_precision(
    stored_as: str, written: str, tmp_path: Path, ability_file: Path
) -> None:
    transfer = a_transfer(tmp_path, ability_file, "llama", True, DTYPES[stored_as])
    assert run("merge", transfer.config, "--model.export_dtype", written).status == 0
    transfer.check("merged", DTYPES[written])


@pytest.mark.parametrize("written", ["auto", "float32"])
def test_fit_starts_from_unrounded_sums(written: str, tmp_path: Path, ability_file: Path) -> None:
    """Stored in bfloat16, compared in bfloat16, trained in float32: the sums are rounded when they are exported."""
    transfer = a_transfer(tmp_path, ability_file, "qwen2", True, torch.bfloat16)
    assert run("fit", changed(transfer.config, "trainer.max_steps", 0), "--model.export_dtype", written).status == 0
    transfer.check("model", DTYPES.get(written))


def test_merging_all_of_one_source_is_task_arithmetic(tmp_path: Path, ability_file: Path) -> None:
    transfer = a_transfer(tmp_path, ability_file, "llama", False, torch.float32)
    transfer.config["profile"]["sources"].pop()
    assert run("merge", transfer.config, "--transfer.selection", "all", "--transfer.scale", 0.5).status == 0
    before, source = dict(transfer.target.named_parameters()), dict(transfer.sources["m"].named_parameters())
    for name, values in stored(transfer.root / "merged").items():
        assert torch.equal(values, before[name] + 0.5 * (source[name] - before[name])), name
    assert not (transfer.root / "scores").exists()


def test_a_random_merge_can_be_repeated(tmp_path: Path, ability_file: Path) -> None:
    transfer = a_transfer(tmp_path, ability_file, "llama", True, torch.float32)
    config = changed(transfer.config, "transfer.selection", "random")
    merged, reports = [], []
    for seed in (7, 7, 8):
        assert run("merge", config, "--overwrite", "--seed_everything", seed).status == 0
        merged.append(stored(transfer.root / "merged"))
        reports.append(json.loads((transfer.root / "transfer.json").read_text()))
    reference.assert_same_bits(merged[1], merged[0])
    assert reports[0] == reports[1]
    masks = [{key: value for key, value in report["hashes"].items() if key.startswith("mask")} for report in reports]
    assert not set(masks[0].values()) & set(masks[2].values())
    one, two = (report["sources"]["n"] for report in reports[::2])
    assert one["union"] > one["abilities"]["d"]["selected"] == two["abilities"]["e"]["selected"], "a draw each"


LOSSY = [("bfloat16", "auto"), ("float32", "bfloat16"), ("bfloat16", "float32")]


@pytest.mark.parametrize(("stored_as", "written"), LOSSY)
def test_selected_values_that_rounding_keeps_are_counted(
    stored_as: str, written: str, tmp_path: Path, ability_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transfer = a_transfer(tmp_path, ability_file, "gpt2", True, DTYPES[stored_as])
    transfer.config["profile"]["sources"].pop()
    transfer.config["transfer"] |= {"selection": "all", "scale": 0.01}
    with caplog.at_level("INFO"):
        assert run("merge", transfer.config, "--model.export_dtype", written).status == 0
    merged, source = stored(transfer.root / "merged"), dict(transfer.sources["m"].named_parameters())
    moved = unchanged = 0
    for name, before in transfer.target.named_parameters():
        moving = source[name].float() != before.float()
        moved += int(moving.sum())
        unchanged += int((moving & (merged[name] == before.to(merged[name].dtype))).sum())
    share = f"{unchanged:,} of {moved:,} selected values ({unchanged / moved:.1%})"
    assert (f"warning: {share} that should move stay" in caplog.text) is (written != "float32")
    assert (unchanged > 0) is (written != "float32")


def test_the_record_holds_hashes(tmp_path: Path, ability_file: Path) -> None:
    transfer = a_transfer(tmp_path, ability_file, "llama", True, torch.float32)
    assert run("merge", transfer.config).status == 0
    report = json.loads((transfer.root / "transfer.json").read_text())
    digests = [report["hashes"][name] for name in ("target", "m", "n", "mask m", "mask n")]
    assert len({*digests}) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


# Vocabularies, ties and formats that differ


def all_moved(tmp_path: Path, data: Path, target: Any, source: Any, *arguments: object) -> dict[str, Any]:
    """Every channel of ``source`` at λ = 0.5, and the report; profiled before, to see that this is no obstacle."""
    config = basic(tmp_path, target, source, data)
    assert run("profile", config).status == 0
    outcome = run("merge", config, "--transfer.selection", "all", "--transfer.scale", 0.5, *arguments)
    assert outcome.status == 0, outcome.err
    report: dict[str, Any] = json.loads((tmp_path / "run" / "transfer.json").read_text())
    return report


def with_tokens(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    return tokenizer


def test_vocabularies_meet_by_token(tmp_path: Path, ability_file: Path) -> None:
    """Numbered otherwise, lacking in one, and padding: entries without a partner keep every bit."""
    target, source = tiny_model("qwen2", vocab_size=310), tiny_model("qwen2", seed=1, vocab_size=302)
    with torch.no_grad():  # −0 has a bit of its own
        target.lm_head.weight[305, :9] = -0.0
    folders = [
        save_model(target, with_tokens("<a>", "<b>", "<c>"), tmp_path / "t"),
        save_model(source, with_tokens("<b>", "<a>"), tmp_path / "s"),
    ]
    report = all_moved(tmp_path, ability_file, *folders)["sources"]["s"]
    assert report["vocabulary"] == {"stayed": 8, "tokens": ["<c>"], "without_token": 7}
    source_parameters = dict(source.named_parameters())
    for name, before in target.named_parameters():
        expected = before.detach().clone()
        other = source_parameters[name]
        if before.shape != other.shape:
            other = other[torch.tensor([*range(300), 301, 300])]
        here = slice(0, len(other))
        expected[here] = before[here] + 0.5 * (other - before[here])
        values = stored(tmp_path / "run" / "merged")[name]
        reference.assert_same_bits({name: values}, {name: expected})
    assert report["parameters"] == target.num_parameters() - 2 * 8 * 32
    (path,) = (tmp_path / "run" / "scores").rglob("*.safetensors")
    assert not load_file(path)["lm_head"][302:].any(), "what has no partner scores nothing"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("size", "other"), [(310, 302), (302, 310)])
def test_vocabularies_of_two_sizes_are_profiled_alike_wherever_models_are(
    size: int, other: int, tied: bool, tmp_path: Path, ability_file: Path
) -> None:
    """Numbered otherwise, too."""
    target, source = (
        tiny_model("qwen2", seed=seed, vocab_size=entries, tie_word_embeddings=tied)
        for seed, entries in ((0, size), (1, other))
    )
    folders = [
        save_model(target, with_tokens("<a>", "<b>"), tmp_path / "t"),
        save_model(source, with_tokens("<b>", "<a>"), tmp_path / "s"),
    ]
    scores = {}
    for placement in ("resident", "offload", "layerwise"):
        root = tmp_path / placement
        root.mkdir()
        outcome = run("profile", basic(root, *folders, ability_file), "--profile.placement", placement)
        assert outcome.status == 0, outcome.err
        (path,) = (root / "run" / "scores").rglob("*.safetensors")
        scores[placement] = load_file(path)
    for placement in ("offload", "layerwise"):
        for name, values in scores["resident"].items():
            message = f"{placement}: {name}"
            torch.testing.assert_close(scores[placement][name], values, rtol=1e-6, atol=1e-7, msg=message)
    head = scores["resident"]["lm_head"] if not tied else None
    assert tied or (head.shape == (size,) and bool(head[:302].all()) and not head[302:].any())


def test_a_tied_source_is_one_whose_matrices_are_equal(tmp_path: Path, ability_file: Path) -> None:
    target, source = tiny_model("llama"), tiny_model("llama", seed=1, tie_word_embeddings=True)
    folders = [save_model(model, tiny_tokenizer(), tmp_path / name) for name, model in (("t", target), ("s", source))]
    all_moved(tmp_path, ability_file, *folders)
    source_parameters = dict(source.named_parameters(remove_duplicate=False))
    for name, before in target.named_parameters():
        expected = before + 0.5 * (source_parameters[name] - before)
        assert torch.equal(stored(tmp_path / "run" / "merged")[name], expected), name
    outcome = run("merge", basic(tmp_path, folders[1], folders[0], ability_file))
    assert outcome.status == 1
    assert "must tie its embedding and lm_head as the target does" in outcome.err


def test_pickled_models_are_read_where_they_are_called_so(
    tmp_path: Path, ability_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    target, source = pickled(tmp_path / "t", shards="20KB"), tmp_path / "s"
    save_model(tiny_model("llama", seed=1), tiny_tokenizer(), source)
    outcome = run("merge", basic(tmp_path, target, source, ability_file))
    assert outcome.status == 1
    assert "write bin: before the model's name" in outcome.err
    all_moved(tmp_path, ability_file, f"bin:{target}", source)
    source_parameters = dict(tiny_model("llama", seed=1).named_parameters())
    for name, before in tiny_model("llama", dtype=torch.bfloat16).named_parameters():
        expected = (before.float() + 0.5 * (source_parameters[name] - before.float())).bfloat16()
        assert torch.equal(stored(tmp_path / "run" / "merged")[name], expected), name


def test_a_scorer_with_settings_is_the_same_selection_after_a_checkpoint() -> None:
    source = AbilitySource("models/s", ["d"], scale=0.4, ratio=0.1)
    settings = TransferSettings(selection=Attribution(alpha=0.3))
    entry = {"abilities": {"d": {}}, "scale": 0.4, "ratio": 0.1}
    report = {"sources": {"s": entry}, "selection": str(settings.selection), "method": "task_arithmetic"}
    assert resumed_issues(report, [source], settings) == []
    (issue,) = resumed_issues(report, [source], TransferSettings(selection=Attribution()))
    assert issue.setting == "transfer.selection"
