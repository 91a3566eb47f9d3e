"""Edges and properties that every method shares: nothing to merge, nothing left, one source, parts, masks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from act_lightning.errors import ActError
from act_lightning.merging import (
    DARE,
    DARETIES,
    DELLA,
    METHODS,
    TIES,
    Breadcrumbs,
    Fisher,
    MergingMethod,
    Part,
    TaskArithmetic,
    TaskVector,
    TensorSlice,
    bind,
    merging_method,
    works_by_rows,
)

SPARSIFYING = (TIES, DARE, DARETIES, Breadcrumbs, DELLA)
MANY = [
    *(method() for method in METHODS.values()),
    TIES(0.5, average=False),
    DARE(0.5, "norm"),
    DARETIES(0.5, "norm", average=False),
    DARE(0.5, "none"),
    DARE(1e-320),
    Breadcrumbs(0.4, 0.3),
    DELLA(0.4, 0.3, "norm"),
    Fisher(target_weight=0),
]
NAMES = [repr(method) for method in MANY]
SHAPES = [(12,), (12, 5), (12, 3, 2)]


def vector(delta: Tensor, weight: float = 0.5, mask: Tensor | None = None, source: str = "s") -> TaskVector:
    return TaskVector(delta, weight, mask, source, fisher=delta**2 + 0.1)


def merged(method: MergingMethod, vectors: list[TaskVector], scale: float = 0.5) -> Tensor:
    tensor_slice = TensorSlice("weight", 42, fisher=torch.ones_like(vectors[0].delta))
    return bind(method, lambda: [(vectors, tensor_slice)], scale)(vectors, tensor_slice)


@st.composite
def task_vectors(draw: Any) -> list[TaskVector]:
    """One to three sources of few distinct numbers, so that many are equal, under masks of every shape."""
    shape = draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    vectors = []
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["normal", "coarse", "zero"]))
        delta = torch.randn(shape, generator=generator)
        delta = {"normal": delta, "coarse": delta.round() / 4, "zero": delta * 0}[kind]
        mask_shape = draw(st.sampled_from([None, shape, (shape[0], *[1] * (len(shape) - 1)), (1,) * len(shape)]))
        mask = (
            None
            if mask_shape is None
            else torch.rand(mask_shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        )
        weight = draw(st.sampled_from([0.0, 0.3, 0.5, 2.0]))
        vectors.append(vector(delta, weight, mask, f"s{number}"))
    return vectors


@pytest.mark.parametrize("method", MANY, ids=NAMES)
@settings(deadline=None, max_examples=20)
@given(vectors=task_vectors())
def test_finite_and_zero_where_no_mask_selects(method: MergingMethod, vectors: list[TaskVector]) -> None:
    change = merged(method, vectors)
    assert change.shape == vectors[0].delta.shape
    assert change.dtype == torch.float32
    assert torch.isfinite(change).all()
    moved = torch.zeros(change.shape, dtype=torch.bool)
    for task_vector in vectors:
        moved |= (task_vector.restricted() != 0) & (task_vector.weight != 0)
    assert not change[~moved].any()


@pytest.mark.parametrize("method", [method for method in MANY if works_by_rows(method)], ids=repr)
@settings(deadline=None, max_examples=20)
@given(vectors=task_vectors(), cuts=st.lists(st.integers(1, 11), max_size=4))
def test_parts_are_merged_as_the_whole(method: MergingMethod, vectors: list[TaskVector], cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), 12]
    rows = [torch.arange(first, last) for first, last in pairwise(edges)]

    def parts() -> Iterator[Part]:
        for numbers in rows:
            tensor_slice = TensorSlice("weight", 42, numbers, torch.ones_like(vectors[0].delta[numbers]))
            yield [cut(task_vector, numbers) for task_vector in vectors], tensor_slice

    merge = bind(method, parts, 0.5)
    result = torch.cat([merge(*part) for part in parts()])
    torch.testing.assert_close(result, merged(method, vectors), rtol=1e-6, atol=1e-7)


def cut(task_vector: TaskVector, rows: Tensor) -> TaskVector:
    mask = task_vector.mask if task_vector.mask is None or len(task_vector.mask) == 1 else task_vector.mask[rows]
    assert task_vector.fisher is not None
    return TaskVector(task_vector.delta[rows], task_vector.weight, mask, task_vector.source, task_vector.fisher[rows])


@pytest.mark.parametrize("kind", SPARSIFYING)
def test_density_0_changes_nothing_and_1_drops_nothing(kind: type[MergingMethod]) -> None:
    deltas = torch.randn(2, 9, 7)
    vectors = [vector(delta, source=str(number)) for number, delta in enumerate(deltas)]
    make: Any = kind
    assert not merged(make(density=0.0), vectors).any()
    more = {"outliers": 0.0} if kind is Breadcrumbs else {}
    alone = merged(make(density=1.0, **more), vectors[:1])
    torch.testing.assert_close(alone, 0.5 * deltas[0])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
@pytest.mark.parametrize("method", MANY, ids=NAMES)
def test_nothing_to_merge(method: MergingMethod, shape: tuple[int, ...]) -> None:
    assert merged(method, [vector(torch.zeros(shape))]).shape == shape


@pytest.mark.parametrize("method", MANY, ids=NAMES)
def test_a_mask_is_as_if_the_rest_were_not_there(method: MergingMethod) -> None:
    """A share is one of the selected elements: whole rows that are not selected have no influence."""
    deltas, rows = torch.randn(2, 40, 6), torch.tensor([3, 4, 11, 20, 39])
    mask = torch.zeros(40, 1, dtype=torch.bool)
    mask[rows] = True
    whole = merged(method, [vector(delta, mask=mask, source=str(i)) for i, delta in enumerate(deltas)])
    alone = [vector(delta[rows], source=str(i)) for i, delta in enumerate(deltas)]
    tensor_slice = TensorSlice("weight", 42, rows, torch.ones_like(alone[0].delta))
    torch.testing.assert_close(whole[rows], bind(method, lambda: [(alone, tensor_slice)], 0.5)(alone, tensor_slice))


def test_ties_keeps_the_exact_share_of_equal_magnitudes_lowest_positions_first() -> None:
    delta = torch.tensor([[2.0, -1.0, 1.0], [1.0, -1.0, 0.5], [1.0, 1.0, 1.0]])
    result = merged(TIES(0.5), [vector(delta, weight=0.5)])
    assert result.tolist() == [[1.0, -0.5, 0.5], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_voting_method_takes_scales_as_weights_times_one_scale() -> None:
    first, second = torch.tensor([4.0, 4.0]), torch.tensor([1.0, -1.0])
    result = merged(TIES(1.0), [vector(first, 0.5), vector(second, 1.5)], scale=0.5)
    assert result.tolist() == [0.5 * (4 * 1 + 1 * 3) / 4, 0.5 * 4]
    assert not merged(TIES(1.0), [vector(first, 0.0), vector(second, 0.0)], scale=0.0).any()


def test_dare_keeps_the_expected_change() -> None:
    delta = torch.full((400, 400), 0.01)
    for method in (DARE(0.1), DARE(0.1, "norm")):
        assert float(merged(method, [vector(delta, 1.0)]).mean()) == pytest.approx(0.01, rel=0.05)


def test_fisher_is_an_average_of_models() -> None:
    target, source = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0])
    target_fisher, source_fisher = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 2.0, 0.0])
    task_vector = TaskVector(source - target, 1.0, fisher=source_fisher)
    change = Fisher().merge([task_vector], TensorSlice("weight", fisher=target_fisher))
    assert (target + change).tolist() == [2.5, 3.0, 1.0]
    with pytest.raises(TypeError, match="carries no Fisher information"):
        Fisher().merge([TaskVector(source)], TensorSlice("weight", fisher=target_fisher))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (TIES(1.5), "TIES.density = 1.5: must lie in"),
        (DARE(-0.1), "DARE.density = -0.1: must lie in"),
        (DARETIES(float("nan")), "DARETIES.density = nan: must lie in"),
        (DARE(rescale="mean"), "DARE.rescale = 'mean': must be one of density, norm, none"),  # type: ignore[arg-type]
        (Breadcrumbs(outliers=2), "Breadcrumbs.outliers = 2: must lie in"),
        (DELLA(0.9, 0.1), "DELLA.spread = 0.1: must be at least 0 and below 0.1"),
        (Fisher(-1), "Fisher.target_weight = -1: must be a number that is not negative"),
    ],
)
def test_settings_that_make_no_sense(method: MergingMethod, message: str) -> None:
    with pytest.raises(ActError) as error:
        merging_method(method)
    assert message in str(error.value)
    assert merging_method(TaskArithmetic()).issues() == []
