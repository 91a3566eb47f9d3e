"""Options of a question in an order that belongs to its row alone."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from act_lightning.errors import ActError, Fault

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Choices:
    """Options as they are shown.

    Attributes:
        options: Their texts, from (A) on.
        answer: The right one's letter, such as ``(B)``.
        repeated: Whether two look alike, though their rows differ: a set's own cleaning did that.
    """

    options: tuple[str, ...]
    answer: str
    repeated: bool = False

    def __str__(self) -> str:
        """A line for each.

        >>> print(Choices(("oxygen", "iron"), "(B)"))
        (A) oxygen
        (B) iron
        """
        return "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, self.options, strict=False))


def make_choices(
    question: str, correct: str, incorrect: Sequence[str], place: str, clean: Callable[[str], str] = str
) -> Choices:
    """Shuffle options by a seed made of the row's own text: neither process nor other rows change their order.

    Args:
        question: The question.
        correct: The right option.
        incorrect: The wrong ones, at least one.
        place: Where the row stands, for messages.
        clean: What is done to an option before it is shown.

    Raises:
        ActError: If two options are the same, or there are more than letters.

    >>> make_choices("2 + 2?", "4", ["3", "5"], "sums.jsonl:1")
    Choices(options=('4', '5', '3'), answer='(A)', repeated=False)
    """
    options = [*incorrect, correct]
    if len(set(map(str.strip, options))) < len(options) or not 1 < len(options) <= len(LETTERS):
        remedy = "Mend the row, or leave it out with filter."
        raise ActError(Fault(f"{place}, options", options, "must be 2 to 26 options, none of them twice", remedy))
    seed = hashlib.sha256("\0".join([question, *options]).encode()).digest()
    random.Random(int.from_bytes(seed)).shuffle(options)
    shown = tuple(clean(option) for option in options)
    # Where cleaning made two alike, the first counts, as BenchMAX has it.
    answer = f"({LETTERS[shown.index(clean(correct))]})"
    return Choices(shown, answer, repeated=len(set(shown)) < len(shown))
