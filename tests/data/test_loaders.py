"""Where a broken-off epoch goes on, on any number of processes; and micro-batches of like length."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act_lightning.data.batches import MAX_PADDING, token_budget_batches
from act_lightning.data.labels import Sample
from act_lightning.data.loaders import MicroBatchSampler, TrainingLoader
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError


def loaders(count: int, batch_size: int, processes: int, epoch: int = 0, packed: bool = False) -> list[TrainingLoader]:
    """One loader for each process, of samples that each hold their own number once or more."""
    samples = [Sample(torch.full((i % 3 + 1,), i), torch.full((i % 3 + 1,), i)) for i in range(count)]
    found = []
    for rank in range(processes):
        sampler = MicroBatchSampler(count, batch_size, seed=3, rank=rank, world_size=processes)
        sampler.set_epoch(epoch)
        found.append(TrainingLoader(samples, sampler, 0, packed))
    return found


def counted(batch: dict[str, torch.Tensor]) -> list[int]:
    return sorted({label for label in batch["labels"].flatten().tolist() if label != IGNORED})


def taken(given_out: list[list[dict[str, torch.Tensor]]]) -> list[int]:
    return sorted(number for process in given_out for batch in process for number in counted(batch))


@given(
    st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 12), st.integers(0, 2)
)
def test_no_sample_is_given_twice_or_lost(
    count: int, batch_size: int, before: int, after: int, steps: int, epoch: int
) -> None:
    first = loaders(count, batch_size, before, epoch)
    behind = [[batch for _, batch in zip(range(steps), loader, strict=False)] for loader in first]
    states = [loader.state_dict() for loader in first]
    assert states == states[:1] * before, "a checkpoint holds that of one process"
    second = loaders(count, batch_size, after, epoch)
    for loader in second:
        loader.load_state_dict(states[0])
    ahead = [list(loader) for loader in second]
    assert sorted(taken(behind) + taken(ahead)) == list(range(count))
    assert len({len(process) for process in ahead}) == 1
    of_both = [(loader, batches, 0) for loader, batches in zip(first, behind, strict=True)]
    of_both += [(loader, batches, len(loader) - len(batches)) for loader, batches in zip(second, ahead, strict=True)]
    for loader, batches, done in of_both:
        for number, batch in enumerate(batches, start=done):
            assert not counted(batch) or counted(batch) == sorted(loader.samples_in(number)), "it is found again"
    for loader in second:
        loader.sampler.set_epoch(epoch + 1)
    assert taken([list(loader) for loader in second]) == list(range(count)), "the next epoch is whole"


def test_another_order_is_refused_in_the_midst_only() -> None:
    (loader,) = loaders(9, 2, 1)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    other = TrainingLoader([], MicroBatchSampler(9, 2, seed=4), 0)
    with pytest.raises(ActError, match="after 2 samples': must give the samples in the order of the epoch"):
        other.load_state_dict(state)
    list(iterator)
    other.load_state_dict(loader.state_dict())
    (smaller,) = loaders(9, 1, 1)
    smaller.load_state_dict(state)
    assert len(list(smaller)) == 7, "another size of micro-batches goes on all the same"


def test_the_first_token_of_a_packed_sample_answers_nothing() -> None:
    (loader,) = loaders(6, 3, 1, packed=True)
    for batch in loader:
        assert set(batch) == {"input_ids", "position_ids", "labels"}
        assert ((batch["labels"] == IGNORED) == (batch["position_ids"] == 0)).all()


@pytest.mark.parametrize("shuffle", [False, True])
def test_micro_batches_of_like_length_waste_little(shuffle: bool) -> None:
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(5.6, 0.5)) for _ in range(6407)]
    sampler = MicroBatchSampler(len(lengths), 16, shuffle, lengths=lengths)
    first = sampler.composition()
    sampler.set_epoch(1)
    assert (sampler.composition() == first) != shuffle
    assert sorted(row for rows in first for row in rows) == list(range(6407))
    assert [len(rows) for rows in first] == [16] * 400 + [7]
    waste = 1 - sum(lengths) / sum(len(rows) * max(lengths[row] for row in rows) for rows in first)
    assert waste < MAX_PADDING


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 900), st.booleans())
def test_bounded_batches(lengths: list[int], budget: int, packed: bool) -> None:
    batches = token_budget_batches(lengths, budget, MAX_PADDING, packed)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        tokens, padded = sum(lengths[row] for row in rows), len(rows) * max(lengths[row] for row in rows)
        assert len(rows) == 1 or (tokens if packed else padded) <= budget
        assert packed or 1 - tokens / padded <= MAX_PADDING + 1e-9
