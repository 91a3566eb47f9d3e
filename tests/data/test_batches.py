"""Batches and their inverse, token budgets, and micro-batches on any number of processes."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DistributedSampler

from act_lightning.data.batches import collate, token_budget_batches, unbatch
from act_lightning.data.labels import Sample
from act_lightning.data.loaders import MicroBatchSampler, TrainingLoader
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError

PAD = 0  # also an id that samples hold: only the mask says what is padding


def sample(ids: list[int]) -> Sample:
    tensor = torch.tensor(ids)
    return Sample(tensor, torch.where(tensor % 3 == 0, IGNORED, tensor))


def plain(samples: list[Sample]) -> list[tuple[list[int], list[int]]]:
    return [(one.input_ids.tolist(), one.labels.tolist()) for one in samples]


samples = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9).map(sample), min_size=1, max_size=6)


@given(samples)
def test_unbatch_undoes_collate(rows: list[Sample]) -> None:
    batch = collate(rows, PAD)
    assert {name: (values.dtype, values.shape) for name, values in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"),
        (torch.int64, torch.Size([len(rows), max(len(row.input_ids) for row in rows)])),
    )
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert plain(unbatch(batch)) == plain(rows)
    flipped = {name: values.flip(1) for name, values in batch.items()}  # as padded on the left
    assert [(ids[::-1], labels[::-1]) for ids, labels in plain(unbatch(flipped))] == plain(rows)


@given(samples, st.booleans())
def test_unbatch_splits_packed_rows(rows: list[Sample], padded: bool) -> None:
    positions = torch.cat([torch.arange(len(row.input_ids)) for row in rows])[None]
    batch = {"input_ids": torch.cat([row.input_ids for row in rows])[None], "position_ids": positions}
    batch["labels"] = torch.cat([row.labels for row in rows])[None]
    if padded:
        batch = {name: torch.nn.functional.pad(values, (0, 2)) for name, values in batch.items()}
        batch["attention_mask"] = torch.nn.functional.pad(torch.ones_like(positions), (0, 2))
    assert plain(unbatch(batch)) == plain(rows)


def test_unbatch_without_labels_is_refused() -> None:
    with pytest.raises(ActError, match="must hold labels"):
        unbatch({"input_ids": torch.ones(1, 2)})


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60), st.integers(1, 4))
def test_token_budget(lengths: list[int], budget: int, world_size: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    longest_first = [lengths[index] for batch in batches for index in batch]
    assert longest_first == sorted(lengths, reverse=True)


def epoch(
    count: int, batch_size: int, world_size: int, number: int, shuffle: bool = True
) -> list[list[tuple[int, ...]]]:
    """What each process is given to count in one epoch."""
    shares = []
    for rank in range(world_size):
        sampler = MicroBatchSampler(count, batch_size, shuffle, seed=7, rank=rank, world_size=world_size)
        sampler.set_epoch(number)
        steps = list(sampler)
        assert len(steps) == len(sampler) == -(-count // (batch_size * world_size))
        assert all(step.rows for step in steps)
        assert [step.counts for step in steps] == sorted((step.counts for step in steps), reverse=True)
        shares.append([step.rows for step in steps if step.counts])
    return shares


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_every_sample_once_in_the_same_micro_batches(count: int, batch_size: int, world_size: int, number: int) -> None:
    (alone,) = epoch(count, batch_size, 1, number)
    shares = epoch(count, batch_size, world_size, number)
    assert sorted(row for rows in alone for row in rows) == list(range(count))
    assert sorted(chain(*shares)) == sorted(alone)
    assert [shares[step % world_size][step // world_size] for step in range(len(alone))] == alone


def test_epochs_and_seeds_give_other_orders() -> None:
    first, second = epoch(20, 3, 1, 0), epoch(20, 3, 1, 1)
    assert first != second
    assert first == epoch(20, 3, 1, 0)
    assert epoch(7, 3, 1, 5, shuffle=False) == [[(0, 1, 2), (3, 4, 5), (6,)]]
    assert list(MicroBatchSampler(20, 3, seed=1)) != list(MicroBatchSampler(20, 3, seed=2))


def test_a_process_that_has_run_out_takes_part_with_zero_weight() -> None:
    rows = [sample([1, 2]), sample([4]), sample([5, 7, 8])]
    sampler = MicroBatchSampler(3, 2, shuffle=False, rank=1, world_size=3)
    loader = TrainingLoader(rows, sampler, PAD)
    counting = [batch["labels"].tolist() for batch in loader]
    spare = list(TrainingLoader(rows, MicroBatchSampler(3, 2, shuffle=False, rank=2, world_size=3), PAD))
    assert counting == [[[5, 7, 8]]]
    assert len(spare) == len(loader) == 1
    assert isinstance(spare[0]["input_ids"], Tensor)
    assert (spare[0]["labels"] == IGNORED).all()
    assert rows[2].labels.tolist() == [5, 7, 8]  # not overwritten


def test_lightning_finds_the_sampler_and_leaves_it() -> None:
    loader = TrainingLoader([sample([1])], MicroBatchSampler(1), PAD)
    assert isinstance(loader.sampler, DistributedSampler)
