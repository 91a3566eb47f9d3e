"""What a person should see of the data before trusting scores, loss or evaluation made from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.labels import Sample
from act_lightning.data.leakage import RUN, Overlap, Prompts, hash_prompts, overlaps
from act_lightning.data.rows import iter_conversations
from act_lightning.data.sample_view import Piece, chosen, colored, legend, pieces
from act_lightning.defaults import IGNORED

_SHORTEST = 16


@dataclass(frozen=True)
class Figures:
    """One set in numbers.

    Attributes:
        rows: Rows that were read.
        samples: Rows that are used.
        dropped: Rows with an empty answer or without an answer token.
        cut: Samples that were cut at the longest length allowed.
        tokens: Tokens of all samples.
        answer_tokens: Those of them that scores, loss and evaluation count.
        longest: Tokens of the longest sample.
        lengths: Histogram: number of samples of at most 16, 32, 64, … tokens, and more than the bin before.
    """

    rows: int
    samples: int
    dropped: int
    cut: int
    tokens: int
    answer_tokens: int
    longest: int
    lengths: dict[int, int]


def figures_of(samples: Sequence[Sample], rows: int) -> Figures:
    """The figures of a set.

    Args:
        samples: Its samples.
        rows: Rows that were read for them.
    """
    lengths = [len(sample.input_ids) for sample in samples]
    return Figures(
        rows=rows,
        samples=len(samples),
        dropped=rows - len(samples),
        cut=sum(sample.cut for sample in samples),
        tokens=sum(lengths),
        answer_tokens=sum(int((sample.labels != IGNORED).sum()) for sample in samples),
        longest=max(lengths, default=0),
        lengths=histogram(lengths),
    )


def histogram(lengths: Sequence[int]) -> dict[int, int]:
    """How many lengths fall into bins that double in width; bins before the first and after the last are left out.

    >>> histogram([3, 16, 17, 100])
    {16: 2, 32: 1, 64: 0, 128: 1}
    """
    if not lengths:
        return {}
    counts = Counter(max(_SHORTEST, 1 << (length - 1).bit_length()) for length in lengths)
    edge, found = min(counts), dict[int, int]()
    while edge <= max(counts):
        found[edge] = counts[edge]
        edge *= 2
    return found


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
        ActError: With all issues of the settings, or else with those of all data sets.
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


_BARS = " ▁▂▃▄▅▆▇█"


def print_inspection(inspection: Inspection, as_json: bool, console: Console | None = None) -> None:
    """Print an inspection.

    Args:
        inspection: What to print.
        as_json: Whether to print one JSON object and nothing else.
        console: Where to print; by default standard output.
    """
    if as_json:
        print(json.dumps(inspection.to_json(), indent=2, ensure_ascii=False))
        return
    console = console or Console(highlight=False)
    console.print(legend())
    for one in inspection.sets:
        _print_samples(one, console)
    console.print()
    for table in (_figures(inspection.sets), _lengths(inspection.sets)):
        console.print(table)
        console.print()
    for overlap in inspection.overlaps:
        console.print("[yellow]warning:[/]", end=" ")
        console.print(warning(overlap), markup=False, soft_wrap=True)
    if not inspection.overlaps:
        console.print("no two sets share more than 1 % of their prompts")


def warning(overlap: Overlap) -> str:
    """What two sets share, as a sentence.

    >>> warning(Overlap("math", "gsm", 3, 2, 0.5, 2)).partition("; ")[0]
    'math and gsm share prompts, 50.0 % of one of them: 3 of math stand in gsm (2 as the same text), 2 of gsm in math'
    """
    first, second = overlap.first, overlap.second
    return (
        f"{first} and {second} share prompts, {overlap.share:.1%} of one of them: "
        f"{overlap.first_shared:,} of {first} stand in {second} ({overlap.same_text:,} as the same text), "
        f"{overlap.second_shared:,} of {second} in {first}; the others share {RUN} words in a row"
    ).replace("%", " %")


def _print_samples(one: InspectedSet, console: Console) -> None:
    for number, sample in enumerate(one.samples, start=1):
        console.print()
        console.rule(Text(f"{one.kind} {one.name}, sample {number} of {len(one.samples)}"), align="left")
        console.print(colored(sample), soft_wrap=True)


def _figures(sets: list[InspectedSet]) -> Table:
    table = Table("set", "", "rows", "dropped", "cut", "tokens", "answer tokens", "longest", box=None)
    for one in sets:
        figures = one.figures
        counts = (figures.rows, figures.dropped, figures.cut, figures.tokens, figures.answer_tokens, figures.longest)
        lost = figures.dropped or figures.cut
        table.add_row(Text(one.name), one.kind, *(f"{count:,}" for count in counts), style="yellow" if lost else None)
    return table


def _lengths(sets: list[InspectedSet]) -> Table:
    """Histograms: a row for each set, a column for each bin."""
    edges = sorted({edge for one in sets for edge in one.figures.lengths})
    table = Table("samples by tokens", "", *(f"≤ {edge:,}" for edge in edges), box=None)
    for one in sets:
        most = max(one.figures.lengths.values(), default=1)
        counts = [one.figures.lengths.get(edge, 0) for edge in edges]
        table.add_row(Text(one.name), one.kind, *(f"{_BARS[-(-8 * count // most)]} {count:,}" for count in counts))
    return table
