"""Whether the settings of a fit that goes on are those of the transfer that its checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from act_lightning.callbacks.sources import AbilitySource
from act_lightning.errors import Fault
from act_lightning.transfer import TransferSettings

_REMEDY = "Write that, or start from the beginning without ckpt_path."


def resumed_faults(
    record: Mapping[str, Any], sources: Sequence[AbilitySource], settings: TransferSettings
) -> list[Fault]:
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


def _fault(setting: str, now: object, before: object) -> Fault:
    return Fault(setting, now, f"must be {before} as before the checkpoint, for nothing is transferred again", _REMEDY)
