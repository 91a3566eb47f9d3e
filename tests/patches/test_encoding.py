"""Covers hold every change, store each element once, and meet where elements say so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act_lightning.patches.encoding import (
    ChangedRegion,
    Words,
    byte_planes,
    changed_region,
    from_byte_planes,
    pack,
    unpack,
)

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@st.composite
def matrices(draw: st.DrawFn) -> Words:
    height, width = draw(SHAPES)
    values = draw(st.lists(st.sampled_from([0, 0, 0, 1, 700]), min_size=height * width, max_size=height * width))
    return np.array(values, "<u2").reshape(height, width)


@st.composite
def region_pairs(draw: st.DrawFn) -> tuple[ChangedRegion, ChangedRegion]:
    height, width = draw(SHAPES)

    def one(count: int) -> np.ndarray:
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)

    return ChangedRegion(one(height), one(width)), ChangedRegion(one(height), one(width))


def expanded(region: ChangedRegion) -> np.ndarray:
    return region.rows[:, None] | region.columns[None, :]


@settings(deadline=None)
@given(matrices())
def test_changes_survive_the_cover(changes: Words) -> None:
    region = changed_region(changes)
    assert not changes[~expanded(region)].any()
    assert len(region.take(changes)) == region.size() == expanded(region).sum()
    again = np.zeros_like(changes)
    region.xor_(again, region.take(changes))
    np.testing.assert_array_equal(again, changes)
    region.clear_(again)
    assert not again.any()


@settings(deadline=None)
@given(region_pairs())
def test_where_covers_meet(pair: tuple[ChangedRegion, ChangedRegion]) -> None:
    one, other = pair
    assert one.overlap(other) == other.overlap(one) == (expanded(one) & expanded(other)).sum()


def test_the_smallest_cover_is_taken() -> None:
    changes = np.zeros((20, 10), "<u2")
    changes[3] = changes[:, 4] = 1
    assert changed_region(changes).size() == 10 + 19, "a row and a column, and not all of either kind"
    assert changed_region(changes[:3]).size() == 3, "the column"


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["<u1", "<u2", "<u4", "<u8"]))
def test_planes_and_packing_are_undone(data: bytes, kind: str) -> None:
    word = np.dtype(kind)
    values = np.frombuffer(data[: len(data) // word.itemsize * word.itemsize], word)
    np.testing.assert_array_equal(from_byte_planes(byte_planes(values), word), values)
    codec, packed = pack(data)
    assert unpack(codec, packed, len(data)) == data
    for wrong in (len(data) + 1, len(data) - 1):
        if wrong >= 0:
            with pytest.raises(ValueError, match="due"):
                unpack(codec, packed, wrong)


def test_damaged_parts_are_refused() -> None:
    codec, packed = pack(bytes(500))
    with pytest.raises(ValueError, match="damaged"):
        unpack(codec, b"x" + packed, 500)
    with pytest.raises(ValueError, match="not known"):
        unpack("pickle", packed, 500)
