"""What patches change, by layer and module type; and the card of a model that has them applied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from act_lightning.architecture import module_type
from act_lightning.cards.card import front_matter, table
from act_lightning.cards.record import common_license, is_hub_id, license_text, short_name
from act_lightning.patches.patch_file import PatchFile, PatchRecord, TensorChange
from act_lightning.transfer.report import layer_of


@dataclass(frozen=True)
class ChangeGroup:
    """What a patch changes in the parameters of one layer or one module type.

    Attributes:
        name: The layer's number or the module's type.
        tensors: How many tensors change.
        rows: Whole rows in the patch; of vectors, elements.
        columns: Whole columns in the patch.
        changed: Elements that differ.
        elements: Elements of these tensors in all.
    """

    name: str
    tensors: int
    rows: int
    columns: int
    changed: int
    elements: int


def summarize_patch(record: PatchRecord) -> dict[str, Any]:
    """What a patch changes, as plain values: hashes, counts, and groups ``by_layer`` and ``by_module_type``."""
    changed = sum(change.changed for change in record.tensors.values())
    return {
        "base": record.base,
        "result": record.result,
        "parameters": record.parameters,
        "changed": changed,
        "changed_share": changed / record.parameters,
        "by_layer": [vars(group) for group in _groups(record, layer_of)],
        "by_module_type": [vars(group) for group in _groups(record, module_type)],
        "provenance": dict(record.provenance),
    }


def patched_card(patches: Sequence[PatchFile], model: str, digest: str, applied: bool) -> str:
    """The card of a model that has patches applied, or has them taken out again.

    Args:
        patches: In the order in which they were applied.
        model: How the model was named that was written anew.
        digest: Digest of the weights that were written.
        applied: Whether they are in, or out.
    """
    licenses: dict[str, Any] = {}
    for patch in patches:
        licenses |= patch.record.provenance.get("licenses", {})
    base = str(patches[0].record.provenance.get("base", model))
    names = [name for name in dict.fromkeys((base, *licenses)) if is_hub_id(name)]
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    values |= common_license(list(licenses.values()))
    values |= {"base_model": names} if names else {}
    values["tags"] = ["act-lightning", "ability-patch"]
    verb = "applied" if applied else "taken out again"
    told = f"`{short_name(model)}` with {'a patch' if len(patches) == 1 else 'patches'} {verb} by act-lightning."
    rows = [["patch", "made from", "base", "result"], *(_patch_row(patch) for patch in patches)]
    stated = [["model", "license"], *([short_name(name), license_text(one)] for name, one in licenses.items())]
    weights = f"The weights' digest is `{digest}`."
    lines = [f"# {short_name(model)}, patches {verb}", "", told, weights, "", *table(rows), "", *table(stated)]
    return "\n".join([*front_matter(values), *lines, ""])


def _patch_row(patch: PatchFile) -> list[str]:
    record = patch.record
    origin = f"{record.provenance.get('tuned', '')} over {record.provenance.get('base', '')}"
    return [patch.path.name, origin, record.base, record.result]


def _groups(record: PatchRecord, group: Callable[[str], str]) -> list[ChangeGroup]:
    """The changes in groups; layers in the order of their numbers, what lies outside them last."""
    members: defaultdict[str, list[TensorChange]] = defaultdict(list)
    for change in record.tensors.values():
        members[group(change.name.rpartition(".")[0] or change.name)].append(change)
    order = sorted(members, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0))
    return [_group(name, members[name]) for name in order]


def _group(name: str, changes: Sequence[TensorChange]) -> ChangeGroup:
    rows, columns = sum(change.rows for change in changes), sum(change.columns for change in changes)
    changed, elements = sum(change.changed for change in changes), sum(prod(change.shape) for change in changes)
    return ChangeGroup(name, len(changes), rows, columns, changed, elements)
