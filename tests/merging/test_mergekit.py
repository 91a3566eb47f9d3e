"""What mergekit's own functions make of the same tensors, weights and draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mergekit.merge_methods import merge_tensors
from torch import Tensor

from act_lightning.merging import (
    DARE,
    DARETIES,
    DELLA,
    TIES,
    Breadcrumbs,
    MergingMethod,
    TaskArithmetic,
    TaskVector,
    TensorSlice,
    apply_change,
    bind,
)
from act_lightning.merging.sparsify import bernoulli, uniform

SHAPE = (61, 47)
PLACE = TensorSlice("model.layers.0.mlp.up_proj.weight", seed=42)
EVERYWHERE = torch.ones(1, 1, dtype=torch.bool)
SCALES = [[1.0], [0.7, 0.3], [0.5, -0.9, 1.7]]
DENSITIES = [0.0, 0.1, 0.37, 0.9, 1.0]
CPU = torch.device("cpu")


def siblings(count: int) -> tuple[Tensor, list[Tensor]]:
    target = torch.randn(SHAPE)
    return target, [target + 0.1 * torch.randn(SHAPE) for _ in range(count)]


def merged(method: MergingMethod, target: Tensor, sources: list[Tensor], scales: list[float], scale: float) -> Tensor:
    """The way from λ_m and λ to new weights, as the injection goes it."""
    vectors = [
        TaskVector(source - target, each, source=str(number))
        for number, (source, each) in enumerate(zip(sources, scales, strict=True))
    ]
    return apply_change(target, bind(method, lambda: [(vectors, PLACE)], scale)(vectors, PLACE), EVERYWHERE)


def mergekit_merge(name: str, target: Tensor, sources: list[Tensor], weights: list[float], **parameters: Any) -> Tensor:
    for per_source in ("density", "epsilon", "gamma"):
        if per_source in parameters:
            parameters[per_source] = [parameters[per_source]] * len(sources)
    result = merge_tensors([target, *sources], name, parameters={"weight": weights, **parameters}, base_index=0)
    assert isinstance(result, Tensor)
    return result


@pytest.fixture
def our_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mergekit draws once for each source, in order, what we draw."""
    numbers: Iterator[int] = iter(range(9))

    def draw(probabilities: Tensor) -> Tensor:
        if bool((probabilities == probabilities.flatten()[0]).all()):
            density = float(probabilities.flatten()[0])
            mask = bernoulli(density, probabilities.shape, PLACE, str(next(numbers)), CPU) != 0
        else:
            mask = uniform(probabilities.shape, PLACE, str(next(numbers)), CPU) < probabilities
        return mask.to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", draw)


def check(result: Tensor, expected: Tensor, target: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result - target, expected - target, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scales", SCALES, ids=len)
def test_task_arithmetic_to_the_bit(scales: list[float]) -> None:
    target, sources = siblings(len(scales))
    assert torch.equal(
        merged(TaskArithmetic(), target, sources, scales, 0.4),
        mergekit_merge("task_arithmetic", target, sources, scales),
    )


@pytest.mark.parametrize("scales", SCALES, ids=len)
@pytest.mark.parametrize("density", DENSITIES)
def test_ties(scales: list[float], density: float) -> None:
    """λ multiplies the merged vector; λ_m / λ is the weight of a source."""
    target, sources = siblings(len(scales))
    relative = [each / 0.5 for each in scales]
    for average in (True, False):
        result = merged(TIES(density, average), target, sources, scales, 0.5)
        settings = {"density": density, "normalize": average, "lambda": 0.5}
        check(result, mergekit_merge("ties", target, sources, relative, **settings), target)


@pytest.mark.parametrize("scales", SCALES, ids=len)
@pytest.mark.parametrize("density", [0.1, 0.37, 0.9, 1.0])
@pytest.mark.usefixtures("our_draws")
def test_dare(scales: list[float], density: float) -> None:
    target, sources = siblings(len(scales))
    result = merged(DARE(density, "norm"), target, sources, scales, 0.5)
    check(result, mergekit_merge("dare_linear", target, sources, scales, density=density), target)


@pytest.mark.usefixtures("our_draws")
def test_dare_without_rescaling() -> None:
    target, sources = siblings(2)
    result = merged(DARE(0.3, "none"), target, sources, [0.7, 0.3], 1.0)
    check(result, mergekit_merge("dare_linear", target, sources, [0.7, 0.3], density=0.3, rescale=False), target)


@pytest.mark.parametrize("scales", SCALES, ids=len)
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.usefixtures("our_draws")
def test_dare_ties(scales: list[float], average: bool) -> None:
    target, sources = siblings(len(scales))
    relative = [each / 0.5 for each in scales]
    result = merged(DARETIES(0.37, "norm", average), target, sources, scales, 0.5)
    settings = {"density": 0.37, "normalize": average, "lambda": 0.5}
    check(result, mergekit_merge("dare_ties", target, sources, relative, **settings), target)


@pytest.mark.parametrize("scales", SCALES, ids=len)
@pytest.mark.parametrize(("density", "outliers"), [(0.9, 0.01), (0.5, 0.2), (0.3, 0.0), (0.9, 0.5)])
def test_breadcrumbs(scales: list[float], density: float, outliers: float) -> None:
    target, sources = siblings(len(scales))
    result = merged(Breadcrumbs(density, outliers), target, sources, scales, 0.4)
    check(result, mergekit_merge("breadcrumbs", target, sources, scales, density=density, gamma=outliers), target)


@pytest.mark.parametrize("scales", SCALES[:2], ids=len)
@pytest.mark.usefixtures("our_draws")
def test_della(scales: list[float]) -> None:
    target, sources = siblings(len(scales))
    result = merged(DELLA(0.5, 0.2, "norm"), target, sources, scales, 1.0)
    check(result, mergekit_merge("della", target, sources, scales, density=0.5, epsilon=0.2), target)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.77])
def test_ties_among_equal_magnitudes(density: float) -> None:
    """bfloat16 checkpoints differ by few distinct numbers; mergekit's sort may part equal ones anyhow, so count."""
    target = torch.randn(SHAPE).bfloat16().float()
    source = (target + torch.randint(-3, 4, SHAPE) * 2**-7).bfloat16().float()
    result = merged(TIES(density), target, [source], [1.0], 1.0)
    expected = mergekit_merge("ties", target, [source], [1.0], density=density)
    assert int((result != target).sum()) == int((expected != target).sum())
    least = (expected - target).abs()[expected != target].min()
    assert torch.equal((result - target).abs() > least, (expected - target).abs() > least)
