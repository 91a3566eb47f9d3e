"""Merging methods: pure functions on the tensors of one parameter, one method a file."""

from act_lightning.merging.arithmetic import TaskArithmetic, task_arithmetic
from act_lightning.merging.method import (
    Merge,
    MergingMethod,
    Part,
    Parts,
    SurveyingMethod,
    TaskVector,
    TensorPlace,
    apply_change,
    ready,
    works_by_rows,
)
from act_lightning.merging.registry import METHODS, merging_method

__all__ = [
    "METHODS",
    "Merge",
    "MergingMethod",
    "Part",
    "Parts",
    "SurveyingMethod",
    "TaskArithmetic",
    "TaskVector",
    "TensorPlace",
    "apply_change",
    "merging_method",
    "ready",
    "task_arithmetic",
    "works_by_rows",
]
