"""Two processes on CPUs (gloo) that Lightning starts itself, beyond what the matrix (tests/test_matrix.py) compares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.front_door import basic, left
from tests.programs import PROGRAMS
from tests.reference.act import assert_same_bits
from tests.tiny import save_model, save_pair, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import call_program, call_verb, start, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with biases and an ability's file."""
    root = tmp_path_factory.mktemp("processes")
    save_pair(root, "qwen2")
    write_jsonl(root / "d.jsonl", ({"prompt": f"Say {i}", "answer": "one " * (1 + 7 * i % 23)} for i in range(32)))
    return root


def test_scores_that_are_there_are_used_again(place: Path) -> None:
    config = basic(place, place / "target", place / "source", place / "d.jsonl")
    root = call_verb("profile", config, 2, strategy="ddp")
    assert left(root) == ["scores", "scores/s", "scores/s/d.safetensors"]
    written = (root / "scores" / "s" / "d.safetensors").stat().st_mtime_ns
    call_verb("merge", config, 2, strategy="ddp")
    assert (root / "scores" / "s" / "d.safetensors").stat().st_mtime_ns == written


def test_scores_that_cannot_be_ranked_stop_every_process(place: Path) -> None:
    """None is left waiting for another that has stopped."""
    spoiled: Any = tiny_model("qwen2")
    spoiled.lm_head.weight.data[3, 3] = float("nan")
    save_model(spoiled, tiny_tokenizer(), place / "spoiled")
    started = start(PROGRAMS / "plugged_fit.py", place / "spoiled", place / "source", place / "refused", 2)
    _, printed = started.communicate(timeout=300)
    assert started.returncode != 0
    for rank in (0, 1):
        said = rf"\[rank{rank}\]: .*ActError: .* scores of module 'lm_head' for ability 'any' must be finite"
        assert re.search(said, printed)
    assert not list(place.glob("refused/**/*.safetensors"))


def test_in_a_loop_of_someone_elses(place: Path) -> None:
    """Every process injects: their models are the same, and those of one process."""
    for processes in (1, 2):
        root = place / f"plugged-{processes}"
        root.mkdir()
        call_program(PROGRAMS / "plugged_fit.py", place / "target", place / "source", root, processes)
    single, first, second = (
        load_file(place / name / f"rank-{rank}.safetensors")
        for name, rank in (("plugged-1", 0), ("plugged-2", 0), ("plugged-2", 1))
    )
    assert_same_bits(first, single)
    assert_same_bits(second, single)
    before = weights(place / "target")
    assert any(not torch.equal(before[name], values) for name, values in single.items())
