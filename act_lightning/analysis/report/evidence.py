"""What a report is computed from, with the masks that several of its sections need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from act_lightning.analysis.figures.findings import SCORE
from act_lightning.analysis.overlaps import top_masks
from act_lightning.analysis.paper import RATIO, Ability, PaperPair, paper_pair, read_abilities
from act_lightning.analysis.saved import Pair, SavedScores, read_json, read_runs
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.masks import ratio_count, ratio_issues
from act_lightning.scorers import Activation

_SHOWN = 1  # by default; each takes seconds


@dataclass(frozen=True)
class Evidence:
    """Saved scores and how to show them.

    Attributes:
        abilities: The abilities by label.
        ratios: Values of p; the first is that of all findings, overlaps are shown at every one.
        shown: Labels of abilities whose layers and modules are shown.
        folders: Folders of models, by the names in the score files, where those names are no folders.
        weights: Whether weights may be read.
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

    @cached_property
    def views(self) -> list[PairView]:
        """The pairs of models as the report shows them."""
        pairs, views = self.saved.pairs, []
        for number, pair in enumerate(pairs, 1):
            abilities = {label: ability for label, ability in self.abilities.items() if ability.name in pair.scores}
            scores = {label: pair.scores[ability.name] for label, ability in abilities.items()}
            heading = [pair.label] if len(pairs) > 1 else []
            masks = top_masks(scores, self.ratio)
            paper = paper_pair(*pair.models) if pair.scorer == Activation.name else None  # which has no other scores
            views.append(PairView(self, number, pair, heading, abilities, scores, masks, paper))
        return views


@dataclass(frozen=True)
class PairView:
    """One pair of models as the report shows it.

    Attributes:
        number: Its number in the report, from 1, which ends the names of its files.
        heading: Its name as a heading; empty if there are no other pairs.
        abilities: Its abilities by label, in the order of labels.
        scores: float32 ``[channels]`` by label.
        masks: The masks at the report's p, bool ``[channels]`` by label.
        paper: The paper's numbers, if it is one of the paper's pairs.
    """

    evidence: Evidence
    number: int
    pair: Pair
    heading: list[str]
    abilities: Mapping[str, Ability]
    scores: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    paper: PaperPair | None

    @property
    def quantity(self) -> str:
        """What the scores measure, for axes."""
        return SCORE if self.pair.scorer == Activation.name else f"score by {self.pair.scorer}"

    def file_name(self, name: str) -> str:
        """``name`` for a file, with the pair's number if there are several pairs."""
        return f"{name}-{self.number}" if self.heading else name

    def sentence_start(self, word: str) -> str:
        """The first word of a sentence, after the pair's name if there are several pairs."""
        return f"{self.pair.label}: {word}" if self.heading else word.capitalize()


def _run_ratio(run: Path) -> float:
    """The p of the first source of a run's transfer, or the paper's."""
    try:
        (ratio, *_) = (float(source["ratio"]) for source in read_json(run / "transfer.json")["sources"].values())
    except (KeyError, TypeError, AttributeError, ValueError):  # none, or damaged, which the outcome's section tells
        return RATIO
    return RATIO if ratio_issues(ratio) else ratio


def gather(
    runs: Sequence[Path],
    ratios: Sequence[float] | None = None,
    *,
    shown: Sequence[str] = (),
    readings: Mapping[str, str] | None = None,
    folders: Mapping[str, Path] | None = None,
    weights: bool = True,
    mixed_versions: bool = False,
    quiet: bool = False,
) -> Evidence:
    """Read the scores of runs and check all settings of a report; see :func:`make_report` for the arguments."""
    ratios = ratios or (_run_ratio(runs[0]),)
    saved = read_runs(runs, mixed_versions)
    abilities = read_abilities(saved.names, readings)
    by_name = {ability.name: label for label, ability in abilities.items()}
    labels = [by_name.get(name, name) for name in shown] or list(abilities)[:_SHOWN]
    total, issues = saved.inventory.total, []
    for ratio in ratios:
        invalid = ratio_issues(ratio, "--ratio")
        issues += invalid
        if not invalid and not ratio_count(total, ratio):
            problem = f"must select at least one of {total:,} channels"
            issues.append(ConfigIssue("--ratio", ratio, problem, "Choose a larger ratio."))
    models = sorted({name for pair in saved.pairs for name in pair.models})
    for setting, names, known in (("--show", labels, [*by_name, *abilities]), ("--model", folders or {}, models)):
        problem = f"must be one of {', '.join(dict.fromkeys(known))}"
        issues += [ConfigIssue(setting, name, problem, "Correct the name.") for name in names if name not in known]
    raise_if_any(issues)
    return Evidence(runs, saved, abilities, ratios, labels, folders or {}, weights, quiet)
