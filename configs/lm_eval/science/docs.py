"""Options of BenchMAX's science questions, in the order in which `act_lightning test` shows them."""

from typing import Any

import datasets

from act_lightning.data.tasks import clean_option, shuffle_options

_INCORRECT = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def with_choices(dataset: datasets.Dataset) -> datasets.Dataset:
    """Add ``choice1`` to ``choice4``, the list ``choices`` and ``answer``, a letter such as ``(B)``."""
    return dataset.map(_with_choices, with_indices=True, load_from_cache_file=False)


def _with_choices(row: dict[str, Any], number: int) -> dict[str, Any]:
    incorrect = [row[column] for column in _INCORRECT]
    location = f"row {number + 1}"
    options, answer = shuffle_options(row["Question"], row["Correct Answer"], incorrect, location, clean_option)
    named = {f"choice{index}": option for index, option in enumerate(options, start=1)}
    return named | {"choices": list(options), "answer": answer}
