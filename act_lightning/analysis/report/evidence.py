"""What a report is computed from, with the masks that several of its sections need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from act_lightning.analysis.overlaps import top_masks
from act_lightning.analysis.paper import Ability, PaperPair, paper_pair
from act_lightning.analysis.saved import Pair, SavedScores
from act_lightning.scores import chunks_path, score_path


@dataclass(frozen=True)
class Evidence:
    """Saved scores and how to show them.

    Attributes:
        runs: Folders of the runs.
        saved: Their scores.
        abilities: The abilities by label.
        ratios: Values of p; the first is that of all findings, overlaps are shown at every one.
        shown: Labels of abilities whose layers and modules are shown.
        folders: Where models lie, by the names that scores give them, if not where these say.
        weights: Whether weights may be read.
        quiet: Whether to show no progress.
    """

    runs: Sequence[Path]
    saved: SavedScores
    abilities: Mapping[str, Ability]
    ratios: Sequence[float]
    shown: Sequence[str]
    folders: Mapping[str, Path] = field(default_factory=dict)
    weights: bool = True
    quiet: bool = False

    @property
    def ratio(self) -> float:
        """The p of all findings."""
        return self.ratios[0]

    @property
    def views(self) -> Iterator[PairView]:
        """The pairs of models, numbered from 1."""
        return iter(self._views)

    @cached_property
    def _views(self) -> list[PairView]:
        return [PairView(self, number, pair) for number, pair in enumerate(self.saved.pairs, 1)]


@dataclass(frozen=True)
class PairView:
    """One pair of models as the report shows it.

    Attributes:
        evidence: All evidence.
        number: Its number in the report, which names of files end with.
        pair: The pair.
    """

    evidence: Evidence
    number: int
    pair: Pair

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """float32 ``[channels]`` by label, in the order of labels."""
        abilities = self.evidence.abilities
        return {label: self.pair.scores[one.name] for label, one in abilities.items() if one.name in self.pair.scores}

    @cached_property
    def abilities(self) -> dict[str, Ability]:
        """The abilities of this pair by label."""
        return {label: self.evidence.abilities[label] for label in self.scores}

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """The masks at the report's p, bool ``[channels]`` by label."""
        return top_masks(self.scores, self.evidence.ratio)

    @cached_property
    def chunk_files(self) -> dict[str, Path]:
        """The files of scores beside which those of chunks were kept, by label."""
        folder = self.pair.run / "scores"
        paths = {label: score_path(folder, self.pair.source, one.name) for label, one in self.abilities.items()}
        return {label: path for label, path in paths.items() if chunks_path(path).is_file()}

    @property
    def paper(self) -> PaperPair | None:
        """The paper's numbers of this pair, if it is one of the paper's."""
        return paper_pair(*self.pair.models)

    def named(self, name: str) -> str:
        """A file's name of this pair's own, where there are several pairs."""
        return name if len(self.evidence.saved.pairs) == 1 else f"{name}-{self.number}"

    @property
    def heading(self) -> list[str]:
        """The pair's name as a heading, where there are several pairs."""
        return [] if len(self.evidence.saved.pairs) == 1 else [self.pair.label]

    @property
    def shown(self) -> list[str]:
        """Labels of abilities whose layers and modules are shown."""
        return [label for label in self.evidence.shown if label in self.scores]
