"""A few rows with the columns of each hub data set that a config names, and what puts them in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.front_door import Config
from tests.tiny import write_jsonl

SUBJECTS = ("physics", "chemistry", "biology", "math")
ROWS: dict[str, list[dict[str, Any]]] = {
    "meta-math/MetaMathQA": [
        {
            "type": "GSM",
            "query": f"Anna buys {i} pens for $2 each. Total?",
            "response": f"It is {2 * i}.\nThe answer is: {2 * i}",
        }
        for i in range(24)
    ],
    "MegaScience/MegaScience": [
        {"question": f"Why does {i} hold?", "answer": f"Since $a^{i}$ does.", "subject": SUBJECTS[i % 4]}
        | {"reference_answer": "a", "source": "textbook_reasoning"}
        for i in range(16)
    ],
    "nvidia/OpenCodeInstruct": [
        {"id": str(i), "input": f"Write f{i}.", "output": f"def f{i}(): ..."} for i in range(4)
    ],
    "LLaMAX/BenchMAX_Math": [
        {"question": f"What is 1000 + {i}?", "answer": None, "answer_number": 1000 + i, "equation_solution": None}
        for i in range(2)
    ],
    "LLaMAX/BenchMAX_Science": [
        {"Question": f"Which is {i}?", "Correct Answer": f"{i}"}
        | {f"Incorrect Answer {n}": f"{i + n}" for n in (1, 2, 3)}
        for i in range(2)
    ],
    "LLaMAX/BenchMAX_Function_Completion": [
        {"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n", "canonical_solution": f"    return {i}\n"}
        | {"entry_point": f"f{i}", "test": f"def check(candidate):\n    assert candidate() == {i}\n"}
        for i in range(2)
    ],
}
"""Rows by the id of their set."""


def in_place(sets: Config, folder: Path) -> Config:
    """What puts local rows in the place of those of the hub, and asks for fewer; files that were named stay."""
    return {name: local(one, folder) for name, one in sets.items() if one["path"] in ROWS}


def local(settings: Config, folder: Path) -> Config:
    """The same for one set of the hub."""
    file = write_jsonl(folder / f"{settings['path'].split('/')[1]}.jsonl", ROWS[settings["path"]])
    found: Config = {"path": str(file), "name": None, "split": None, "streaming": False}
    if "per_group" in settings:
        found["per_group"] = {**settings["per_group"], "limit": 1}
    if settings.get("limit"):
        found["limit"] = 2
    if "role" in settings:
        found["max_new_tokens"] = 2
    return found
