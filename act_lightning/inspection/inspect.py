"""What a person should see of the data before trusting scores, loss or evaluation made from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from act_lightning.data import AbilityData, AbilityDataModule, Sample, iter_conversations
from act_lightning.inspection.figures import Figures, figures_of
from act_lightning.inspection.leakage import Overlap, Prompts, hash_prompts, overlaps
from act_lightning.inspection.samples import Piece, chosen, pieces

TOLERATED = 0.01
"""Share of prompts that two sets may have in common without a warning."""


@dataclass(frozen=True)
class InspectedSet:
    """One ability or evaluation set.

    Attributes:
        name: Name of the set.
        kind: ``ability``, ``held out`` for what validation takes from one, or ``evaluation``.
        figures: Rows and tokens.
        samples: Some samples as pieces of text.
    """

    name: str
    kind: str
    figures: Figures
    samples: list[list[Piece]]


@dataclass(frozen=True)
class Inspection:
    """All sets of a data section.

    Attributes:
        sets: Abilities, what is held out of them, and evaluation sets.
        overlaps: Pairs that share more than 1 % of their prompts.
    """

    sets: list[InspectedSet]
    overlaps: list[Overlap]

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers; the pieces of samples as ``text``, ``answer``, ``special``."""
        found = asdict(self)
        for one, plain in zip(self.sets, found["sets"], strict=True):
            plain["samples"] = [[piece._asdict() for piece in sample] for sample in one.samples]
        return found


def inspect(data: AbilityDataModule, samples: int = 3) -> Inspection:
    """Read, tokenize and label every set as a run would, and look for prompts that two sets share.

    Prompts are compared as hashes, one row at a time.

    Args:
        data: Section ``data``.
        samples: How many samples of each set to show, spread over it.

    Raises:
        ActError: With all faults of the settings, or else with those of all data sets.
    """
    if data.abilities or not data.evaluations:
        data.prepare_data()
        data.setup("fit")
        found = _abilities(data, samples)
    else:
        data.setup("test")
        found = []
    for name, references in data.references.items():
        found.append(_inspected(data, name, "evaluation", references, len(references), samples))
    abilities, evaluations = _hashed("data.abilities", data.abilities), _hashed("data.evaluations", data.evaluations)
    return Inspection(found, overlaps(abilities, evaluations, TOLERATED))


def _abilities(data: AbilityDataModule, samples: int) -> list[InspectedSet]:
    found = [
        _inspected(data, name, "ability", ability.samples, ability.rows, samples)
        for name, ability in data.tokenized.items()
    ]
    if isinstance(data.validation, list):  # they are abilities as they stand
        return found
    return found + [
        _inspected(data, name, "held out", held.samples, held.rows, samples) for name, held in data.held_out.items()
    ]


def _inspected(
    data: AbilityDataModule, name: str, kind: str, samples: Sequence[Sample], rows: int, count: int
) -> InspectedSet:
    shown = [pieces(sample, data.tokenizer) for sample in chosen(samples, count)]
    return InspectedSet(name, kind, figures_of(samples, rows), shown)


def _hashed(section: str, sets: Mapping[str, AbilityData]) -> dict[str, Prompts]:
    return {name: hash_prompts(_prompts(one, f"{section}.{name}")) for name, one in sets.items()}


def _prompts(settings: AbilityData, where: str) -> Iterator[str]:
    """What the user says in each conversation."""
    for _, messages in iter_conversations(settings, where):
        yield "\n".join(message["content"] for message in messages if message["role"] == "user")
