"""Whether a completed function passes its tests, graded as in `act_lightning test`."""

import os
from typing import Any

from act_lightning.data.tasks import make_program
from act_lightning.evaluation.grading import grade_code


def passed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compute the metric of one row from its output."""
    program = make_program(doc["prompt"].strip() + "\n", doc["canonical_solution"], doc, doc.get("task_id") or "a row")
    sandbox = os.environ.get("ACT_LIGHTNING_SANDBOX", "namespaces")  # or: process
    grade = grade_code(results[0], program.prompt, program.test, program.entry_point, sandbox)
    return {"exact_match": float(grade.correct)}
