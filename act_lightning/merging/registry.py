"""Merging methods by name."""

from __future__ import annotations

from act_lightning.errors import ActError, Fault
from act_lightning.merging.arithmetic import TaskArithmetic
from act_lightning.merging.method import MergingMethod

METHODS: dict[str, type[MergingMethod]] = {"task_arithmetic": TaskArithmetic}


def merging_method(method: str | MergingMethod) -> MergingMethod:
    """The method of that name, with its default settings, or the method itself.

    Raises:
        ActError: If no method has that name.

    >>> merging_method("task_arithmetic")
    TaskArithmetic()
    """
    if isinstance(method, MergingMethod):
        return method
    if method not in METHODS:
        known = ", ".join(METHODS)
        remedy = "Choose one of them, or give {class_path, init_args} of a MergingMethod of your own."
        raise ActError(Fault("transfer.method", method, f"must name a merging method: {known}", remedy))
    return METHODS[method]()
