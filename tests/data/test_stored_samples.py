"""Samples on disk and back."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act_lightning.data.cache import StoredSamples, answer_tokens, cut_samples, lengths, save_shard
from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED

tokens = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=8)
text = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates, which JSON may hold, included
shards = st.lists(st.lists(st.tuples(tokens, text, st.booleans()), min_size=1, max_size=4), min_size=1, max_size=4)


def sample(pairs: list[tuple[int, bool]], text: str, cut: bool) -> Sample:
    ids = torch.tensor([token for token, _ in pairs])
    return Sample(ids, torch.where(torch.tensor([answer for _, answer in pairs]), ids, IGNORED), text, cut)


def contents(one: Sample) -> tuple[list[int], list[int], str, bool]:
    return one.input_ids.tolist(), one.labels.tolist(), one.text, one.cut


def stored(parts: list[list[Sample]], folder: Path) -> StoredSamples:
    paths = [folder / f"{number}.safetensors" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        save_shard(path, part)
    return StoredSamples(paths, [len(part) for part in parts])


@given(shards, st.integers(-20, 20), st.integers(-20, 20))
def test_what_is_stored_is_a_list(tmp_path_factory: pytest.TempPathFactory, parts: list, start: int, stop: int) -> None:
    samples = [[sample(*one) for one in part] for part in parts]
    plain = [one for part in samples for one in part]
    found = stored(samples, tmp_path_factory.mktemp("shards"))
    for actual, expected in ((found, plain), (found[start:stop], plain[start:stop]), (found[::2][1:], plain[::2][1:])):
        assert [contents(one) for one in actual] == [contents(one) for one in expected]
        assert len(actual) == len(expected)
        assert lengths(actual) == lengths(expected)
        assert answer_tokens(actual) == answer_tokens(expected)
        assert cut_samples(actual) == cut_samples(expected)
    assert contents(found[-1]) == contents(plain[-1])
    with pytest.raises(IndexError):
        found[len(plain)]


def test_samples_cross_a_process_border(tmp_path: Path) -> None:
    found = stored([[sample([(i, True)], str(i), False)] for i in range(3)], tmp_path)[1:]
    again = pickle.loads(pickle.dumps(found))
    assert [one.text for one in again] == [one.text for one in found] == ["1", "2"]
    again[0].labels[0] = 9  # a copy: what is mapped cannot be changed
    assert contents(found[0])[1] == [1]
