"""The memory that ``plan`` tells, against what torch has at once while the verb runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.front_door import Config, basic, changed, run
from tests.memory import PeakMemory
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

pytestmark = pytest.mark.slow
SIZES = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 704, "num_hidden_layers": 4}


def told_memory(config: Config) -> dict[str, int]:
    found: dict[str, int] = json.loads(run("plan", config, "--json").out)["memory"]
    return found


def pair_of(root: Path, dtype: torch.dtype = torch.float32, **sizes: int) -> tuple[Path, Path]:
    target = tiny_model("llama", dtype=dtype, **(SIZES | sizes))
    folders = root / "target", root / "source"
    for folder, model in zip(folders, (target, sibling_of(target, 1)), strict=True):
        save_model(model, tiny_tokenizer(), folder)
    return folders


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("vocabulary", "batch_size", "at_once"), [(300, 4, 10**9), (8000, 1, 10**6)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_training_takes_the_memory_that_was_told(
    precision: str,
    vocabulary: int,
    batch_size: int,
    at_once: int,
    checkpointing: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The most that torch has at once, rows of one sample and packed, all logits at once and by chunks."""
    for module in ("training.loss", "planning.training_forecast"):
        monkeypatch.setattr(f"act_lightning.{module}.LOGITS_AT_ONCE", at_once)
    target, source = pair_of(tmp_path, vocab_size=vocabulary)
    tokens = 1200 // batch_size
    rows = [{"prompt": "x", "answer": "y " * tokens}] * (4 * batch_size)
    config = basic(tmp_path, target, source, write_jsonl(tmp_path / "long.jsonl", rows))
    config["model"]["gradient_checkpointing"] = checkpointing
    config["data"] |= {"batch_size": batch_size, "max_length": tokens}
    config["trainer"] |= {"precision": precision, "accumulate_grad_batches": 2}
    config = changed(changed(config, "profile", ...), "transfer", ...)
    told = told_memory(config)["training"]
    with PeakMemory() as counted:
        outcome = run("fit", config)
    assert outcome.status == 0, outcome.err
    assert told == pytest.approx(counted.peak, rel=0.15), (told, counted.peak)


@pytest.mark.parametrize("placement", ["resident", "layerwise"])
@pytest.mark.parametrize("vocabulary", [300, 8000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_profiling_takes_the_memory_that_was_told(
    dtype: torch.dtype, vocabulary: int, placement: str, tmp_path: Path
) -> None:
    target, source = pair_of(tmp_path, dtype, vocab_size=vocabulary, num_hidden_layers=8)
    rows = [{"prompt": "x", "answer": "y " * 240}] * 32
    config = basic(tmp_path, target, source, write_jsonl(tmp_path / "long.jsonl", rows))
    config["profile"] |= {"placement": placement, "tokens_per_batch": 4096}
    told = told_memory(config)["profiling"]
    with PeakMemory() as counted:
        outcome = run("profile", config)
    assert outcome.status == 0, outcome.err
    within = 0.2 if placement == "layerwise" else 0.15  # hidden states between stages are not told
    assert told == pytest.approx(counted.peak, rel=within), (told, counted.peak)
