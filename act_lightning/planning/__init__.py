"""Looking ahead: what is wrong with a run's settings, and what it will do, before any weight is read."""

from act_lightning.planning.checks import deepspeed_faults, run_faults
from act_lightning.planning.plan import Plan, make_plan
from act_lightning.planning.problem import Problem
from act_lightning.planning.run import Run
from act_lightning.planning.show import print_plan

__all__ = ["Plan", "Problem", "Run", "deepspeed_faults", "make_plan", "print_plan", "run_faults"]
