"""Merging methods: pure functions on the tensors of one parameter, one method a file."""

from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.merging.arithmetic import TaskArithmetic, task_arithmetic
from act_lightning.merging.breadcrumbs import Breadcrumbs, breadcrumbs
from act_lightning.merging.dare import DARE, DARETIES, dare, dare_ties
from act_lightning.merging.della import DELLA, della
from act_lightning.merging.fisher import Fisher, fisher
from act_lightning.merging.method import (
    Merge,
    MergingMethod,
    Part,
    Parts,
    TaskVector,
    TensorSlice,
    TwoPassMethod,
    apply_change,
    bind,
    works_by_rows,
)
from act_lightning.merging.ties import TIES, ties

__all__ = [
    "DARE",
    "DARETIES",
    "DELLA",
    "METHODS",
    "TIES",
    "Breadcrumbs",
    "Fisher",
    "Merge",
    "MergingMethod",
    "Part",
    "Parts",
    "TaskArithmetic",
    "TaskVector",
    "TensorSlice",
    "TwoPassMethod",
    "apply_change",
    "bind",
    "breadcrumbs",
    "dare",
    "dare_ties",
    "della",
    "fisher",
    "merging_method",
    "task_arithmetic",
    "ties",
    "works_by_rows",
]

METHODS: dict[str, type[MergingMethod]] = {
    "task_arithmetic": TaskArithmetic,
    "ties": TIES,
    "dare": DARE,
    "dare_ties": DARETIES,
    "breadcrumbs": Breadcrumbs,
    "della": DELLA,
    "fisher": Fisher,
}


def merging_method(method: str | MergingMethod) -> MergingMethod:
    """The method of that name with its default settings, or the given method itself.

    Raises:
        ActError: If no method has that name, or a setting of the method is invalid.

    >>> merging_method("task_arithmetic")
    TaskArithmetic()
    """
    if isinstance(method, MergingMethod):
        raise_if_any(method.issues())
        return method
    if method not in METHODS:
        known = ", ".join(METHODS)
        hint = "Choose one of them, or give {class_path, init_args} of a MergingMethod of your own."
        raise ActError(ConfigIssue("transfer.method", method, f"must name a merging method: {known}", hint))
    return METHODS[method]()
