"""Random draws: fixed by where they stand, and otherwise without pattern."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from act_lightning.merging import TensorSlice, sparsify
from act_lightning.merging.sparsify import bernoulli, uniform

CPU = torch.device("cpu")
NAME = "model.layers.3.mlp.down_proj.weight"


def draw(shape: tuple[int, ...], name: str = NAME, seed: int = 42, source: str = "s") -> Tensor:
    return uniform(torch.Size(shape), TensorSlice(name, seed), source, CPU)


def correlation(first: Tensor, second: Tensor) -> float:
    """Times the root of the number of pairs: of order 1 where there is none."""
    centered = (first.double() - 0.5) * (second.double() - 0.5) * 12
    return float(centered.mean()) * math.sqrt(first.numel())


@pytest.mark.parametrize("shape", [(1 << 20,), (1024, 1024), (8, 1 << 17), (1 << 18, 4)])
def test_uniform_in_every_part(shape: tuple[int, ...]) -> None:
    """χ² over 256 cells, of the whole and of its first, middle and last 2¹⁶ elements: within 6 σ of its mean."""
    values = draw(shape).flatten()
    assert values.min() >= 0
    assert values.max() < 1
    for part in (values, values[: 1 << 16], values[500_000 : 500_000 + (1 << 16)], values[-(1 << 16) :]):
        for digits in (part, (part * 256).frac(), (part * 65536).frac()):
            expected = part.numel() / 256
            cells = torch.bincount((digits * 256).long(), minlength=256).double()
            assert abs(float(((cells - expected) ** 2 / expected).sum()) - 255) < 6 * math.sqrt(2 * 255)


def test_neighbors_rows_columns_tensors_sources_and_seeds_are_independent() -> None:
    shape = (1024, 1024)
    values = draw(shape)
    others = [draw(shape, name=f"{NAME}2"), draw(shape, source="t"), draw(shape, seed=43)]
    pairs = [(values, other) for other in others]
    for step in (1, 2, 3, 16, 512):
        pairs += [(values[step:], values[:-step]), (values[:, step:], values[:, :-step])]
    pairs += [(values, values.T), (values[1:, 1:], values[:-1, :-1])]
    assert max(abs(correlation(*pair)) for pair in pairs) < 5


def test_rectangles_hold_no_pattern() -> None:
    """Sums and parities over the corners of rectangles: what hashing rows and columns apart could betray."""
    bits = draw((512, 512)) < 0.5
    for high, wide in ((1, 1), (1, 64), (64, 1), (200, 200)):
        parity = bits[high:, wide:] ^ bits[:-high, wide:] ^ bits[high:, :-wide] ^ bits[:-high, :-wide]
        assert abs(float(parity.double().mean()) - 0.5) * 2 * math.sqrt(parity.numel()) < 5
    for side in (0, 1):
        sums = bits.double().sum(side)
        assert abs(float(((sums - 256) ** 2 / 128).sum()) - 512) < 5 * math.sqrt(2 * 512)


@pytest.mark.parametrize("density", [1e-6, 0.1, 0.5, 0.999])
def test_as_many_are_kept_as_the_density_says(density: float) -> None:
    kept = int((bernoulli(density, torch.Size((2048, 1024)), TensorSlice(NAME), "s", CPU) != 0).sum())
    number = 2048 * 1024
    assert abs(kept - density * number) < 6 * math.sqrt(number * density * (1 - density)) + 1


def test_ends_are_exact() -> None:
    shape = torch.Size((300, 1000))
    assert not bernoulli(0, shape, TensorSlice(NAME), "s", CPU).any()
    assert (bernoulli(1, shape, TensorSlice(NAME), "s", CPU) == -1).all()
    assert bernoulli(0.5, torch.Size((0, 5)), TensorSlice(NAME), "s", CPU).shape == (0, 5)


@given(
    rows=st.lists(st.integers(0, 199), min_size=1, unique=True), shape=st.sampled_from([(200,), (200, 7), (200, 3, 5)])
)
def test_any_rows_are_drawn_as_in_the_whole(rows: list[int], shape: tuple[int, ...]) -> None:
    numbers = torch.tensor(rows)
    part = TensorSlice(NAME, 7, numbers)
    assert torch.equal(bernoulli(0.4, torch.Size((len(rows), *shape[1:])), part, "s", CPU), whole(shape)[numbers])


def whole(shape: tuple[int, ...]) -> Tensor:
    return bernoulli(0.4, torch.Size(shape), TensorSlice(NAME, 7), "s", CPU)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole((200, 7))
    for block in (1, 30, 10**9):
        monkeypatch.setattr(sparsify, "_BLOCK", block)
        assert torch.equal(whole((200, 7)), expected)


def test_numbers_that_no_version_may_change() -> None:
    """Computed with Python's integers from the definition; a change of these changes every random merge."""
    draws = draw((2, 3), seed=0)
    assert (draws * 2**24).int().tolist() == [[reference_bits(row, column) for column in range(3)] for row in range(2)]


def reference_bits(row: int, column: int) -> int:
    digest = hashlib.sha256(b"0\0s\0" + NAME.encode()).digest()
    keys = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    return triple32(triple32(row + keys[0]) + triple32(column + keys[1])) >> 8


def triple32(x: int) -> int:
    x &= 0xFFFFFFFF
    x = (x ^ x >> 17) * 0xED5AD4BB & 0xFFFFFFFF
    x = (x ^ x >> 11) * 0xAC4C1B51 & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x31848BAB & 0xFFFFFFFF
    return x ^ x >> 14
