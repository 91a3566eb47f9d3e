"""Methods by name."""

from __future__ import annotations

import pytest

from act_lightning.errors import ActError
from act_lightning.merging import METHODS, MergingMethod, TaskArithmetic, merging_method


@pytest.mark.parametrize("name", METHODS)
def test_every_name_gives_a_method(name: str) -> None:
    method = merging_method(name)
    assert isinstance(method, MergingMethod)
    assert type(method) is METHODS[name]


def test_a_method_passes_through() -> None:
    method = TaskArithmetic()
    assert merging_method(method) is method


def test_unknown_name() -> None:
    with pytest.raises(ActError, match=r"transfer\.method = 'arithmetic': must name a merging method: task_arithmetic"):
        merging_method("arithmetic")
