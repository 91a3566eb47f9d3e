"""FSDP1, which flattens parameters, as torch runs it on two CPU processes: written to and gathered unit by unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import PROGRAMS
from tests.tiny import save_model, tiny_model, tiny_tokenizer
from tests.training.processes import on_processes

pytestmark = pytest.mark.slow


def test_no_process_holds_more_than_its_part_and_a_unit(tmp_path: Path) -> None:
    """A unit, and the flat copy that is sharded; untied and tied."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma3_text")]
    for folder in folders:
        save_model(tiny_model(folder.name, num_hidden_layers=16), tiny_tokenizer(), folder)
    on_processes(2, PROGRAMS / "fsdp1_load.py", *folders)


def test_what_is_written_unit_by_unit_stays(tmp_path: Path) -> None:
    """With biases, tied, and with matrices stored the other way round."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma2", "gpt2")]
    for folder in folders:
        save_model(tiny_model(folder.name), tiny_tokenizer(), folder)
    on_processes(2, PROGRAMS / "fsdp1_write.py", *folders)
