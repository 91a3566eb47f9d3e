"""``transfer.json``: what moved, from where, how much, and the hashes to check it by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from act_lightning.architecture import module_type, split_layer
from act_lightning.channels import ChannelInventory
from act_lightning.errors import ConfigIssue
from act_lightning.transfer.selection import SelectedSource
from act_lightning.transfer.settings import AbilitySource, TransferSettings


def transfer_report(
    inventory: ChannelInventory,
    sources: Sequence[SelectedSource],
    settings: TransferSettings,
    seed: int,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """The contents of ``transfer.json``.

    Args:
        inventory: The channels of the target.
        sources: The sources with their masks.
        settings: How channels were selected and merged.
        seed: Seed of random draws.
        hashes: Digest of the target and of every source, by name.

    Returns:
        Plain dicts, lists, strings and numbers.
    """
    masks = {
        f"mask {source.name}": hashlib.sha256(source.mask.cpu().numpy().tobytes()).hexdigest() for source in sources
    }
    return {
        "channels": inventory.total,
        "sources": {source.name: _source_report(inventory, source) for source in sources},
        "selection": str(settings.selection),
        "method": str(settings.method),
        "seed": seed,
        "hashes": {**hashes, **masks},
    }


def _source_report(inventory: ChannelInventory, source: SelectedSource) -> dict[str, Any]:
    mask, vocabulary = source.mask, source.vocabulary
    selected, parameters = int(mask.sum()), inventory.count_elements(mask)
    for name, selection in inventory.elements(mask).items():
        if vocabulary is not None and name in vocabulary.names and selection.columns is not None:
            parameters -= int(selection.columns.sum()) * vocabulary.missing  # the source lacks these entries
    by_module_type: Counter[str] = Counter()
    by_layer: Counter[str] = Counter()
    for module, span in inventory.spans():
        count = int(mask[span].sum())
        by_module_type[module_type(module.name)] += count
        by_layer[layer_of(module.name)] += count
    report = {
        "model": source.model,
        "abilities": {
            ability: {"selected": int(ability_mask.sum()), "tokens": source.tokens[ability]}
            for ability, ability_mask in source.masks.items()
        },
        "union": selected,
        "union_share": selected / inventory.total,
        "parameters": parameters,
        "parameter_share": parameters / inventory.parameters,
        "scale": source.scale,
        "ratio": float(source.ratio),
        "by_module_type": dict(by_module_type),
        "by_layer": dict(by_layer),
    }
    return report if vocabulary is None else {**report, "vocabulary": vocabulary.to_json()}


def layer_of(name: str) -> str:
    """The first number in a module's name, or "none" for modules outside the layers.

    >>> layer_of("model.layers.3.self_attn.q_proj"), layer_of("lm_head")
    ('3', 'none')
    """
    return split_layer(name)[0] or "none"


def describe_transfer(report: Mapping[str, Any]) -> str:
    """One line per source of a transfer report."""
    return "\n".join(
        f"{name}: λ {source['scale']:g}, p {source['ratio']:g}; {source['union']:,} of {report['channels']:,} channels,"
        f" {source['parameter_share']:.2%} of parameters"
        for name, source in report["sources"].items()
    )


def resumed_issues(
    report: Mapping[str, Any], sources: Sequence[AbilitySource], settings: TransferSettings
) -> list[ConfigIssue]:
    """Settings of a transfer that would have no effect, since a fit that resumes does not transfer again.

    Args:
        report: The transfer before the checkpoint, as in ``transfer.json``; empty if there was none.
        sources: The sources of the fit that resumes; none for plain fine-tuning.
        settings: Its transfer.
    """
    before: Mapping[str, Any] = report.get("sources", {})
    labels = [source.label for source in sources]
    changes: list[tuple[str, object, object]] = []
    if sorted(before) != sorted(labels):
        changes.append(("profile.sources", labels, sorted(before) or "none"))
    elif sources:
        names = (("selection", str(settings.selection)), ("method", str(settings.method)))
        changes += [(f"transfer.{key}", now, report[key]) for key, now in names if now != report[key]]
        for source in sources:
            old = before[source.label]
            if sorted(source.abilities) != sorted(old["abilities"]):
                changes.append((f"abilities of source {source.label}", list(source.abilities), list(old["abilities"])))
            scale = settings.scale if source.scale is None else source.scale
            ratio = float(settings.ratio if source.ratio is None else source.ratio)
            for key, now in (("scale", scale), ("ratio", ratio)):
                if now != old[key]:
                    changes.append((f"transfer.{key} of source {source.label}", now, old[key]))
    return [
        ConfigIssue(
            setting,
            now,
            f"must be {old} as before the checkpoint, because nothing is transferred again",
            "Write that, or start from the beginning without ckpt_path.",
        )
        for setting, now, old in changes
    ]


# A model that was transferred into must not be again, even by a new Trainer with new callbacks. So the mark is an
# attribute of the model itself: unlike any table kept elsewhere, it goes with a copy, and with a model that is pickled
# for processes that a strategy spawns.
_TRANSFERRED = "_act_transferred"


def mark_transferred(model: nn.Module, report: Mapping[str, Any]) -> None:
    """Remember on the model what was injected."""
    setattr(model, _TRANSFERRED, dict(report))


def previous_transfer(model: nn.Module | None) -> dict[str, Any]:
    """What was injected into this model, as in ``transfer.json``; empty if nothing was, or there is no model yet."""
    report: dict[str, Any] = getattr(model, _TRANSFERRED, {})
    return report
