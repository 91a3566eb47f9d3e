"""Four processes under FSDP2: what each injects, to the bit, and what the host's memory holds while loading."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import PROGRAMS
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer
from tests.training.processes import on_processes

pytestmark = pytest.mark.slow


def test_the_injection_to_the_bit(tmp_path: Path) -> None:
    """Tied and untied, in both precisions, of methods that add, vote and draw: as one process does it."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma3_text")]
    for folder in folders:
        target = tiny_model(folder.name)
        save_model(target, tiny_tokenizer(), folder)
        save_model(sibling_of(target, seed=1), tiny_tokenizer(), folder.with_name(f"{folder.name}-source"))
    on_processes(4, PROGRAMS / "four_inject.py", *folders)


def test_the_host_holds_a_share_and_a_little_while_loading(tmp_path: Path) -> None:
    """Of 400 MB in float32, a quarter; beside it 64 MiB that are read, once as bytes and once as numbers."""
    large = {"vocab_size": 20_000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 4}
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "small")
    save_model(tiny_model("llama", **large), tiny_tokenizer(), tmp_path / "large")
    on_processes(4, PROGRAMS / "four_load.py", tmp_path / "small", tmp_path / "large")
