"""What a model answers, whether it is right, and how sure a share of right answers is."""

from act_lightning.evaluation.answerers import TRANSFORMERS, VLLM, TransformersAnswerer, VLLMAnswerer, generator_faults
from act_lightning.evaluation.extraction import first_match, last_choice, last_number
from act_lightning.evaluation.generation import Answerer, Generated, end_of_turn_ids, generate_answers
from act_lightning.evaluation.intervals import McNemar, bootstrap, mcnemar, mean_of_shares, paired_difference, wilson
from act_lightning.evaluation.judging import Verdict, judge_choice, judge_code, judge_exact, judge_number
from act_lightning.evaluation.language import can_identify, language_of
from act_lightning.evaluation.metrics import ExactMatch, Mean, Share
from act_lightning.evaluation.records import Record, as_lines, read_records
from act_lightning.evaluation.results import SetResult, as_csv, as_json, as_markdown, as_table, read_results, role_means
from act_lightning.evaluation.sameness import exact_match, loose_match
from act_lightning.evaluation.sandbox import passes, without_network
from act_lightning.evaluation.tables import Row, models_csv, models_table, row_of
from act_lightning.evaluation.teacher_forced import greedy_matches

__all__ = [
    "TRANSFORMERS",
    "VLLM",
    "Answerer",
    "ExactMatch",
    "Generated",
    "McNemar",
    "Mean",
    "Record",
    "Row",
    "SetResult",
    "Share",
    "TransformersAnswerer",
    "VLLMAnswerer",
    "Verdict",
    "as_csv",
    "as_json",
    "as_lines",
    "as_markdown",
    "as_table",
    "bootstrap",
    "can_identify",
    "end_of_turn_ids",
    "exact_match",
    "first_match",
    "generate_answers",
    "generator_faults",
    "greedy_matches",
    "judge_choice",
    "judge_code",
    "judge_exact",
    "judge_number",
    "language_of",
    "last_choice",
    "last_number",
    "loose_match",
    "mcnemar",
    "mean_of_shares",
    "models_csv",
    "models_table",
    "paired_difference",
    "passes",
    "read_records",
    "read_results",
    "role_means",
    "row_of",
    "wilson",
    "without_network",
]
