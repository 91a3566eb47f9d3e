"""Entries matched by token: sizes that differ, other numbers, padding, and tokenizers that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer

from act_lightning.checkpoints.compatibility import match_rows, match_vocabularies, read_vocabulary, sibling_issues
from act_lightning.errors import ActError
from tests.tiny import VOCABULARY, save_model, tiny_config, tiny_model, tiny_tokenizer


def folder(place: Path, size: int = VOCABULARY, *added: str) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added])
    return save_model(tiny_model("llama", vocab_size=size), tokenizer, place)


def test_one_added_token_on_either_side(tmp_path: Path) -> None:
    plain, more = folder(tmp_path / "plain"), folder(tmp_path / "more", 301, "<tool>")
    match = match_vocabularies(plain, more)
    assert match is not None
    assert match.names == {"model.embed_tokens.weight", "lm_head.weight"}
    assert torch.equal(match.rows, torch.arange(300))
    assert match.to_json() == {"stayed": 0, "tokens": [], "without_token": 0}
    match = match_vocabularies(more, plain)
    assert match is not None
    assert match.rows.tolist() == [*range(300), -1]
    assert match.to_json() == {"stayed": 1, "tokens": ["<tool>"], "without_token": 0}


def test_padding_and_tokens_that_are_numbered_otherwise(tmp_path: Path) -> None:
    target, source = folder(tmp_path / "t", 320, "<a>", "<b>"), folder(tmp_path / "s", 304, "<b>", "<a>", "<c>")
    match = match_vocabularies(target, source)
    assert match is not None
    assert match.rows.tolist() == [*range(300), 301, 300, *[-1] * 18]
    assert (match.tokens, match.unnamed, match.missing) == ((), 18, 18)


def test_one_size(tmp_path: Path) -> None:
    """Rows are matched by token where the tokenizers differ; padding of both is matched by number."""
    target, other = folder(tmp_path / "t", 310, "<a>", "<b>"), folder(tmp_path / "s", 310, "<b>", "<a>")
    assert match_vocabularies(target, folder(tmp_path / "same", 310, "<a>", "<b>")) is None
    match = match_vocabularies(target, other)
    assert match is not None
    assert match.rows.tolist() == [*range(300), 301, 300, *range(302, 310)]
    assert match_rows({"a": 0}, {"a": 0, "b": 2}, 4, 4).tolist() == [0, 1, -1, 3]


def test_without_tokenizers(tmp_path: Path) -> None:
    target, source = folder(tmp_path / "t"), folder(tmp_path / "s", 301, "<tool>")
    for path in source.glob("tokenizer*"):
        path.unlink()
    (issue,) = sibling_issues(target, source, "profile.sources[0].model")
    assert "vocabularies of [300, 301] entries are matched by token" in issue.problem
    with pytest.raises(ActError, match="must hold a tokenizer"):
        match_vocabularies(target, source)
    tiny_config("llama").save_pretrained(tmp_path / "bare")
    assert match_vocabularies(target, tmp_path / "bare") is None, "one size, and nothing to match by"


def test_a_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    place = folder(tmp_path / "t", 302, "<a>", "<b>")
    assert read_vocabulary(place) == AutoTokenizer.from_pretrained(place).get_vocab()
    (place / "tokenizer.json").write_text("{}")
    with pytest.raises(ActError, match="must hold a tokenizer that transformers can load"):
        read_vocabulary(place)
