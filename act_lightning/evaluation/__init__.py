"""What a model answers, whether it is right, and how sure a share of right answers is."""

from act_lightning.evaluation.exact import ExactMatch, exact_match
from act_lightning.evaluation.generation import end_of_turn_ids, generate_answers
from act_lightning.evaluation.intervals import wilson
from act_lightning.evaluation.tables import Row, as_csv, as_table
from act_lightning.evaluation.teacher_forced import greedy_matches

__all__ = [
    "ExactMatch",
    "Row",
    "as_csv",
    "as_table",
    "end_of_turn_ids",
    "exact_match",
    "generate_answers",
    "greedy_matches",
    "wilson",
]
