"""What a scorer is: what every channel of a pair is measured by, before channels are ranked."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ConfigIssue


class Scorer(ABC):  # noqa: B024 - each kind has a method of its own
    """What channels are ranked by; subclasses are dataclasses of the scorer's own settings.

    Subclass one of its kinds: :class:`ActivationScorer`, :class:`WeightScorer` or ``Attribution``.

    Attributes:
        name: Its name in files and reports; by default the name of its class.
        saved_as: The name of the scorer whose saved scores it ranks by; by default its own.
        needs_samples: Whether the samples of an ability are read.
        keep: Abilities that are not to be lost, whose samples are read as well.
    """

    name: ClassVar[str] = ""
    saved_as: ClassVar[str] = ""
    needs_samples: ClassVar[bool] = True
    keep: Sequence[str] = ()

    @property
    def label(self) -> str:
        """Its name in files and reports."""
        return self.name or type(self).__name__

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the scorer's own settings; checked before any work."""
        return []

    def record(self) -> dict[str, Any]:
        """The scorer in the record of saved scores: its name and the settings that they depend on, as JSON values."""
        if self.saved_as:
            return {"name": self.saved_as}
        settings: dict[str, Any] = json.loads(json.dumps(vars(self), default=str, sort_keys=True))
        cls = type(self)
        if not cls.__module__.startswith("act_lightning."):
            return {"name": self.label, "class": f"{cls.__module__}.{cls.__qualname__}"} | settings
        return {"name": self.label} | settings

    def ranked(self, scores: Tensor, inventory: ChannelInventory) -> Tensor:
        """The values to rank by, given saved scores, both float32 ``[channels]``; by default these scores."""
        return scores


@dataclass(frozen=True)
class Observation:
    """The outputs of one module at answer tokens, while target and source read the same token ids.

    Attributes:
        module: Full name of the module.
        target: The target's output ``[tokens, ..., channels]``; with more than one vector a token (a norm inside each
            attention head) in the middle dimensions.
        source: The source's output, of the same shape, its channels in the target's order and the target's own values
            where the source lacks a channel; ``None`` unless the scorer needs it.
        source_weight_output: The output of the target's module on the target's own inputs with the source's weights, of
            the same shape and order; ``None`` unless the scorer needs it.
    """

    module: str
    target: Tensor
    source: Tensor | None = None
    source_weight_output: Tensor | None = None


class ActivationScorer(Scorer):
    """A scorer of module outputs at answer tokens: a mean over all tokens of all samples.

    Attributes:
        terms: How many means of each channel a score is made of.
        needs_source: Whether the source reads the samples, too.
        needs_source_weights: Whether the target's modules run once more, with the source's weights.
        experts: By how many tokens the sums of an expert's channels are divided: ``all`` answer tokens, or those
            ``routed`` to it in either model.
    """

    terms: ClassVar[int] = 1
    needs_source: ClassVar[bool] = True
    needs_source_weights: ClassVar[bool] = False
    experts: str = "all"

    def issues(self) -> list[ConfigIssue]:
        """A number of tokens that is not known."""
        if self.experts in ("all", "routed"):
            return []
        problem = "must be one of all, routed"
        return [ConfigIssue("transfer.selection.experts", self.experts, problem, "Choose one of these.")]

    def record(self) -> dict[str, Any]:
        """As of every scorer, without ``experts`` if all tokens count, as in files from before there was a choice."""
        settings = {key: value for key, value in super().record().items() if key != "experts"}
        return settings if self.experts == "all" else settings | {"experts": self.experts}

    @abstractmethod
    def values(self, observation: Observation) -> Tensor:
        """The values that are averaged over tokens.

        Args:
            observation: One module in both models.

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


class WeightScorer(Scorer):
    """A scorer of weights alone, read from disk some rows at a time: one sum over all that a channel owns."""

    needs_samples: ClassVar[bool] = False

    @abstractmethod
    def values(self, change: Tensor) -> Tensor:
        """The values that are summed over the parameters of a channel.

        Args:
            change: θ_abl − θ_trg of some rows of one parameter, float32, any shape.

        Returns:
            One value for each element, of the shape of ``change``.
        """

    def finish(self, sums: Tensor, sizes: Tensor) -> Tensor:
        """Scores from the sums.

        Args:
            sums: float64 ``[channels]``.
            sizes: Number of parameters that each channel owns, int64 ``[channels]``.

        Returns:
            ``[channels]``; by default the sums.
        """
        return sums


def recorded_scorer(record: Mapping[str, Any]) -> str:
    """A record's scorer as text for people.

    >>> recorded_scorer({"name": "activation"}), recorded_scorer({"name": "mine", "power": 2})
    ('activation', 'mine (power: 2)')
    """
    settings = ", ".join(f"{key}: {value}" for key, value in record.items() if key != "name")
    return f"{record.get('name')} ({settings})" if settings else str(record.get("name"))
