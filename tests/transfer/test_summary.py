"""What a mask selected, told once: shares by type of module, and warnings of masks that are worth little."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import act_lightning as act
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.errors import ActError
from act_lightning.scores import ChunkScores, read_record, read_scores, write_chunks, write_scores
from act_lightning.transfer.settings import TransferSettings
from act_lightning.transfer.summary import MIN_TOKENS, vocabulary_issues
from tests.front_door import Config, basic, changed, run
from tests.reference import act as reference
from tests.reference.channels import channels
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

Change = Callable[[ChannelInventory, Tensor], Tensor]


def profiled(tmp_path: Path, data: Path, *arguments: object, **overrides: Any) -> tuple[Config, nn.Module]:
    """A pair on disk with saved scores; the config merges by them."""
    target = tiny_model("llama", **overrides)
    folders = [
        save_model(model, tiny_tokenizer(), tmp_path / name)
        for name, model in (("target", target), ("source", sibling_of(target, 1)))
    ]
    config = basic(tmp_path, *folders, data)
    outcome = run("profile", config, *arguments)
    assert outcome.status == 0, outcome.err
    return changed(config, "transfer.scores", str(tmp_path / "run" / "scores")), target


def rewrite(config: Config, change: Change, **record: Any) -> Path:
    """Change saved scores, and what is recorded of them."""
    (path,) = Path(config["transfer"]["scores"]).glob("s/d.safetensors")
    target = AutoModelForCausalLM.from_pretrained(config["model"]["target"])
    owned = inventory(target)
    values, stored = read_scores(path, owned), read_record(path)
    path.unlink()
    write_scores(path, owned, change(owned, values), type(stored)(**{**vars(stored), **record}))
    return path


def merged(config: Config, *arguments: object) -> tuple[str, dict[str, Any]]:
    """What a merge prints, and its record."""
    without_data = {**config, "model": {"target": config["model"]["target"]}}  # such a merge needs no Trainer
    del without_data["data"]
    outcome = run("merge", without_data, "--overwrite", *arguments)
    assert outcome.status == 0, outcome.err
    root = Path(config["trainer"]["default_root_dir"])
    report: dict[str, Any] = json.loads((root / "transfer.json").read_text())
    assert json.loads((root / "merged" / "transfer.json").read_text()) == report
    return outcome.err, report


def warned(text: str) -> list[str]:
    return [line.removeprefix("warning: ") for line in text.splitlines() if line.startswith("warning: ")]


@pytest.mark.parametrize("tied", [False, True])
def test_shares_by_type_are_those_of_the_channels_that_moved(tied: bool, tmp_path: Path, ability_file: Path) -> None:
    """Counted channel by channel, element by element, from the saved scores."""
    config, target = profiled(tmp_path, ability_file, tie_word_embeddings=tied)
    text, report = merged(config)
    source = report["sources"]["s"]
    chosen = reference.union_of([tmp_path / "run/scores/s/d.safetensors"], target, "0.1")
    types = [name.split(".")[-1] for name, _, _ in channels(target)]
    counts = Counter(types[number] for number in chosen)
    assert Counter(source["by_module_type"]) == counts
    owned = {
        name: reference.moved_count(target, [number for number in chosen if types[number] == name])
        for name in dict.fromkeys(types)
    }
    assert source["parameters_by_module_type"] == owned
    (line,) = (line for line in text.splitlines() if line.startswith("s: λ 0.4, p 0.1; "))
    share = reference.moved_count(target, chosen) / target.num_parameters()  # type: ignore[operator]
    assert f"selected {len(chosen)} channels ({100 * share:.3g} % of the parameters): " in line
    ((name, count),) = counts.most_common(1)
    assert f": {name} {100 * count / len(chosen):.0f} % ({100 * owned[name] / sum(owned.values()):.0f} %), " in line
    assert report["rounding"] == {"moved": source["parameters"], "unchanged": 0}, "float32, all values differ"


def only(leaf: str) -> Change:
    """Scores that are above zero everywhere, and largest in the modules of one type."""

    def change(channels: ChannelInventory, values: Tensor) -> Tensor:
        parts = []
        for number, module in enumerate(channels.modules):
            largest = module.name.endswith(leaf)
            parts.append(torch.linspace(2, 1, module.count) if largest else torch.full((module.count,), number / 100))
        return torch.cat(parts) + 0.1

    return change


def test_a_mask_of_head_or_embedding_is_told_with_its_remedy(tmp_path: Path, ability_file: Path) -> None:
    config, _ = profiled(tmp_path, ability_file)
    rewrite(config, only("lm_head"), tokens=MIN_TOKENS)
    text, report = merged(config)
    expected = (
        "s: 100 % of the selected channels belong to lm_head. Scores of different modules may not be comparable: try "
        "transfer.exclude: [lm_head], selection: attribution or scope: module."
    )
    assert warned(text) == [expected]
    (problem,) = report["problems"]
    assert f"{problem['message']}. {problem['remedy']}" == expected
    assert problem["level"] == "warning"
    text, report = merged(config, "--transfer.exclude", "[lm_head]")
    assert warned(text) == []
    assert report["problems"] == []
    rewrite(config, only("up_proj"))
    assert warned(merged(config, "--transfer.ratio", 0.05)[0]) == []
    rewrite(config, only("embed_tokens"))
    text, _ = merged(config, "--transfer.ratio", 0.01)
    assert "try transfer.exclude: [model.embed_tokens]" in warned(text)[0]
    text, _ = merged(config, "--transfer.selection", "random")
    assert warned(text) == [], "of random channels nothing else was asked"


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (TransferSettings(selection="attribution"), "what the layers can do, transfer.exclude: [lm_head] shows."),
        (TransferSettings(share="parameters"), "try transfer.exclude: [lm_head] or selection: attribution."),
        (TransferSettings(scope="module"), "try transfer.exclude: [lm_head] or selection: attribution."),
    ],
)
def test_a_remedy_fits_the_settings(settings: TransferSettings, remedy: str) -> None:
    channels = inventory(tiny_model("llama"))
    mask = torch.cat([torch.full((module.count,), module.name == "lm_head") for module in channels.modules])
    (issue,) = vocabulary_issues(channels, mask, settings, "s")
    assert str(issue).endswith(remedy)


def test_scores_that_say_nothing(tmp_path: Path, ability_file: Path) -> None:
    """All zero: an error. Fewer above zero than are selected: a warning."""
    config, _ = profiled(tmp_path, ability_file)

    def few(channels: ChannelInventory, values: Tensor) -> Tensor:
        return torch.cat([values[: channels.modules[0].count] + 1, torch.zeros(len(values))])[: len(values)]

    path = rewrite(config, few, tokens=MIN_TOKENS)
    target = AutoModelForCausalLM.from_pretrained(config["model"]["target"])
    above, selected = inventory(target).modules[0].count, inventory(target).total // 10
    text, _ = merged(config)
    counts = f"s/d: {selected - above:,} of {selected:,} selected channels have no score above 0. "
    assert any(line.startswith(counts) for line in warned(text))
    rewrite(config, lambda _, values: torch.zeros_like(values))
    outcome = run("merge", config, "--overwrite")
    assert outcome.status == 1
    assert "all scores in" in outcome.err
    assert "Name the model that has the ability" in outcome.err
    with pytest.raises(ActError, match="must hold a score other than zero"):
        act.Scores.load(path, config["model"]["target"]).select(0.1)


def test_few_answer_tokens_are_told_unless_chunks_say_that_the_mask_is_stable(
    tmp_path: Path, ability_file: Path
) -> None:
    config, _ = profiled(tmp_path, ability_file)
    path = rewrite(config, only("up_proj"), tokens=MIN_TOKENS - 1)
    (warning,) = warned(merged(config)[0])
    assert warning.startswith("s/d: 999 answer tokens are fewer than the 1,000 that a stable mask needs. ")
    assert "profile.chunks" in warning
    target = inventory(AutoModelForCausalLM.from_pretrained(config["model"]["target"]))
    scores, record = read_scores(path, target), read_record(path)
    equal = torch.stack([scores] * 4)
    write_chunks(path, target, ChunkScores(equal, [9] * 4, [1] * 4), record)
    assert warned(merged(config)[0]) == [], "whatever is drawn, the mask is the same"
    shuffled = torch.stack([scores[torch.randperm(target.total)] for _ in range(4)])
    write_chunks(path, target, ChunkScores(shuffled, [9] * 4, [1] * 4), record)
    (warning,) = warned(merged(config)[0])
    assert re.match(rf"s/d: other draws of its {record.samples} samples select only \d\d % of the mask\. ", warning)
    rewrite(config, only("up_proj"), tokens=MIN_TOKENS, data="of other samples")
    assert warned(merged(config)[0]) == [], "these chunks belong to other scores"


def test_a_fit_tells_the_same_as_a_merge(tmp_path: Path, ability_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, _ = profiled(tmp_path, ability_file)
    rewrite(config, lambda _, values: values, tokens=MIN_TOKENS - 1)
    text, merge_report = merged(config)
    with caplog.at_level("INFO"):
        assert run("fit", config, "--trainer.max_steps", 0).status == 0
    told = [line for line in text.splitlines() if line.startswith(("s: ", "warning: "))]
    assert len(told) == 3, "the types, mostly lm_head, few tokens"
    for line in told:
        assert caplog.text.count(line) == 1
    report = json.loads((tmp_path / "run" / "transfer.json").read_text())
    assert report == merge_report == json.loads((tmp_path / "run" / "model" / "transfer.json").read_text())


def test_in_python_a_mask_shows_what_it_selected_and_warns(tmp_path: Path, ability_file: Path) -> None:
    config, target = profiled(tmp_path, ability_file)
    path = rewrite(config, only("lm_head"), tokens=MIN_TOKENS - 1)
    scores = act.Scores.load(path, config["model"]["target"])
    with warnings.catch_warnings(record=True, action="always") as caught:
        mask = scores.select(0.1)
    head, tokens = (str(warning.message) for warning in caught)
    assert "belong to lm_head" in head
    assert "answer tokens are fewer than the 1,000" in tokens
    share = reference.moved_count(target, mask.selected.nonzero().flatten().tolist()) / target.num_parameters()  # type: ignore[operator]
    expected = f"<Mask: selected {len(mask)} channels ({100 * share:.3g} % of the parameters): lm_head 100 %>"
    assert repr(mask) == expected


def test_profiling_tells_of_the_mask_that_it_made(
    tmp_path: Path, ability_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only where a mask decides how many samples are read."""
    with caplog.at_level("INFO"):
        config, _ = profiled(tmp_path, ability_file)
    assert "selected" not in caplog.text
    config = changed(changed(config, "transfer.scores", ...), "profile.chunks", 4)
    with caplog.at_level("INFO"):
        assert run("profile", config, "--profile.stop_when_stable", 0.5).status == 0
    assert caplog.text.count("s: λ 0.4, p 0.1; selected ") == 1
