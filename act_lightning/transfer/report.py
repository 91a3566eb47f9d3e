"""``transfer.json``: what moved, from where, how much, and the hashes to check it by."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ConfigIssue
from act_lightning.transfer.selection import SelectedSource
from act_lightning.transfer.settings import TransferSettings
from act_lightning.transfer.sources import AbilitySource


def transfer_report(
    inventory: ChannelInventory,
    sources: Sequence[SelectedSource],
    *,
    selection: str,
    method: str,
    seed: int,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """The contents of ``transfer.json``.

    Args:
        inventory: The channels of the target.
        sources: The sources with their masks.
        selection: How channels were ranked.
        method: How task vectors were merged.
        seed: Seed of random draws.
        hashes: Digest of the target and of every source, by name.

    Returns:
        Plain dicts, lists, strings and numbers.
    """
    masks = {f"mask {source.name}": mask_digest(source.mask) for source in sources}
    return {
        "channels": inventory.total,
        "sources": {source.name: _source_report(inventory, source) for source in sources},
        "selection": selection,
        "method": method,
        "seed": seed,
        "hashes": {**hashes, **masks},
    }


def describe_transfer(report: Mapping[str, Any]) -> str:
    """A line for each source of a transfer report."""
    return "\n".join(
        f"{name}: λ {source['scale']:g}, p {source['ratio']:g}; {source['union']:,} of {report['channels']:,} channels,"
        f" {source['parameter_share']:.2%} of parameters"
        for name, source in report["sources"].items()
    )


def _source_report(inventory: ChannelInventory, source: SelectedSource) -> dict[str, Any]:
    mask = source.mask
    chosen, parameters = int(mask.sum()), _moved(inventory, source)
    vocabulary = {} if source.vocabulary is None else {"vocabulary": source.vocabulary.to_json()}
    return {
        "model": source.model,
        "abilities": {
            ability: {"selected": int(part.sum()), "tokens": source.tokens[ability]}
            for ability, part in source.masks.items()
        },
        "union": chosen,
        "union_share": chosen / inventory.total,
        "parameters": parameters,
        "parameter_share": parameters / inventory.parameters,
        "scale": source.scale,
        "ratio": float(source.ratio),
        "by_module_type": _count(inventory, mask, module_type),
        "by_layer": _count(inventory, mask, layer_of),
        **vocabulary,
    }


def _moved(inventory: ChannelInventory, source: SelectedSource) -> int:
    """Distinct elements that move: those selected, but of a column only the entries that the source has."""
    moved, match = inventory.count_elements(source.mask), source.vocabulary
    for name, selection in inventory.elements(source.mask).items():
        if match is not None and name in match.names and selection.columns is not None:
            moved -= int(selection.columns.sum()) * match.missing
    return moved


def mask_digest(mask: Tensor) -> str:
    """SHA-256 of a mask (bool ``[channels]``), one byte a channel."""
    return hashlib.sha256(mask.cpu().numpy().tobytes()).hexdigest()


def module_type(name: str) -> str:
    """The last part of a module's name.

    >>> module_type("model.layers.3.self_attn.q_proj")
    'q_proj'
    """
    return name.rsplit(".", 1)[-1]


def layer_of(name: str) -> str:
    """The first number in a module's name, or "none" for modules outside the layers.

    >>> layer_of("model.layers.3.self_attn.q_proj"), layer_of("lm_head")
    ('3', 'none')
    """
    found = re.search(r"\.(\d+)\.", name)
    return found.group(1) if found else "none"


def _count(inventory: ChannelInventory, mask: Tensor, group: Callable[[str], str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for module, span in inventory.spans():
        counts[group(module.name)] += int(mask[span].sum())
    return dict(counts)


_REMEDY = "Write that, or start from the beginning without ckpt_path."


def resumed_issues(
    record: Mapping[str, Any], sources: Sequence[AbilitySource], settings: TransferSettings
) -> list[ConfigIssue]:
    """Settings of a transfer that would have no effect, for nothing is transferred again.

    Args:
        record: What was transferred before the checkpoint, as in ``transfer.json``; empty if nothing was.
        sources: The sources of the fit that goes on; none for plain fine-tuning.
        settings: Its transfer.
    """
    before: Mapping[str, Any] = record.get("sources", {})
    names = [source.label for source in sources]
    if sorted(before) != sorted(names):
        return [_fault("profile.sources", names, sorted(before) or "none")]
    if not sources:
        return []
    method = settings.method if isinstance(settings.method, str) else repr(settings.method)
    pairs = [("selection", settings.selection, record["selection"]), ("method", method, record["method"])]
    found = [_fault(f"transfer.{name}", now, was) for name, now, was in pairs if now != was]
    for source in sources:
        scale = settings.scale if source.scale is None else source.scale
        ratio = settings.ratio if source.ratio is None else source.ratio
        was = before[source.label]
        if sorted(source.abilities) != sorted(was["abilities"]):
            found.append(_fault(f"abilities of source {source.label}", list(source.abilities), list(was["abilities"])))
        found += [
            _fault(f"transfer.{name} of source {source.label}", now, was[name])
            for name, now in (("scale", scale), ("ratio", float(ratio)))
            if now != was[name]
        ]
    return found


def _fault(setting: str, now: object, before: object) -> ConfigIssue:
    return ConfigIssue(
        setting, now, f"must be {before} as before the checkpoint, for nothing is transferred again", _REMEDY
    )
