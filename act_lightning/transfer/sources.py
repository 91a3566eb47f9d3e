"""An ability model: the sibling that an ability is taken from, and the abilities it is asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from act_lightning.checkpoints.files import name_issues
from act_lightning.errors import ConfigIssue
from act_lightning.masks import ratio_issues
from act_lightning.scores import CHUNKS
from act_lightning.transfer.settings import scale_issues


@dataclass
class AbilitySource:
    """A source θ_abl and its abilities (paper §4.1, https://arxiv.org/abs/2601.09398).

    Attributes:
        model: Folder or hub id, or ``lab:generalist``; a sibling of the target. A path is kept as text.
        abilities: Names of abilities of the data module; or, in a loop of your own, an iterable of batches by ability
            name: dicts of ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[rows, length]``, where labels
            that are not −100 mark answer tokens. Every process must see all of them: they are shared out here.
        scale: λ of this source; by default that of the transfer.
        ratio: p of this source; by default that of the transfer.
        name: Name of its folder of scores; by default the last part of ``model``.
        revision: Commit, branch or tag of a hub id.
    """

    model: str
    abilities: list[str] | dict[str, Any]
    scale: float | None = None
    ratio: float | None = None
    name: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Take a path as the text that configs and files know."""
        self.model = str(self.model)

    @property
    def label(self) -> str:
        """The name that files and reports use.

        >>> AbilitySource("Qwen/Qwen2.5-7B-Instruct", ["science-ar"]).label
        'Qwen2.5-7B-Instruct'
        """
        return self.name or re.split(r"[/:\\]", self.model.rstrip("/\\"))[-1]

    @property
    def loaders(self) -> dict[str, Iterable[dict[str, Any]]]:
        """Batches by ability, where this source brings its own."""
        return self.abilities if isinstance(self.abilities, dict) else {}

    def issues(self, setting: str) -> list[ConfigIssue]:
        """What is wrong with this source, without looking at its files."""
        found = []
        if not self.abilities:
            found.append(
                ConfigIssue(f"{setting}.abilities", self.abilities, "must name an ability", "Name one or more.")
            )
        if self.scale is not None:
            found += scale_issues(self.scale, f"{setting}.scale")
        if self.ratio is not None:
            found += ratio_issues(self.ratio, f"{setting}.ratio")
        for ability in self.abilities:
            if f"{ability}{CHUNKS}" in self.abilities:
                problem = f"must not be another ability's name, {ability!r}, with {CHUNKS!r} after it"
                hint = "Rename it: a file of that name keeps the other's scores in parts."
                found.append(ConfigIssue(f"{setting}.abilities", f"{ability}{CHUNKS}", problem, hint))
        names = [("name", self.label)] + [("abilities", ability) for ability in self.abilities]
        return found + [issue for key, name in names for issue in name_issues(name, f"{setting}.{key}")]


def source_issues(sources: Sequence[AbilitySource] | None, setting: str = "profile.sources") -> list[ConfigIssue]:
    """What is wrong with a list of sources: an empty list, two of one name, or a issue of one of them."""
    if sources is None:
        return []
    if not sources:
        return [
            ConfigIssue(
                setting, [], "must not be empty", "Name a source, or leave it out (null) for plain fine-tuning."
            )
        ]
    found = [issue for i, source in enumerate(sources) for issue in source.issues(f"{setting}[{i}]")]
    for name, times in Counter(source.label for source in sources).items():
        if times > 1:
            found.append(ConfigIssue(setting, name, "must not name two sources alike", "Give each a name of its own."))
    for i, source in enumerate(sources):
        for ability, times in Counter(list(source.abilities)).items():
            if times > 1:
                problem = "must not name an ability twice"
                found.append(ConfigIssue(f"{setting}[{i}].abilities", ability, problem, "Name it once."))
    return found


def source_scales(sources: Sequence[AbilitySource], setting: str = "profile.sources") -> dict[str, float | None]:
    """The scale of each source of its own, by the setting that says so."""
    return {f"{setting}[{i}].scale": source.scale for i, source in enumerate(sources)}


def source_ratios(
    sources: Sequence[AbilitySource], default: float | Fraction, setting: str = "profile.sources"
) -> dict[str, float | Fraction]:
    """The ratio of each source, by the setting that says so."""
    given = ((f"{setting}[{i}].ratio", source.ratio) for i, source in enumerate(sources))
    return {"transfer.ratio" if ratio is None else name: default if ratio is None else ratio for name, ratio in given}
