"""What becomes of an ability's rows: samples, those dropped and cut, the fingerprint, what is held out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.cache import TokenizedAbility, tokenize_ability
from act_lightning.data.labels import Sample, fingerprint
from act_lightning.errors import ActError
from tests.tiny import write_jsonl

ROWS = [
    {"prompt": "a", "answer": "one"},
    {"prompt": "b", "answer": " "},
    {"prompt": "a prompt so long that nothing of its answer is left", "answer": "two"},
    {"prompt": "c", "answer": "an answer so long that it is cut"},
]


def tokenize(path: Path, tokenizer: PreTrainedTokenizerFast, max_length: int) -> TokenizedAbility:
    return tokenize_ability("x", AbilityData(str(path), template="{prompt}: "), tokenizer, "chat", max_length)


def test_counts_are_kept_and_reported(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        ability = tokenize(write_jsonl(tmp_path / "x.jsonl", ROWS), tokenizer, 15)
    assert (ability.rows, len(ability.samples), ability.dropped, ability.cut) == (4, 2, 2, 1)
    assert ability.tokens == sum(int((sample.labels >= 0).sum()) for sample in ability.samples)
    assert "x: 2 samples" in caplog.text
    assert "1 cut; dropped: 1 with an empty or no answer, 1 without an answer token in 15 tokens" in caplog.text


def test_no_row_left_says_why(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(
        ActError,
        match="all 4 are dropped: 1 with an empty or no answer, 3 without an answer token in 1 tokens; the shortest "
        "prompt takes 3",
    ):
        tokenize(path, tokenizer, 1)


def test_row_that_the_template_cannot_tell_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_jsonl(tmp_path / "x.jsonl", [ROWS[0], {"messages": talk * 2}])
    with pytest.raises(ActError, match=r"x.jsonl:2, data.abilities.x.template = '{prompt}: ': can render one"):
        tokenize(path, tokenizer, 15)


def test_fingerprint_sees_every_id_label_and_border() -> None:
    ids, other = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])
    masked = torch.tensor([-100, 2, 3])
    variants = [
        [Sample(ids, ids)],
        [Sample(other, other)],
        [Sample(ids, masked)],
        [Sample(ids[:2], ids[:2]), Sample(ids[2:], ids[2:])],
        [Sample(ids, ids), Sample(ids, ids)],
    ]
    assert len({fingerprint(samples) for samples in variants}) == len(variants)
    ability = TokenizedAbility("x", [Sample(ids, ids, "text", cut=True)], 1, 0, 1)
    assert ability.fingerprint == fingerprint(variants[0])


@pytest.mark.parametrize(("share", "count", "held"), [(0.29, 100, 29), (0.5, 3, 1), (0.01, 3, 1)])
def test_hold_out_takes_the_last(share: float, count: int, held: int) -> None:
    samples = [Sample(torch.tensor([i]), torch.tensor([i]), cut=i == count - 1) for i in range(count)]
    rest, last = TokenizedAbility("x", samples, count + 5, 5, 1).hold_out(share)
    assert [*rest.samples, *last.samples] == samples
    assert (len(last.samples), last.rows, last.dropped, last.cut) == (held, held, 0, 1)
    assert (rest.rows, rest.dropped, rest.cut) == (count + 5 - held, 5, 0)


def test_hold_out_leaves_something() -> None:
    one = TokenizedAbility("x", [Sample(torch.tensor([1]), torch.tensor([1]))], 1, 0, 0)
    with pytest.raises(ActError, match=r"data.validation = 0.5: must leave a sample to train on, and x has 1"):
        one.hold_out(0.5)
    assert replace(one, samples=one.samples * 2).hold_out(0.9)[0].tokens == 1
