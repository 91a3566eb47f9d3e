"""What a scorer is: what every channel of a pair is measured by, before channels are ranked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from act_lightning.errors import Fault


class Scorer(ABC):  # noqa: B024 - each kind has a method of its own
    """What channels are ranked by; subclasses are dataclasses of the scorer's own settings."""

    def faults(self) -> list[Fault]:
        """What is wrong with the scorer's own settings; looked for before any work."""
        return []


@dataclass(frozen=True)
class Observation:
    """What is seen of one module at answer tokens, while target and source read the same token ids.

    Attributes:
        module: Full name of the module.
        target: The target's output ``[tokens, ..., channels]``; with more than one vector a token (a norm inside each
            attention head) in the middle dimensions.
        source: The source's output, of the same shape, its channels in the target's order and the target's own values
            where the source lacks a channel; ``None`` for a scorer that does not ask for it.
        swapped: What the target's module would give on the target's own inputs with the source's weights, of the same
            shape and order; ``None`` for a scorer that does not ask for it.
    """

    module: str
    target: Tensor
    source: Tensor | None = None
    swapped: Tensor | None = None


class ActivationScorer(Scorer):
    """A scorer that sees what modules give at answer tokens: a mean over all tokens of all samples.

    Attributes:
        terms: How many means of each channel a score is made of.
        needs_source: Whether the source has to read the samples, too.
        needs_swapped: Whether the target's modules are to be run once more, with the source's weights.
    """

    terms: int = 1
    needs_source: bool = True
    needs_swapped: bool = False

    @abstractmethod
    def values(self, seen: Observation) -> Tensor:
        """What is averaged over tokens.

        Args:
            seen: One module in both models.

        Returns:
            ``[tokens, ..., channels]``, any floating dtype; with several ``terms`` ``[terms, tokens, ..., channels]``.
        """

    def finish(self, means: Tensor) -> Tensor:
        """Scores from the means over tokens.

        Args:
            means: float64 ``[terms, channels]`` of one module.

        Returns:
            ``[channels]``; by default the first term.
        """
        return means[0]
