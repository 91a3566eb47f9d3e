"""Task arithmetic against numpy scalars, against mergekit's formula, and bit by bit where nothing may move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from act_lightning.channels import inventory
from act_lightning.merging import TaskArithmetic, TaskVector, TensorSlice, apply_change, task_arithmetic
from tests.reference import merging as reference
from tests.tiny import sibling_of, tiny_model

DTYPES = [torch.float32, torch.bfloat16]
SCALES = [[0.4], [1.0], [0.7, 0.3], [0.1, -0.9, 1.7], [0.3, 0.3, 0.3, 0.3, 0.3]]
TINY: Any = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 6}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def siblings(count: int, dtype: torch.dtype, shape: tuple[int, ...] = (23, 17)) -> tuple[Tensor, list[Tensor]]:
    target = torch.randn(shape)
    return target.to(dtype), [(target + 0.1 * torch.randn(shape)).to(dtype) for _ in range(count)]


def merged(target: Tensor, sources: list[Tensor], scales: list[float], masks: list[Tensor]) -> Tensor:
    """The way from two checkpoints to new weights, as the injection goes it."""
    vectors = [
        TaskVector(source.float() - target.float(), scale, mask)
        for source, scale, mask in zip(sources, scales, masks, strict=True)
    ]
    union = torch.stack([mask.expand(target.shape) for mask in masks]).any(0)
    return apply_change(target, TaskArithmetic().merge(vectors, TensorSlice("weight")), union)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales", SCALES, ids=len)
@pytest.mark.parametrize("mask_shape", [(23, 17), (23, 1), (17,)])
def test_equals_numpy_element_by_element(dtype: torch.dtype, scales: list[float], mask_shape: tuple[int, ...]) -> None:
    target, sources = siblings(len(scales), dtype)
    masks = [torch.rand(mask_shape) < 0.4 for _ in scales]
    offers = [(s, scale, m.expand(23, 17)) for s, scale, m in zip(sources, scales, masks, strict=True)]
    expected = reference.merge(target, offers)
    assert torch.equal(bits(merged(target, sources, scales, masks)), bits(expected))
    assert (expected != target).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("architecture", "tied"), [("gpt2", True), ("qwen2", True), ("qwen2", False), ("gpt_neox", False)]
)
def test_whole_models(architecture: str, tied: bool, dtype: torch.dtype) -> None:
    target = tiny_model(architecture, tie_word_embeddings=tied, dtype=dtype, **TINY)
    channels = inventory(target)
    scales, sources = [0.4, 0.7], [sibling_of(target, seed=seed) for seed in (1, 2)]
    masks = [torch.rand(channels.total) < share for share in (0.1, 0.3)]
    numbers = [set(mask.nonzero().flatten().tolist()) for mask in masks]
    expected = reference.merge_models(target, list(zip(sources, scales, numbers, strict=True)))
    elements = [channels.elements(mask) for mask in masks]
    for name, parameter in target.named_parameters():
        selections = [
            part[name].expand(parameter.shape) if name in part else torch.zeros(parameter.shape, dtype=torch.bool)
            for part in elements
        ]
        parameters = [source.get_parameter(name).detach() for source in sources]
        assert torch.equal(bits(merged(parameter.detach(), parameters, scales, selections)), bits(expected[name])), name


@pytest.mark.parametrize("scales", SCALES, ids=len)
def test_equals_mergekit_without_masks(scales: list[float]) -> None:
    target, sources = siblings(len(scales), torch.float32, (64, 48))
    deltas = torch.stack([source - target for source in sources])
    weights = torch.tensor(scales, dtype=deltas.dtype)[:, None, None]
    expected = target + (deltas * weights).sum(dim=0)
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    result = merged(target, sources, scales, [everywhere] * len(scales))
    assert torch.equal(result, expected)
    unmasked = task_arithmetic([TaskVector(delta, scale) for delta, scale in zip(deltas, scales, strict=True)])
    assert torch.equal(apply_change(target, unmasked, everywhere), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unselected_elements_keep_every_bit(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    odd = torch.tensor([-0.0, 0.0, tiny / 4, -tiny / 2, float("inf"), float("-inf"), float("nan"), 1.0], dtype=dtype)
    assert odd[2] != 0
    source = torch.full_like(odd, float("nan"))
    mask = torch.zeros(8, dtype=torch.bool)
    assert torch.equal(bits(merged(odd, [source], [0.5], [mask])), bits(odd))
    mask[-1] = True
    assert torch.equal(bits(merged(odd, [torch.full_like(odd, 2)], [0.5], [mask]))[:-1], bits(odd)[:-1])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_where_nothing_changes_every_bit_stays(dtype: torch.dtype) -> None:
    target = torch.tensor([-0.0, 0.0, 1 / 3, -0.0, 1.0], dtype=dtype)
    changed = apply_change(target, torch.tensor([0.0, 0.0, -0.0, 0.5, -1.0]))
    assert torch.equal(bits(changed), bits(torch.tensor([-0.0, 0.0, 1 / 3, 0.5, 0.0], dtype=dtype)))
    everywhere = torch.ones(5, dtype=torch.bool)
    assert torch.equal(bits(merged(target, [target], [-2.0], [everywhere])), bits(target))


def test_a_source_adds_nothing_outside_its_own_mask() -> None:
    first = TaskVector(torch.tensor([1.0, 2.0]), 0.5, torch.tensor([True, False]))
    second = TaskVector(torch.tensor([float("nan"), 4.0]), 0.5, torch.tensor([False, True]))
    assert task_arithmetic([first, second]).tolist() == [0.5, 2.0]


def test_sums_in_the_order_of_the_sources() -> None:
    large, opposite, small = (TaskVector(torch.tensor([value])) for value in (1e8, -1e8, 1.0))
    assert task_arithmetic([large, opposite, small]).item() == 1
    assert task_arithmetic([small, large, opposite]).item() == 0


def test_products_are_rounded_before_they_are_added() -> None:
    target, sources = siblings(2, torch.float32, (4096,))
    first, second = (source - target for source in sources)
    change = task_arithmetic([TaskVector(first, 0.3), TaskVector(second, 0.7)])
    factors = [float(torch.tensor(scale)) for scale in (0.3, 0.7)]
    rounded = [(delta.double() * factor).float() for delta, factor in zip((first, second), factors, strict=True)]
    fused = (rounded[0].double() + second.double() * factors[1]).float()
    assert torch.equal(change, (rounded[0].double() + rounded[1].double()).float())
    assert not torch.equal(change, fused)


def test_bfloat16_is_rounded_once() -> None:
    target, sources = siblings(2, torch.bfloat16, (4096,))
    everywhere = torch.ones(1, dtype=torch.bool)
    result = merged(target, sources, [0.3, 0.7], [everywhere] * 2)
    exact = target.double() + sum(
        factor * (source.double() - target.double()) for source, factor in zip(sources, (0.3, 0.7), strict=True)
    )
    half_a_step = exact.abs() * 2**-8 + 1e-6
    assert ((result.double() - exact).abs() <= half_a_step).all()
    step_by_step = target + 0.3 * (sources[0] - target) + 0.7 * (sources[1] - target)
    assert not torch.equal(result, step_by_step)


def test_rows_alone_give_the_same_as_the_whole() -> None:
    assert TaskArithmetic.elementwise
    deltas = torch.randn(2, 9, 5)
    masks = torch.rand(2, 9, 1) < 0.5
    rows = torch.tensor([1, 4, 8])
    whole = task_arithmetic([TaskVector(d, 0.3, m) for d, m in zip(deltas, masks, strict=True)])
    part = task_arithmetic([TaskVector(d[rows], 0.3, m[rows]) for d, m in zip(deltas, masks, strict=True)])
    assert torch.equal(whole[rows], part)
