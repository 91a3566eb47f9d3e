"""What patches change, by layer and module type; and the card of a model that has them applied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from act_lightning.architecture import module_type
from act_lightning.cards.card import front_matter, table
from act_lightning.cards.record import common_license, license_text, short_name
from act_lightning.patches.patch_file import PatchFile, PatchRecord, TensorChange
from act_lightning.transfer.report import layer_of


def summarize_patch(record: PatchRecord) -> dict[str, Any]:
    """What a patch changes, as plain values: hashes, counts, and groups ``by_layer`` and ``by_module_type``."""
    changed = sum(change.changed for change in record.tensors.values())
    return {
        "base": record.base,
        "result": record.result,
        "parameters": record.parameters,
        "changed": changed,
        "changed_share": changed / record.parameters,
        "by_layer": _group_changes(record, layer_of),
        "by_module_type": _group_changes(record, module_type),
        "provenance": dict(record.provenance),
    }


def _group_changes(record: PatchRecord, group_of: Callable[[str], str]) -> list[dict[str, Any]]:
    """Counts by group; layers in numerical order, parameters outside of layers last.

    ``rows`` and ``columns`` count whole ones (of vectors, elements), ``elements`` those of all tensors that change.
    """
    groups: defaultdict[str, list[TensorChange]] = defaultdict(list)
    for change in record.tensors.values():
        groups[group_of(change.name.rpartition(".")[0] or change.name)].append(change)
    order = sorted(groups, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0))
    return [
        {
            "name": name,
            "tensors": len(groups[name]),
            "rows": sum(change.rows for change in groups[name]),
            "columns": sum(change.columns for change in groups[name]),
            "changed": sum(change.changed for change in groups[name]),
            "elements": sum(prod(change.shape) for change in groups[name]),
        }
        for name in order
    ]


def patched_card(patches: Sequence[PatchFile], model: str, digest: str, applied: bool) -> str:
    """The card of a model to which patches were applied, in this order, or from which they were reverted.

    ``model`` is how the user named it, ``digest`` that of the weights that were written.
    """
    licenses: dict[str, Any] = {}
    for patch in patches:
        licenses |= patch.record.provenance.get("licenses", {})
    base = str(patches[0].record.provenance.get("base", model))
    verb = "applied" if applied else "taken out again"
    sentence = f"`{short_name(model)}` with {'a patch' if len(patches) == 1 else 'patches'} {verb} by act-lightning."
    patch_rows = [["patch", "made from", "base", "result"]]
    for patch in patches:
        record = patch.record
        origin = f"{record.provenance.get('tuned', '')} over {record.provenance.get('base', '')}"
        patch_rows.append([patch.path.name, origin, record.base, record.result])
    license_rows = [["model", "license"], *([short_name(name), license_text(one)] for name, one in licenses.items())]
    lines = front_matter([base, *licenses], common_license(list(licenses.values())), ["act-lightning", "ability-patch"])
    lines += [f"# {short_name(model)}, patches {verb}", "", sentence]
    lines += [f"The weights' digest is `{digest}`.", "", *table(patch_rows), "", *table(license_rows), ""]
    return "\n".join(lines)
