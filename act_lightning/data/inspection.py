"""What a person should see of the data before trusting scores, loss or evaluation: figures, samples, overlaps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from act_lightning.console import Console, Table
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.cache import answer_tokens, cut_samples, lengths
from act_lightning.data.conversations import iter_conversations
from act_lightning.data.labels import Sample
from act_lightning.data.leakage import RUN, Overlap, PromptHashes, hash_prompts, overlaps
from act_lightning.data.section import DataSection
from act_lightning.defaults import IGNORED
from act_lightning.escaping import terminal_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_OVERLAP = 0.01
"""Share of prompts that two sets may have in common without a warning."""
_SHORTEST_BIN = 16  # tokens
_BARS = " ▁▂▃▄▅▆▇█"
_MAX_PIECE = 800  # characters of one piece that are shown
_STYLES = {(False, False): "dim", (False, True): "cyan", (True, False): "bold green", (True, True): "bold magenta"}
"""Style of a piece by whether it is an answer and whether it is special."""


class Piece(NamedTuple):
    """The text of consecutive tokens of one kind: answer tokens or ignored ones, special or not."""

    text: str
    answer: bool
    special: bool


@dataclass(frozen=True)
class Figures:
    """One set in numbers.

    Attributes:
        rows: Rows that were read.
        samples: Rows that are used.
        dropped: Rows with an empty answer or without an answer token.
        cut: Samples that were cut at the maximum length.
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


@dataclass(frozen=True)
class InspectedSet:
    """One ability or evaluation set.

    Attributes:
        name: Name of the set.
        kind: ``ability``, ``held out`` for the part of one that validation takes, or ``evaluation``.
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
        result = asdict(self)
        for inspected, entry in zip(self.sets, result["sets"], strict=True):
            entry["samples"] = [[piece._asdict() for piece in sample] for sample in inspected.samples]
        return result


def inspect(data: DataSection, samples: int = 3) -> Inspection:
    """Read, tokenize and label every set as a run would, and search for prompts that two sets share.

    Prompts are compared as hashes, one row at a time. ``samples`` samples of each set are shown, evenly spaced.

    Raises:
        ActError: With all issues of the settings, or else with those of all data sets.
    """
    sets: list[tuple[str, str, Sequence[Sample], int]] = []
    if data.abilities or not data.evaluations:
        data.read("fit")
        sets += [(name, "ability", part.samples, part.rows) for name, part in data.tokenized.items()]
        if not isinstance(data.validation, list):  # listed sets are abilities as they are
            sets += [(name, "held out", part.samples, part.rows) for name, part in data.held_out.items()]
    else:
        data.read("test")
    sets += [(name, "evaluation", items, len(items)) for name, items in data.references.items()]
    inspected = []
    for name, kind, members, rows in sets:
        pieces = [split_pieces(sample, data.tokenizer) for sample in evenly_spaced(members, samples)]
        counts = lengths(members)
        figures = Figures(
            rows=rows,
            samples=len(members),
            dropped=rows - len(members),
            cut=cut_samples(members),
            tokens=sum(counts),
            answer_tokens=answer_tokens(members),
            longest=max(counts, default=0),
            lengths=histogram(counts),
        )
        inspected.append(InspectedSet(name, kind, figures, pieces))
    abilities = _hash_sets("data.abilities", data.abilities)
    return Inspection(inspected, overlaps(abilities, _hash_sets("data.evaluations", data.evaluations), MAX_OVERLAP))


def _hash_sets(section: str, sets: Mapping[str, AbilityData]) -> dict[str, PromptHashes]:
    def prompts(settings: AbilityData, where: str) -> Iterator[str]:
        for _, messages in iter_conversations(settings, where):
            yield "\n".join(message["content"] for message in messages if message["role"] == "user")

    return {name: hash_prompts(prompts(settings, f"{section}.{name}")) for name, settings in sets.items()}


def histogram(lengths: Sequence[int]) -> dict[int, int]:
    """How many lengths fall into bins that double in width; bins before the first and after the last are left out.

    >>> histogram([3, 16, 17, 100])
    {16: 2, 32: 1, 64: 0, 128: 1}
    """
    if not lengths:
        return {}
    counts = Counter(max(_SHORTEST_BIN, 1 << (length - 1).bit_length()) for length in lengths)
    edge, bins = min(counts), dict[int, int]()
    while edge <= max(counts):
        bins[edge] = counts[edge]
        edge *= 2
    return bins


def evenly_spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Some samples, evenly spaced from the first to the last.

    >>> evenly_spaced("abcdefg", 3), evenly_spaced("ab", 3), evenly_spaced("ab", 1)
    (['a', 'd', 'g'], ['a', 'b'], ['a'])
    """
    count = min(count, len(samples))
    return [samples[index * (len(samples) - 1) // max(count - 1, 1)] for index in range(count)]


def split_pieces(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The tokens of a sample as text, in runs of one kind."""
    added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
    special_ids = {*tokenizer.all_special_ids, *added}
    ids = sample.input_ids.tolist()
    kinds = [(label != IGNORED, token in special_ids) for token, label in zip(ids, sample.labels.tolist(), strict=True)]
    result, end, text = [], 0, ""
    # Each special token is a piece of its own.
    for (answer, special, _), run in groupby((*kind, index if kind[1] else -1) for index, kind in enumerate(kinds)):
        end += len(list(run))
        # Decoded alone, a run would lose the space it begins with, in tokenizers of SentencePiece.
        longer = str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False))
        result.append(Piece(longer[len(text) :], answer, special))
        text = longer
    return result


def legend() -> Text:
    """How the kinds of tokens are shown, with color and without."""
    counted = ("answer", _STYLES[True, False]), ("⟨special⟩", _STYLES[True, True])
    ignored = ("prompt", _STYLES[False, False]), " ", ("⟨special⟩", _STYLES[False, True])
    return Text.assemble("ignored: ", *ignored, "   counted: ⟦", *counted, "⟧")


def highlight(pieces: Sequence[Piece]) -> Text:
    """Pieces in color; also without color, answers stand between ⟦ ⟧ and special tokens between ⟨ ⟩."""
    text, in_answer = Text(), False
    for piece in pieces:
        if piece.answer != in_answer:
            text.append("⟦" if piece.answer else "⟧")
            in_answer = piece.answer
        content = terminal_text(piece.text)
        if len(content) > _MAX_PIECE:
            half = _MAX_PIECE // 2
            content = f"{content[:half]} …[{len(content) - 2 * half:,} characters]… {content[-half:]}"
        text.append(f"⟨{content}⟩" if piece.special else content, _STYLES[piece.answer, piece.special])
    return text.append("⟧") if in_answer else text


def print_inspection(inspection: Inspection, as_json: bool, console: Console | None = None) -> None:
    """Print an inspection: labeled samples, then two tables, then overlaps; or all of it as JSON."""
    if as_json:
        print(terminal_text(json.dumps(inspection.to_json(), indent=2, ensure_ascii=False)))
        return
    console = console or Console()
    console.print(legend())
    for inspected in inspection.sets:
        for number, sample in enumerate(inspected.samples, start=1):
            title = f"{inspected.kind} {inspected.name}, sample {number} of {len(inspected.samples)}"
            console.print()
            console.rule(Text(title), align="left")
            console.print(highlight(sample), soft_wrap=True)
    console.print()
    for table in (_figures_table(inspection.sets), _lengths_table(inspection.sets)):
        console.print(table)
        console.print()
    for overlap in inspection.overlaps:
        console.print("warning:", style="yellow", end=" ")
        console.print(overlap_warning(overlap), soft_wrap=True)
    if not inspection.overlaps:
        console.print("no two sets share more than 1 % of their prompts")


def _figures_table(sets: list[InspectedSet]) -> Table:
    table = Table("set", "", box=None)
    for name in ("rows", "dropped", "cut", "tokens", "answer tokens", "longest"):
        table.add_column(name, justify="right")
    for inspected in sets:
        figures = inspected.figures
        counts = (figures.rows, figures.dropped, figures.cut, figures.tokens, figures.answer_tokens, figures.longest)
        style = "yellow" if figures.dropped or figures.cut else None
        table.add_row(Text(inspected.name), inspected.kind, *(f"{count:,}" for count in counts), style=style)
    return table


def _lengths_table(sets: list[InspectedSet]) -> Table:
    """Histograms: a row for each set, a column for each bin."""
    edges = sorted({edge for inspected in sets for edge in inspected.figures.lengths})
    table = Table("samples by tokens", "", *(f"≤ {edge:,}" for edge in edges), box=None)
    for inspected in sets:
        highest = max(inspected.figures.lengths.values(), default=1)
        counts = [inspected.figures.lengths.get(edge, 0) for edge in edges]
        cells = [f"{_BARS[-(-8 * count // highest)]} {count:,}" for count in counts]
        table.add_row(Text(inspected.name), inspected.kind, *cells)
    return table


def overlap_warning(overlap: Overlap) -> str:
    """What two sets share, as a sentence.

    >>> overlap_warning(Overlap("math", "gsm", 3, 2, 0.5, 2)).partition("; ")[0]
    'math and gsm share prompts, 50.0 % of one of them: 3 of math are in gsm (2 as the same text), 2 of gsm in math'
    """
    first, second = overlap.first, overlap.second
    return (
        f"{first} and {second} share prompts, {overlap.share:.1%} of one of them: "
        f"{overlap.first_shared:,} of {first} are in {second} ({overlap.same_text:,} as the same text), "
        f"{overlap.second_shared:,} of {second} in {first}; the others share {RUN} words in a row"
    ).replace("%", " %")
