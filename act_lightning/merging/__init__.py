"""Merging methods: pure functions on the tensors of one parameter, one method a file."""

from act_lightning.merging.arithmetic import TaskArithmetic, task_arithmetic
from act_lightning.merging.method import MergingMethod, TaskVector, TensorPlace, apply_change
from act_lightning.merging.registry import METHODS, merging_method

__all__ = [
    "METHODS",
    "MergingMethod",
    "TaskArithmetic",
    "TaskVector",
    "TensorPlace",
    "apply_change",
    "merging_method",
    "task_arithmetic",
]
