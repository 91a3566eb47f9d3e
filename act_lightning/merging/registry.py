"""Merging methods by name."""

from __future__ import annotations

from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.merging.arithmetic import TaskArithmetic
from act_lightning.merging.breadcrumbs import Breadcrumbs
from act_lightning.merging.dare import DARE
from act_lightning.merging.dare_ties import DARETIES
from act_lightning.merging.della import DELLA
from act_lightning.merging.fisher import Fisher
from act_lightning.merging.method import MergingMethod
from act_lightning.merging.ties import TIES

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
    """The method of that name, with its default settings, or the method itself.

    Raises:
        ActError: If no method has that name, or a setting of the method is not as it must be.

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
