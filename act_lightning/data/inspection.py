"""A sample as a person can check it: what is prompt, what is answer, and which tokens are special."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import iter_conversations
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.labels import Sample
from act_lightning.data.leakage import RUN, Overlap, PromptHashes, hash_prompts, overlaps
from act_lightning.defaults import IGNORED

_LONGEST = 800  # characters of one piece that are shown
_STYLES = {
    (False, False): "dim",
    (False, True): "cyan",
    (True, False): "bold green",
    (True, True): "bold magenta",
}

_PICTURES = 0x2400  # where Unicode has a picture of each control
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # what turns the direction of writing, and back
_VISIBLE = {code: chr(_PICTURES + code) for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: "␡"} | {code: f"<U+{code:04X}>" for code in (*range(0x80, 0xA0), *_TURNING)}


class Piece(NamedTuple):
    """Tokens of one kind that follow each other.

    Attributes:
        text: What they stand for.
        answer: Whether they are answer tokens; others are ignored by scores and loss.
        special: Whether they are special tokens.
    """

    text: str
    answer: bool
    special: bool


def split_pieces(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The tokens of a sample as text, in runs of one kind.

    Args:
        sample: Ids and labels.
        tokenizer: The tokenizer that made the ids.
    """
    added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
    special_ids = {*tokenizer.all_special_ids, *added}
    ids = sample.input_ids.tolist()
    kinds = [(label != IGNORED, token in special_ids) for token, label in zip(ids, sample.labels.tolist(), strict=True)]
    found, done, text = [], 0, ""
    # Special tokens stand one by one, whatever is next to them.
    for (answer, special, _), run in groupby((*kind, place if kind[1] else -1) for place, kind in enumerate(kinds)):
        done += len(list(run))
        # What is decoded alone would lose the blank it begins with, in tokenizers of SentencePiece.
        longer = str(tokenizer.decode(ids[:done], clean_up_tokenization_spaces=False))
        found.append(Piece(longer[len(text) :], answer, special))
        text = longer
    return found


def evenly_spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Some samples, spread evenly from the first to the last.

    Args:
        samples: All of them.
        count: How many to take.

    >>> evenly_spaced("abcdefg", 3), evenly_spaced("ab", 3), evenly_spaced("ab", 1)
    (['a', 'd', 'g'], ['a', 'b'], ['a'])
    """
    count = min(count, len(samples))
    return [samples[place * (len(samples) - 1) // max(count - 1, 1)] for place in range(count)]


def legend() -> Text:
    """How the kinds of tokens are shown, with color and without."""
    answered = ("answer", _STYLES[True, False]), ("⟨special⟩", _STYLES[True, True])
    ignored = ("prompt", _STYLES[False, False]), " ", ("⟨special⟩", _STYLES[False, True])
    return Text.assemble("ignored: ", *ignored, "   counted: ⟦", *answered, "⟧")


def highlight(shown: Sequence[Piece]) -> Text:
    """Pieces in color; also without color, answers stand between ⟦ ⟧ and special tokens between ⟨ ⟩.

    Args:
        shown: The pieces of a sample.
    """
    text, inside = Text(), False
    for piece in shown:
        if piece.answer != inside:
            text.append("⟦" if piece.answer else "⟧")
            inside = piece.answer
        content = _shortened(escape_controls(piece.text))
        text.append(f"⟨{content}⟩" if piece.special else content, _STYLES[piece.answer, piece.special])
    return text.append("⟧") if inside else text


def escape_controls(text: str) -> str:
    r"""Text whose controls are seen and do nothing: a terminal obeys an escape, and one that turns the direction hides.

    >>> escape_controls("a\x1b[2J\r\n\tb\u202ec")
    'a␛[2J␍\n\tb<U+202E>c'
    """
    return text.translate(_VISIBLE)


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} …[{len(text) - 2 * half:,} characters]… {text[-half:]}"


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
    shown = [split_pieces(sample, data.tokenizer) for sample in evenly_spaced(samples, count)]
    return InspectedSet(name, kind, figures_of(samples, rows), shown)


def _hashed(section: str, sets: Mapping[str, AbilityData]) -> dict[str, PromptHashes]:
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
        console.print(overlap_warning(overlap), markup=False, soft_wrap=True)
    if not inspection.overlaps:
        console.print("no two sets share more than 1 % of their prompts")


def overlap_warning(overlap: Overlap) -> str:
    """What two sets share, as a sentence.

    >>> overlap_warning(Overlap("math", "gsm", 3, 2, 0.5, 2)).partition("; ")[0]
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
        console.print(highlight(sample), soft_wrap=True)


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
