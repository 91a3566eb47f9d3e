"""Merging methods: pure functions on the tensors of one parameter, one method a file."""

from act_lightning.merging.arithmetic import TaskArithmetic, task_arithmetic
from act_lightning.merging.breadcrumbs import Breadcrumbs, breadcrumbs
from act_lightning.merging.dare import DARE, dare
from act_lightning.merging.dare_ties import DARETIES, dare_ties
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
from act_lightning.merging.registry import METHODS, merging_method
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
