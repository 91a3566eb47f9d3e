"""The settings of a transfer and its sources, and what can be wrong with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from act_lightning.checkpoints.files import last_part, name_issues
from act_lightning.defaults import EVERY_MODULE, LABORATORY, RATIO, SCALE
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import ratio_issues
from act_lightning.merging import merging_method
from act_lightning.merging.method import MergingMethod
from act_lightning.scorers import scorer_of
from act_lightning.scorers.scorer import Scorer
from act_lightning.scores import CHUNKS

Share = Literal["channels", "parameters"]
Scope = Literal["global", "module"]


@dataclass(frozen=True)
class TransferSettings:
    """How channels are selected and merged (paper §4, https://arxiv.org/abs/2601.09398).

    Attributes:
        ratio: p, the share that one ability's mask selects, in (0, 1].
        share: What ``ratio`` is a share of: channels, as in the paper, or parameters, for comparisons at equal cost.
        scale: λ, the strength of the transfer.
        selection: How channels are ranked: name of a scorer (``activation`` is the paper's rule), ``random`` or
            ``all``; or a scorer with settings of its own.
        scope: Whether channels are ranked across the whole model, as in the paper, or within every module.
        include: fnmatch patterns on full names of the modules whose channels may be selected; channels of others are
            neither selected nor counted.
        exclude: The same for modules to leave out, also of those that ``include`` matches.
        method: Name of a merging method, or one with settings of its own.
    """

    ratio: float | Fraction = RATIO
    share: Share = "channels"
    scale: float = SCALE
    selection: str | Scorer = "activation"
    scope: Scope = "global"
    include: Sequence[str] = EVERY_MODULE
    exclude: Sequence[str] = ()
    method: str | MergingMethod = "task_arithmetic"

    @property
    def scorer(self) -> Scorer | None:
        """What channels are ranked by; ``None`` if no scores are needed, or the selection is invalid."""
        try:
            scorer = scorer_of(self.selection)
        except ActError:
            return None
        return None if scorer is None or name_issues(scorer.label, "transfer.selection") else scorer

    @property
    def needs_fisher(self) -> bool:
        """Whether this method weights by Fisher information."""
        try:
            return merging_method(self.method).needs_fisher
        except ActError:
            return False

    def issues(self, prefix: str = "transfer") -> list[ConfigIssue]:
        """What is wrong with these settings, without looking at a model."""
        issues = ratio_issues(self.ratio, f"{prefix}.ratio") + scale_issues(self.scale, f"{prefix}.scale")
        for name, value, allowed in (("share", self.share, get_args(Share)), ("scope", self.scope, get_args(Scope))):
            if value not in allowed:
                problem = f"must be one of {', '.join(allowed)}"
                issues.append(ConfigIssue(f"{prefix}.{name}", value, problem, "Choose one of these."))
        if self.share == "parameters" and self.scope == "module":
            problem, hint = "cannot be combined with scope: module", "Use share: channels, or scope: global."
            issues.append(ConfigIssue(f"{prefix}.share", self.share, problem, hint))
        try:
            scorer = scorer_of(self.selection)
            issues += [] if scorer is None else name_issues(scorer.label, "transfer.selection")
        except ActError as error:
            issues += error.issues
        try:
            merging_method(self.method)
        except ActError as error:
            issues += error.issues
        return issues


def scale_issues(scale: float, setting: str) -> list[ConfigIssue]:
    """What is wrong with a scaling factor: it must be a finite number."""
    if isinstance(scale, bool) or not math.isfinite(scale):
        return [ConfigIssue(setting, scale, "must be a finite number", "Write a number such as 0.4.")]
    return []


def effective_scales(settings: TransferSettings, sources: Sequence[AbilitySource]) -> dict[str, float]:
    """λ of each source, by the name of the setting that gives it."""
    scales = {}
    for i, source in enumerate(sources):
        if source.scale is None:
            scales["transfer.scale"] = settings.scale
        else:
            scales[f"profile.sources[{i}].scale"] = source.scale
    return scales


def zero_scale_issues(settings: TransferSettings, sources: Sequence[AbilitySource]) -> list[ConfigIssue]:
    """Scaling factors at which a source has no part in a transfer."""
    hint = "Write a number such as 0.4, or leave the source out (profile.sources: null is plain fine-tuning)."
    scales = effective_scales(settings, sources).items()
    return [
        ConfigIssue(name, scale, "must not be 0, which transfers nothing", hint) for name, scale in scales if not scale
    ]


@dataclass
class AbilitySource:
    """A source θ_abl and its abilities (paper §4.1, https://arxiv.org/abs/2601.09398).

    Attributes:
        model: Folder or hub id, or ``lab:generalist``; a sibling of the target. A path is stored as text. A LoRA
            adapter of PEFT follows the model that it was trained on: ``Qwen/Qwen2.5-7B+runs/adapter``.
        abilities: Names of abilities of the data module; or, in your own training loop, an iterable of batches by
            ability name: dicts of ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[rows, length]``, where
            labels other than −100 mark answer tokens. Every process must see all batches; the profiler shares them out.
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
        """Store a path as text, as configs and files do."""
        self.model = str(self.model)

    @property
    def label(self) -> str:
        """The name that files and reports use.

        >>> AbilitySource("Qwen/Qwen2.5-7B-Instruct", ["science-ar"]).label
        'Qwen2.5-7B-Instruct'
        >>> AbilitySource("lab:generalist@1", ["words"]).label
        'generalist-1'
        """
        last = last_part(self.model).rpartition("+")[2]  # of an adapter's name, which follows its base's
        return self.name or (last.replace("@", "-") if self.model.startswith(LABORATORY) else last)

    @property
    def loaders(self) -> dict[str, Iterable[dict[str, Any]]]:
        """Batches by ability, if this source brings its own."""
        return self.abilities if isinstance(self.abilities, dict) else {}


def source_issues(sources: Sequence[AbilitySource] | None, setting: str = "profile.sources") -> list[ConfigIssue]:
    """What is wrong with a list of sources: it is empty, two share a name, or one of them has an issue."""
    if sources is None:
        return []
    if not sources:
        hint = "Name a source, or leave it out (null) for plain fine-tuning."
        return [ConfigIssue(setting, [], "must not be empty", hint)]
    issues = []
    for i, source in enumerate(sources):
        of_source, of_abilities = f"{setting}[{i}]", f"{setting}[{i}].abilities"
        issues += [] if source.scale is None else scale_issues(source.scale, f"{of_source}.scale")
        issues += [] if source.ratio is None else ratio_issues(source.ratio, f"{of_source}.ratio")
        issues += name_issues(source.label, f"{of_source}.name")
        if not source.abilities:
            issues.append(ConfigIssue(of_abilities, source.abilities, "must name an ability", "Name one or more."))
        for ability, count in Counter(list(source.abilities)).items():
            issues += name_issues(ability, of_abilities)
            if count > 1:
                issues.append(ConfigIssue(of_abilities, ability, "must not name an ability twice", "Name it once."))
            if (chunks := f"{ability}{CHUNKS}") in source.abilities:
                problem = f"must not be another ability's name, {ability!r}, followed by {CHUNKS!r}"
                hint = "Rename it: a file of that name holds the other ability's scores by chunk."
                issues.append(ConfigIssue(of_abilities, chunks, problem, hint))
    for name, count in Counter(source.label for source in sources).items():
        if count > 1:
            problem = "must not be the name of two sources"
            issues.append(ConfigIssue(setting, name, problem, "Give each a name of its own."))
    return issues


def source_ratios(sources: Sequence[AbilitySource], default: float | Fraction) -> dict[str, float | Fraction]:
    """The ratio of each source, by the name of the setting that gives it."""
    ratios: dict[str, float | Fraction] = {}
    for i, source in enumerate(sources):
        if source.ratio is None:
            ratios["transfer.ratio"] = default
        else:
            ratios[f"profile.sources[{i}].ratio"] = source.ratio
    return ratios


def weight_issues(settings: TransferSettings, sources: Sequence[AbilitySource]) -> list[ConfigIssue]:
    """Scales of sources that cannot be weights relative to λ, for a method that votes or averages.

    Args:
        settings: Valid settings of the transfer.
        sources: The ability models.
    """
    method = merging_method(settings.method)
    if method.per_source_scale:
        return []
    issues = []
    for i, source in enumerate(sources):
        if source.scale is None:
            continue
        if settings.scale == 0:
            problem = "must be transfer.scale times a weight, and that scale is 0"
            hint = "Leave it out, or choose another scale."
        elif not method.negative_weights and source.scale / settings.scale < 0:
            problem = f"must have the sign of transfer.scale, {settings.scale:g}, because the method averages"
            hint = f"Change its sign, or choose another method than {type(method).__name__}."
        else:
            continue
        issues.append(ConfigIssue(f"profile.sources[{i}].scale", source.scale, problem, hint))
    return issues
