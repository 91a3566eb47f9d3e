"""The files of a model that are no weights, and that whatever is made from it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CONFIG = "config.json"
CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
)
"""The target's files that an export keeps, byte for byte. Its card and its records of other runs are not among them."""


def carried_files(folder: Path) -> Iterator[Path]:
    """Those files that stand in ``folder``."""
    for pattern in CARRIED:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file() and path.suffix != ".py")
