"""How sure a mask is: pure statistics against plain Python, and the scores of chunks that they are made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.channels import inventory
from act_lightning.errors import ActError
from act_lightning.masks import bootstrap_overlaps, overlap_by_samples, scores_of, split_half_overlaps, top_channels
from act_lightning.scorers import Attribution
from act_lightning.scores import read_chunks, read_scores
from act_lightning.transfer.settings import source_issues
from tests.front_door import basic, changed, left, write_yaml
from tests.loops import PlainModule, messages, padded, quiet_trainer, random_samples
from tests.reference import act, attribution
from tests.reference import stability as reference
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

RATIO, TOKENS = 0.1, [5, 1, 9, 4, 7]


def choose(scores: Tensor) -> Tensor:
    return top_channels(scores, RATIO, torch.ones_like(scores, dtype=torch.bool))


@pytest.fixture
def chunks() -> Tensor:
    return torch.rand(60) + 0.3 * torch.rand(5, 60)


def test_scores_of_chunks_together(chunks: Tensor) -> None:
    for drawn in ([0, 1, 2, 3, 4], [0, 0, 3, 3, 3], [2]):
        times = torch.bincount(torch.tensor(drawn), minlength=5)
        expected = reference.mean(chunks.tolist(), TOKENS, drawn)
        torch.testing.assert_close(scores_of(chunks, TOKENS, times), torch.tensor(expected))


def test_bootstrap(chunks: Tensor) -> None:
    found = bootstrap_overlaps(chunks, TOKENS, choose, repeats=15, seed=3)
    generator = torch.Generator().manual_seed(3)
    for overlap in found:
        drawn = torch.randint(5, (5,), generator=generator).tolist()
        assert overlap == pytest.approx(reference.overlap(chunks.tolist(), TOKENS, range(5), drawn, str(RATIO)))
    assert min(found) < 1
    assert bootstrap_overlaps(chunks[:1].expand(5, -1), TOKENS, choose) == [1.0] * 20


def test_split_halves(chunks: Tensor) -> None:
    found = split_half_overlaps(chunks, TOKENS, choose, repeats=10, seed=4)
    generator = torch.Generator().manual_seed(4)
    for overlap in found:
        order = torch.randperm(5, generator=generator).tolist()
        assert overlap == pytest.approx(reference.overlap(chunks.tolist(), TOKENS, order[:2], order[2:4], str(RATIO)))
    assert split_half_overlaps(chunks[:1], TOKENS[:1], choose) == []


def test_overlap_against_number_of_samples(chunks: Tensor) -> None:
    samples = [3, 4, 3, 4, 3]
    found = overlap_by_samples(chunks, TOKENS, samples, choose, repeats=6, seed=5)
    generator = torch.Generator().manual_seed(5)
    assert [one.chunks for one in found] == [1, 2, 4, 5]
    for one in found[:-1]:
        subsets = [torch.randperm(5, generator=generator)[: one.chunks].tolist() for _ in range(6)]
        assert one.samples == pytest.approx(sum(samples[i] for subset in subsets for i in subset) / 6)
        for overlap, subset in zip(one.overlaps, subsets, strict=True):
            assert overlap == pytest.approx(reference.overlap(chunks.tolist(), TOKENS, range(5), subset, str(RATIO)))
    assert found[-1] == (5, 17.0, [1.0])


SAMPLES = random_samples(11)


def profiled(root: Path, source: Path, samples: Any = SAMPLES, transfer: Any = None, **settings: Any) -> list[str]:
    profiler = ActivationDifferenceProfiler([AbilitySource(str(source), {"a": padded(samples)}, name="s")], **settings)
    callbacks = [profiler, *([transfer] if transfer else [])]
    with messages() as said:
        quiet_trainer(root, *callbacks, max_steps=0).fit(PlainModule(tiny_model("llama")), padded(samples))
    return [line for line in said if line.startswith("s/a")]


def test_scores_of_each_chunk_equal_the_reference(source_folder: Path, tmp_path: Path) -> None:
    """Sample i is of chunk i modulo 3; the scores of all are the flat mean that they are without chunks."""
    target = tiny_model("llama")
    source, channels = sibling_of(target, seed=1), inventory(target)
    profiled(tmp_path / "chunks", source_folder, chunks=3)
    profiled(tmp_path / "whole", source_folder)
    path = tmp_path / "chunks" / "scores" / "s" / "a.safetensors"
    found = read_chunks(path, channels)
    for chunk in range(3):
        its = SAMPLES[chunk::3]
        expected = torch.tensor(act.scores(target, source, its))
        torch.testing.assert_close(found.scores[chunk], expected, rtol=1e-5, atol=1e-7)
        assert found.samples[chunk] == len(its)
        assert found.tokens[chunk] == sum(label != act.IGNORED for _, labels in its for label in labels)
    whole = read_scores(tmp_path / "whole" / "scores" / "s" / "a.safetensors", channels)
    torch.testing.assert_close(read_scores(path, channels), whole, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scores_of(found.scores, found.tokens), whole, rtol=1e-6, atol=1e-8)
    with safe_open(path.with_name("a.chunks.safetensors"), "pt") as file:
        record = json.loads(file.metadata()["act"])
    assert (record["samples"], record["chunks"]["samples"]) == (11, [4, 4, 3])


def test_chunks_of_attribution(source_folder: Path, tmp_path: Path) -> None:
    target = tiny_model("llama")
    profiled(tmp_path, source_folder, transfer=MaskedTaskVectorInjection(selection="attribution", scale=0.0), chunks=2)
    found = read_chunks(tmp_path / "scores.attribution" / "s" / "a.safetensors", inventory(target))
    for chunk in range(2):
        expected = torch.tensor(attribution.scores(target, sibling_of(target, seed=1), SAMPLES[chunk::2]))
        torch.testing.assert_close(found.scores[chunk], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_chunks_are_measured_where_they_are_missing(source_folder: Path, tmp_path: Path) -> None:
    profiled(tmp_path, source_folder)
    said = profiled(tmp_path, source_folder, chunks=2)
    assert "no scores of chunks" in said[0]
    assert "scores used again" in profiled(tmp_path, source_folder, chunks=2)[0]
    assert "scores used again" in profiled(tmp_path, source_folder)[0]
    assert "chunks were 2, are 4" in profiled(tmp_path, source_folder, chunks=4)[0]
    assert left(tmp_path / "scores" / "s") == ["a.chunks.safetensors", "a.safetensors"]


def test_stopping_when_the_mask_is_stable(source_folder: Path, tmp_path: Path) -> None:
    """A mask of half the channels is stable soon; the record says so, and other masks are measured again."""
    target, many = tiny_model("llama"), random_samples(40)
    settings = {"chunks": 2, "stop_when_stable": 0.8}
    half = MaskedTaskVectorInjection(ratio=0.5, scale=0.0)
    said = profiled(tmp_path, source_folder, many, half, **settings)
    path = tmp_path / "scores" / "s" / "a.safetensors"
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["act"])
    used = record["samples"]
    assert used in (8, 16, 32)
    assert f"stopped after {used} of 40 samples" in said[1]
    assert record["stability"]["of"] == 40
    assert record["stability"]["overlap"] >= 0.8
    assert record["tokens"] == sum(label != act.IGNORED for _, labels in many[:used] for label in labels)
    expected = torch.tensor(act.scores(target, sibling_of(target, seed=1), many[:used]))
    torch.testing.assert_close(read_scores(path, inventory(target)), expected, rtol=1e-5, atol=1e-7)
    assert "scores used again" in profiled(tmp_path, source_folder, many, half, **settings)[0]
    said = profiled(tmp_path, source_folder, many, MaskedTaskVectorInjection(ratio=0.4, scale=0.0), **settings)
    assert f"samples were {used} of 40, enough for other masks" in said[0]
    said = profiled(tmp_path, source_folder, many, half, chunks=2)
    assert "enough for other masks" in said[0]
    said = profiled(tmp_path, source_folder, many, half, **settings)
    assert "scores used again" in said[0], "all samples are enough for any mask"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chunks": 1}, "must be 0, or between 2 and 16"),
        ({"chunks": 17}, "must be 0, or between 2 and 16"),
        ({"chunks": 12}, "must not be more than the 11 samples of s/a"),
        ({"stop_when_stable": 0.9}, "must not be more than the 11 samples of s/a"),
        ({"stop_when_stable": 1.5}, "must lie in (0, 1]"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], words: str, source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ActError, match=words.replace("(", r"\(").replace("]", r"\]")):
        profiled(tmp_path, source_folder, **settings)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_two_rounds_have_no_chunks(source_folder: Path, tmp_path: Path) -> None:
    transfer = MaskedTaskVectorInjection(selection=Attribution(rounds=2))
    with pytest.raises(ActError, match="made in 2 rounds"):
        profiled(tmp_path, source_folder, transfer=transfer, chunks=2)


def test_an_ability_that_is_called_like_the_chunks_of_another() -> None:
    source = AbilitySource("m", ["a", "b", "a.chunks"])
    (issue,) = source_issues([source])
    assert issue.value == "a.chunks"
    assert source_issues([AbilitySource("m", ["b", "a.chunks"])]) == []


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """The scores of all, of each chunk, and when to stop, are those of one process; of attribution as well."""
    target = tiny_model("qwen2")
    folders = [save_model(m, tiny_tokenizer(), tmp_path / n) for n, m in (("t", target), ("u", sibling_of(target, 1)))]
    rows = ({"prompt": f"Say {i}", "answer": "one " * (1 + 7 * i % 9)} for i in range(24))
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    channels, found = inventory(target), {}
    for devices in (1, 2):
        root = tmp_path / str(devices)
        root.mkdir()
        config = changed(basic(root, *folders, data), "profile.chunks", 3)
        config["profile"]["stop_when_stable"] = 0.7
        config["trainer"] |= {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
        for selection, scores in (("activation", "scores"), ("attribution", "scores.attribution")):
            config["transfer"] |= {"selection": selection}
            outcome = run_alone(config, root)
            assert outcome == 0
            path = root / "run" / scores / "s" / "d.safetensors"
            found[selection, devices] = read_scores(path, channels), read_chunks(path, channels)
    for selection in ("activation", "attribution"):
        (one, its), (two, theirs) = (found[selection, devices] for devices in (1, 2))
        scale = float(one.abs().max())
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6 * scale)
        torch.testing.assert_close(theirs.scores, its.scores, rtol=1e-5, atol=1e-6 * scale)
        assert (theirs.tokens, theirs.samples) == (its.tokens, its.samples)
        assert torch.equal(choose(one), choose(two))


def run_alone(config: dict[str, Any], root: Path) -> int:
    """``profile`` in a process of its own, which may start another."""
    file = write_yaml(root / "config.yaml", config)
    command = [sys.executable, "-m", "act_lightning", "profile", "--config", str(file)]
    return subprocess.run(command, capture_output=True, timeout=200, check=False).returncode
