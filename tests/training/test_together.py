"""A failure on one process ends all of them, with its message: wherever it comes, and whichever process it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.front_door import basic, write_yaml
from tests.programs import failing_verb
from tests.tiny import save_pair, write_jsonl
from tests.training.processes import start, strategy_of

_SECONDS = 60.0
_POINTS = [
    ("prepare", 1, "fsdp2", "failed: a setting = 1: must be another here"),
    ("profile", 0, "ddp", "RuntimeError: out of memory on this device"),
    ("load", 1, "fsdp2", "No space left on device"),
    ("inject", 0, "fsdp2", "a setting = 1: must be another here"),
    ("step", 1, "ddp", "RuntimeError: out of memory on this device"),
    ("validate", 1, "fsdp2", "RuntimeError: out of memory on this device"),
    ("save", 1, "fsdp2", "No space left on device"),
    ("export", 1, "fsdp2", "a setting = 1: must be another here"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of models, and 21 rows, which two processes do not divide."""
    folder = tmp_path_factory.mktemp("together")
    save_pair(folder, "qwen2")
    write_jsonl(folder / "d.jsonl", [{"prompt": f"Say {i}", "answer": "one " * (1 + i % 5)} for i in range(21)])
    return folder


def test_every_point_is_tried() -> None:
    assert [point for point, *_ in _POINTS] == list(failing_verb.POINTS)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "rank", "strategy", "message"), _POINTS)
def test_all_processes_end(place: Path, tmp_path: Path, point: str, rank: int, strategy: str, message: str) -> None:
    config = basic(tmp_path, place / "target", place / "source", place / "d.jsonl")
    config["data"]["validation"] = 0.3
    config["trainer"] |= {"devices": 2, "strategy": strategy_of(strategy, 2), "num_sanity_val_steps": 0}
    file = write_yaml(tmp_path / "config.yaml", config)
    mark = tmp_path / "failed"
    verb = start(Path(failing_verb.__file__), point, rank, mark, "fit", "--config", file)
    _, printed = verb.communicate(timeout=300)
    assert verb.returncode == 1, printed[-5000:]
    assert message in printed
    assert f"process {rank} failed: " in printed  # what the other one says
    assert time.time() - mark.stat().st_mtime < _SECONDS
