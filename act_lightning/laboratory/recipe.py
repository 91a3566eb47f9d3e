"""How large the laboratory's models are and how long each is trained."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field

#: Raised by hand when the questions, the tokenizer or the training loop change.
GENERATION = 2


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
        steps: Updates.
        batch_size: Samples in an update.
        learning_rate: AdamW's at its peak.
        arithmetic: Share of samples that are sums; the others are number words.
        whole_text: Learn questions too, as in pretraining, or answers only.
    """

    steps: int
    batch_size: int
    learning_rate: float
    arithmetic: float
    whole_text: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the models' weights.

    Attributes:
        seed: Of weights and of the order of samples.
        vocabulary: Entries of the tokenizer, 256 of them bytes.
        hidden_size: Features of the residual stream.
        layers: Decoder layers.
        heads: Attention heads, half as many for keys and values.
        initial_spread: Standard deviation of random weights: 0.02, usual for wide models, learns late at this width.
        base: Pretraining.
        generalist: From the base: all abilities.
        specialist: From the generalist: arithmetic only, so the words are forgotten rather than never learned.
    """

    seed: int = 0
    vocabulary: int = 512
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    initial_spread: float = 0.06
    base: Stage = field(default_factory=lambda: Stage(1200, 32, 3e-3, 0.5, whole_text=True))
    generalist: Stage = field(default_factory=lambda: Stage(240, 32, 1.5e-3, 0.25))
    specialist: Stage = field(default_factory=lambda: Stage(300, 32, 8e-4, 1.0))

    @property
    def version(self) -> str:
        """A name that changes with any of the settings, for the cache.

        >>> Recipe(seed=1).version == Recipe(seed=2).version
        False
        """
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()
        return f"v{GENERATION}-{digest[:10]}"
