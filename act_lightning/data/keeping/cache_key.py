"""The fingerprint of a prepared set: everything that decides its samples."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jinja2
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from act_lightning.data.labeling.templates import Template

_DECIDING = (".py", ".jinja")


def cache_key(rows: str, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """SHA-256 over all that decides the samples, our own code included: change any of it, and a set is prepared anew.

    Args:
        rows: Fingerprint of the rows.
        template: How a conversation becomes text.
        tokenizer: Its type, and its files as it would save them.
        max_length: Longer sequences are cut at the end.

    Returns:
        64 hexadecimal digits.
    """
    versions = [module.__version__ for module in (transformers, tokenizers, jinja2)]
    parts = [rows, _template_text(template), _tokenizer_digest(tokenizer), max_length, versions, _code_digest()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _template_text(template: Template) -> list[str]:
    told = {name: value for name, value in vars(template).items() if isinstance(value, (str, int, float, type(None)))}
    return [type(template).__name__, json.dumps(told, sort_keys=True)]


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return [type(tokenizer).__name__, _digest(Path(folder).rglob("*"))]


def _code_digest() -> str:
    """Of this package's sources: labels, shapes, templates and the format of the files are all decided here."""
    return _digest(path for path in Path(__file__).parents[1].rglob("*") if path.suffix in _DECIDING)


def _digest(paths: Iterable[Path]) -> str:
    files = [(path.name, file_digest(path)) for path in sorted(paths) if path.is_file()]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
