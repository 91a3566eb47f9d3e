"""The evaluation sets of a run, asked of one model by one process."""

from __future__ import annotations

from transformers import PreTrainedModel

from act_lightning.answering import Generation, TeacherForced
from act_lightning.data import AbilityDataModule, token_budget_batches


class Questions:
    """All items of all sets, in the batches that ``test`` would make on one process.

    An answer that is one exact string is decided by a teacher-forced pass; any other is generated greedily and judged.

    Args:
        data: The data module, set up for testing.

    Attributes:
        items: How many items there are.
    """

    def __init__(self, data: AbilityDataModule) -> None:
        self._sets = {
            name: TeacherForced(data, name) if one.kind == "exact" else Generation(data, name)
            for name, one in data.evaluations.items()
        }
        budget = data.evaluation_tokens
        self._batches = {name: token_budget_batches(one.lengths, budget) for name, one in self._sets.items()}
        self.items = sum(len(one.lengths) for one in self._sets.values())

    def ask(self, model: PreTrainedModel) -> dict[str, str]:
        """A digit for each item in its order, 1 where the model answers rightly, by set."""
        return {name: self._ask(model, name) for name in self._sets}

    def _ask(self, model: PreTrainedModel, name: str) -> str:
        digits = ["0"] * len(self._sets[name].lengths)
        for rows in self._batches[name]:
            for row, right in zip(rows, self._sets[name].right(model, rows), strict=True):
                digits[row] = "01"[right]
        return "".join(digits)
