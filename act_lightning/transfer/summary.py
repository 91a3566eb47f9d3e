"""What a mask selected, for the user: one line by type of module, and warnings of masks that are worth little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES, module_type
from act_lightning.channels import ChannelInventory
from act_lightning.errors import ConfigIssue, summarize_names
from act_lightning.masks import bootstrap_overlaps
from act_lightning.scores import (
    ScoreRecord,
    chunks_path,
    name_experts,
    read_chunks,
    read_record,
    read_scores,
    score_path,
)
from act_lightning.transfer.injection import Rounding
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan, count_by_type
from act_lightning.transfer.selection import SelectedSource, select
from act_lightning.transfer.settings import TransferSettings

MIN_TOKENS = 1000
"""Answer tokens that a stable mask needs, where no scores of chunks tell how stable it is: see docs/selections.md."""
STABLE = 0.8
"""The share of a mask that other draws of its samples must select for it to be called stable; the same in docs."""
_VOCABULARY = 0.5  # the share of a mask in head and embedding from which on there is a warning
_TYPES = 4  # named in a line
_ROUNDED_AWAY = 0.01  # the share of values from which on their rounding is a warning


def describe_transfer(report: Mapping[str, Any]) -> str:
    """One line per source: λ, p, and what was selected by type of module; and one on parameters without a channel."""
    lines = [
        f"{name}: λ {source['scale']:g}{' (beyond the source)' if source['scale'] > 1 else ''}, p {source['ratio']:g}; "
        + describe_selection(
            source["by_module_type"],
            source["parameters_by_module_type"],
            source["parameter_share"],
        )
        for name, source in report["sources"].items()
    ]
    for name, source in report["sources"].items():
        for ability, figures in source["abilities"].items():
            if experts := figures.get("unreached_experts"):
                selected = f"channels of experts to which no answer token is routed: {name_experts(experts)}"
                lines.append(f"warning: the mask of {name}/{ability} selects {selected}")
    if unowned := report.get("without_channel"):
        stays = "move with selection: all" if report["selection"] == "all" else "stay the target's"
        lines.append(
            f"{sum(unowned.values()):,} parameters without a channel {stays}: {summarize_names(list(unowned))}"
        )
    return "\n".join(lines)


def describe_selection(
    channels: Mapping[str, int], parameters: Mapping[str, int] | None = None, parameter_share: float = 0.0
) -> str:
    """Which share of the selected channels, and of their parameters, lies in which types of module.

    Args:
        channels: Number of selected channels by type of module.
        parameters: Number of parameters that they own by type of module; nothing is said of them if they are unknown.
        parameter_share: Share of the model's parameters that is selected.

    >>> describe_selection({"q_proj": 1, "lm_head": 3}, {"q_proj": 30, "lm_head": 30}, 0.0102)
    'selected 4 channels (1.02 % of the parameters): lm_head 75 % (50 %), q_proj 25 % (50 %)'
    >>> describe_selection({"lm_head": 294})
    'selected 294 channels: lm_head 100 %'
    """
    total, owned = sum(channels.values()), sum((parameters or {}).values())
    by_size = sorted((name for name in channels if channels[name]), key=lambda name: (-channels[name], name))
    groups = [(name, [name]) for name in by_size[:_TYPES]]
    if rest := by_size[_TYPES:]:
        groups.append(("other types" if len(rest) > 1 else rest[0], rest))
    texts = []
    for label, names in groups:
        shares = [_percent(sum(channels[name] for name in names) / total)]
        if parameters and owned:
            shares.append(_percent(sum(parameters[name] for name in names) / owned))
        texts.append(f"{label} {shares[0]}" + (f" ({shares[1]})" if len(set(shares)) > 1 else ""))
    share = f" ({100 * parameter_share:.3g} % of the parameters)" if parameters and owned else ""
    return f"selected {total:,} channel{'' if total == 1 else 's'}{share}: {', '.join(texts)}"


def _percent(share: float) -> str:
    """A share in whole %.

    >>> _percent(0.004), _percent(0.996), _percent(1.0)
    ('<1 %', '>99 %', '100 %')
    """
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def describe_masks(plan: TransferPlan, prepared: PreparedTransfer) -> list[str]:
    """What a transfer selected, and warnings, where nothing is written that could tell more.

    Raises:
        ActError: As :func:`mask_issues`.
    """
    issues = mask_issues(plan, prepared)
    return [describe_transfer(prepared.report), *(f"{issue.level}: {issue}" for issue in issues)]


def mask_issues(plan: TransferPlan, prepared: PreparedTransfer) -> list[ConfigIssue]:
    """Warnings of the masks of a transfer; scores are read again, and those of chunks where there are any.

    Raises:
        ActError: A file of scores is unreadable.
    """
    issues, scorer, inventory = [], plan.settings.scorer, prepared.inventory
    if scorer is None or plan.scores is None:
        return []  # random channels, or all of them, are what was asked for
    for source in prepared.sources:
        issues += vocabulary_issues(inventory, source.mask, plan.settings, source.name)
        for ability, mask in source.masks.items():
            path, label = score_path(plan.scores, source.name, ability), f"{source.name}/{ability}"
            record, values = read_record(path), scorer.ranked(read_scores(path, inventory), inventory)
            issues += score_issues(values, mask, label)
            issues += stability_issues(record, label, _overlap(path, record, plan.settings, source, inventory))
    return issues


def vocabulary_issues(
    inventory: ChannelInventory, mask: Tensor, settings: TransferSettings, label: str
) -> list[ConfigIssue]:
    """A warning of a mask of which half or more is rows of lm_head or features of the embedding.

    Args:
        inventory: The channels of the target.
        mask: Bool ``[channels]``.
        settings: How it was selected; what it does already is not recommended.
        label: What the mask belongs to, for the message.
    """
    channels, parameters = count_by_type(inventory, mask)
    shares = {"channels": _vocabulary_share(channels), "parameters": _vocabulary_share(parameters)}
    if max(shares.values()) < _VOCABULARY:
        return []
    modules = [
        module.name
        for module, span in inventory.spans()
        if module_type(module.name) in (*HEAD_NAMES, *EMBEDDING_NAMES) and bool(mask[span].any())
    ]
    remedies = [f"transfer.exclude: [{', '.join(modules)}]"]
    by_loss = settings.scorer is not None and settings.scorer.label == "attribution"
    if not by_loss:
        remedies.append("selection: attribution")
        if settings.scope != "module" and settings.share != "parameters":  # which can't be combined
            remedies.append("scope: module")
    what = "channels" if shares["channels"] >= _VOCABULARY else "parameters"
    problem = f"{label}: {_percent(shares[what])} of the selected {what} belong to {' and '.join(modules)}"
    choices = " or ".join(filter(None, (", ".join(remedies[:-1]), remedies[-1])))
    hint = f"Scores of different modules may not be comparable: try {choices}."
    if by_loss:
        hint = f"By their effect on the loss they come first; what the layers can do, {choices} shows."
    return [ConfigIssue("transfer.selection", ..., problem, hint, "warning")]


def _vocabulary_share(counts: Mapping[str, int]) -> float:
    total = sum(counts.values())
    return sum(counts.get(name, 0) for name in (*HEAD_NAMES, *EMBEDDING_NAMES)) / total if total else 0.0


def score_issues(values: Tensor, mask: Tensor, label: str) -> list[ConfigIssue]:
    """A warning of selected channels whose scores, float32 ``[channels]``, are not above zero."""
    unproven, selected = int((values[mask] <= 0).sum()), int(mask.sum())
    if not unproven:
        return []
    problem = f"{label}: {unproven:,} of {selected:,} selected channels have no score above 0"
    hint = "Choose a smaller transfer.ratio: nothing says that these carry the ability."
    return [ConfigIssue("transfer.ratio", ..., problem, hint, "warning")]


def stability_issues(record: ScoreRecord, label: str, overlap: float | None = None) -> list[ConfigIssue]:
    """A warning of a mask that other samples of the same ability would change.

    Args:
        record: What its scores were measured on.
        label: What the mask belongs to, for the message.
        overlap: The share of the mask that its chunks, drawn again with replacement, select; ``None`` if none are kept.
    """
    name = label.rpartition("/")[2]
    if not record.tokens or (record.tokens >= MIN_TOKENS if overlap is None else overlap >= STABLE):
        return []
    if overlap is None:
        problem = f"{label}: {record.tokens:,} answer tokens are fewer than the {MIN_TOKENS:,} that a stable mask needs"
        hint = "Read more samples; profile.chunks: 16 measures how stable the mask is."
    else:
        problem = f"{label}: other draws of its {record.samples:,} samples select only {_percent(overlap)} of the mask"
        hint = f"Read more samples: a mask is stable from {_percent(STABLE)} on."
    return [ConfigIssue(f"data.abilities.{name}.limit", ..., problem, hint, "warning")]


def _overlap(
    path: Path, record: ScoreRecord, settings: TransferSettings, source: SelectedSource, inventory: ChannelInventory
) -> float | None:
    """The mean bootstrap overlap of a mask, from the scores of chunks beside those of all samples, if they belong."""
    if not chunks_path(path).is_file() or read_record(chunks_path(path)).changes(record):
        return None
    chunks = read_chunks(path, inventory)

    def choose(scores: Tensor) -> Tensor:
        return select(inventory, {source.name: scores}, source.ratio, settings, ())[source.name]

    overlaps = bootstrap_overlaps(chunks.scores, chunks.tokens, choose)
    return sum(overlaps) / len(overlaps)


def rounding_issues(rounding: Rounding) -> list[ConfigIssue]:
    """What is to be said of values that a transfer leaves as they were.

    >>> print(*rounding_issues(Rounding(values=9, moved=4, unchanged=1)))
    1 of 4 selected values (25.0%) that should move stay, because rounding takes their change away. Store float32 (model.export_dtype), or choose a larger transfer.scale.
    """  # noqa: E501
    if not rounding.moved:
        problem = "nothing was transferred: no selected value differs from the target's"
        return [ConfigIssue("profile.sources", ..., problem, "Name a model that has the ability.", "warning")]
    if not rounding.unchanged:
        return []
    share = rounding.unchanged / rounding.moved
    counts = f"{rounding.unchanged:,} of {rounding.moved:,} selected values ({share:.1%})"
    problem = f"{counts} that should move stay, because rounding takes their change away"
    hint = "Store float32 (model.export_dtype), or choose a larger transfer.scale."
    return [ConfigIssue("model.export_dtype", ..., problem, hint, "warning" if share >= _ROUNDED_AWAY else "note")]


def with_outcome(report: Mapping[str, Any], rounding: Rounding, issues: Sequence[ConfigIssue]) -> dict[str, Any]:
    """The contents of ``transfer.json`` once values are written: what rounding did, and the warnings."""
    problems = [issue.to_json() for issue in issues]
    return {**report, "rounding": {"moved": rounding.moved, "unchanged": rounding.unchanged}, "problems": problems}
