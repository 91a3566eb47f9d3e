"""A transfer before a parameter changes: plan, masks, and what ``transfer.json`` will say."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from act_lightning.architecture import module_type, split_layer
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.compatibility import VocabularyMatch, match_vocabularies
from act_lightning.checkpoints.models import locate
from act_lightning.checkpoints.weight_files import identify
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.merging import merging_method
from act_lightning.merging.method import MergingMethod
from act_lightning.scorers.scorer import Scorer, recorded_scorer
from act_lightning.scores import (
    ScoreRecord,
    read_record,
    read_scores,
    read_usage,
    require_difference,
    score_path,
    unreached_experts,
)
from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.saved_fisher import SavedFisher, TransferFisher, source_fisher_path, target_fisher_path
from act_lightning.transfer.selection import (
    SelectedSource,
    drop_unmatched,
    select,
    selected_unreached,
    union_of_sources,
    unowned_to_move,
)
from act_lightning.transfer.settings import AbilitySource, TransferSettings, weight_issues


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
    unowned = inventory.unowned_by_kind()
    return {
        "channels": inventory.total,
        **({"without_channel": unowned} if unowned else {}),
        "sources": {source.name: _source_report(inventory, source) for source in sources},
        "selection": str(settings.selection),
        "method": str(settings.method),
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "seed": seed,
        "hashes": {**hashes, **masks},
    }


def _source_report(inventory: ChannelInventory, source: SelectedSource) -> dict[str, Any]:
    mask, vocabulary = source.mask, source.vocabulary
    by_module_type, parameters_by_module_type = count_by_type(inventory, mask, vocabulary)
    by_layer: Counter[str] = Counter()
    for module, span in inventory.spans():
        by_layer[layer_of(module.name)] += int(mask[span].sum())
    selected, parameters = int(mask.sum()), _count_parameters(inventory, mask, vocabulary, source.whole)
    report = {
        "model": source.model,
        "abilities": {
            ability: {"selected": int(ability_mask.sum()), "tokens": source.tokens[ability]}
            | ({"unreached_experts": source.unreached[ability]} if ability in source.unreached else {})
            for ability, ability_mask in source.masks.items()
        },
        "union": selected,
        "union_share": selected / inventory.total,
        "parameters": parameters,
        "parameter_share": parameters / inventory.parameters,
        "scale": source.scale,
        "ratio": float(source.ratio),
        "by_module_type": by_module_type,
        "parameters_by_module_type": parameters_by_module_type,
        "by_layer": dict(by_layer),
    }
    return report if vocabulary is None else {**report, "vocabulary": vocabulary.to_json()}


def count_by_type(
    inventory: ChannelInventory, mask: Tensor, vocabulary: VocabularyMatch | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """How many channels of ``mask``, bool ``[channels]``, each type of module has, and how many parameters they own.

    A parameter of a tied matrix that head and embedding both select counts for both of these types.
    """
    masks: dict[str, Tensor] = {}
    for module, span in inventory.spans():
        of_type = masks.setdefault(module_type(module.name), torch.zeros_like(mask))
        of_type[span] = mask[span]
    channels = {name: int(part.sum()) for name, part in masks.items()}
    return channels, {name: _count_parameters(inventory, part, vocabulary) for name, part in masks.items()}


def _count_parameters(
    inventory: ChannelInventory, mask: Tensor, vocabulary: VocabularyMatch | None, whole: Collection[str] = ()
) -> int:
    """How many distinct parameters move, without entries of the vocabulary that the source lacks."""
    parameters = inventory.count_elements(mask, whole)
    for name, selection in inventory.elements(mask).items():
        if vocabulary is not None and name in vocabulary.names and selection.columns is not None:
            parameters -= int(selection.columns.sum()) * vocabulary.missing
    return parameters


def layer_of(name: str) -> str:
    """The first number in a module's name, or "none" for modules outside the layers.

    >>> layer_of("model.layers.3.self_attn.q_proj"), layer_of("lm_head")
    ('3', 'none')
    """
    return split_layer(name)[0] or "none"


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
        patterns = (("include", list(settings.include)), ("exclude", list(settings.exclude)))
        recorded = [
            (key, now) for key, now in (*names, *patterns) if key in report
        ]  # earlier versions kept no patterns
        changes += [(f"transfer.{key}", now, report[key]) for key, now in recorded if now != report[key]]
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
_MEASURE_AGAIN = "Profile again, or name those models."


def mark_transferred(model: nn.Module, report: Mapping[str, Any]) -> None:
    """Remember on the model what was injected."""
    setattr(model, _TRANSFERRED, dict(report))


def previous_transfer(model: nn.Module | None) -> dict[str, Any]:
    """What was injected into this model, as in ``transfer.json``; empty if nothing was, or there is no model yet."""
    report: dict[str, Any] = getattr(model, _TRANSFERRED, {})
    return report


@dataclass(frozen=True)
class TransferPlan:
    """What a transfer is made from.

    Attributes:
        settings: How channels are selected and merged.
        sources: The ability models, in order.
        inventory: The channels of the target.
        target_digests: Digests under which the target's weights are known; the first is reported.
        seed: Seed of random selections and of methods that draw.
        target: The target's checkpoint, if there is one; its tokenizer matches vocabularies that differ.
        scores: The folder of the scorer's ``<source>/<ability>.safetensors``; ``None`` if no scores are needed.
        fisher: The folder of Fisher information, for a method that needs it.
    """

    settings: TransferSettings
    sources: Sequence[AbilitySource]
    inventory: ChannelInventory
    target_digests: Sequence[str]
    seed: int = 0
    target: Path | None = None
    scores: Path | None = None
    fisher: Path | None = None


@dataclass(frozen=True)
class PreparedTransfer:
    """The sources with their masks, ready to be injected.

    Attributes:
        inventory: The channels of the target.
        sources: The sources with their masks, in order.
        method: How task vectors are merged.
        seed: Seed of random draws.
        report: The contents of ``transfer.json``.
        scale: λ of the transfer.
        target: The target's checkpoint, if there is one.
        fisher: Fisher information, if the method needs it.
    """

    inventory: ChannelInventory
    sources: list[SelectedSource]
    method: MergingMethod
    seed: int
    report: dict[str, Any]
    scale: float = 1.0
    target: Path | None = None
    fisher: TransferFisher | None = None

    @property
    def parameter_share(self) -> float:
        """Share of the target's parameters that the sources together may change."""
        mask = union_of_sources(self.sources, self.inventory.total)
        whole = set[str]().union(*(source.whole for source in self.sources))
        return self.inventory.count_elements(mask, whole) / self.inventory.parameters

    def injection(self, dtype: torch.dtype | None = None) -> MaskedInjection:
        """The injection into parameters, stored in ``dtype`` later; use it as a context manager."""
        return MaskedInjection(self.inventory, self.sources, self.method, self.seed, self.scale, self.fisher, dtype)


def prepare(plan: TransferPlan) -> PreparedTransfer:
    """Read scores and select channels.

    Raises:
        ActError: Scores are missing or belong to other weights, a mask selects nothing, or the sources' scales cannot
            be weights for the method.
    """
    settings, inventory = plan.settings, plan.inventory
    raise_if_any(weight_issues(settings, plan.sources))
    selected, hashes = [], {"target": plan.target_digests[0]}
    for source in plan.sources:
        folder = locate(source.model, source.revision, "profile.sources.model", adapters=True)
        hashes[source.label] = identify(folder).digest
        scores: dict[str, Tensor | None] = dict.fromkeys(source.abilities)
        tokens = dict.fromkeys(source.abilities, 0)
        unused: dict[str, dict[str, list[int]]] = {}
        if settings.scorer is not None:
            assert plan.scores is not None, "this selection needs scores"
            digests = {"target": plan.target_digests, "source": [hashes[source.label]]}
            for ability in source.abilities:
                path = score_path(plan.scores, source.label, ability)
                record = checked_record(path, plan.scores, digests, settings.scorer)
                values = read_scores(path, inventory)
                require_difference(path, values, record)
                tokens[ability], scores[ability] = record.tokens, values
                unused[ability] = unreached_experts(read_usage(path))
        scale = settings.scale if source.scale is None else source.scale
        ratio = settings.ratio if source.ratio is None else source.ratio
        vocabulary = None if plan.target is None else match_vocabularies(plan.target, folder)
        masks = select(inventory, scores, ratio, settings, (plan.seed, source.label))
        masks = {ability: drop_unmatched(inventory, mask, vocabulary) for ability, mask in masks.items()}
        whole = unowned_to_move(inventory, settings)
        unreached = {ability: selected_unreached(inventory, masks[ability], unused[ability]) for ability in unused}
        unreached = {ability: experts for ability, experts in unreached.items() if experts}
        selected.append(
            SelectedSource(
                source.label, source.model, folder, scale, ratio, masks, tokens, vocabulary, whole, unreached
            )
        )
    method = merging_method(settings.method)
    fisher = _transfer_fisher(plan.fisher, plan, hashes) if plan.fisher is not None and method.needs_fisher else None
    report = transfer_report(inventory, selected, settings, plan.seed, hashes)
    return PreparedTransfer(inventory, selected, method, plan.seed, report, settings.scale, plan.target, fisher)


def _transfer_fisher(root: Path, plan: TransferPlan, hashes: Mapping[str, str]) -> TransferFisher:
    """The files of Fisher information below ``root``, which must belong to the models of this run.

    Raises:
        ActError: A file is missing, or belongs to other weights.
    """
    targets: dict[Path, int] = {}
    sources = []
    for source in plan.sources:
        paths = [source_fisher_path(root, source.label, ability) for ability in source.abilities]
        records = [checked_record(path, root, {"source": [hashes[source.label]]}) for path in paths]
        sources.append(SavedFisher({path: record.samples for path, record in zip(paths, records, strict=True)}))
        targets |= {target_fisher_path(root, record.data): record.samples for record in records}
    for path in targets:
        checked_record(path, root, {"target": plan.target_digests})
    return TransferFisher(sources, SavedFisher(targets))


def checked_record(
    path: Path, root: Path, digests: Mapping[str, Sequence[str]], scorer: Scorer | None = None
) -> ScoreRecord:
    """The record of a score file, which must have been measured on the models of this run, and by its scorer.

    Args:
        path: The file.
        root: The folder of all scores, for messages.
        digests: Digests under which ``target`` and ``source`` are known.
        scorer: What channels are ranked by; by default any scorer will do.

    Raises:
        ActError: The file is missing, or was measured on other weights or by another scorer.
    """
    if not path.is_file():
        hint = "Run `profile`, or name the folder that holds it."
        raise ActError(ConfigIssue("transfer.scores", str(root), f"must hold {path.relative_to(root)}", hint))
    record = read_record(path)
    for role, known in digests.items():
        if record.identities.get(role, {}).get("digest") not in known:
            measured = record.models.get(role)
            problem = f"must have been measured on the {role} of this run, but was on other weights ({measured})"
            raise ActError(ConfigIssue("transfer.scores", str(path), problem, _MEASURE_AGAIN))
    if scorer is not None and dict(record.scorer) != scorer.record():
        expected, stored = recorded_scorer(scorer.record()), recorded_scorer(record.scorer)
        problem = f"must hold scores by {expected}, but holds scores by {stored}"
        hint = "Name the folder of those, or change the selection."
        raise ActError(ConfigIssue("transfer.scores", str(path), problem, hint))
    return record


def target_check(plan: TransferPlan) -> Callable[[Mapping[str, str]], None] | None:
    """What takes the SHA-256 of the target's weight files, and raises if they are not those that were measured.

    ``None`` if no score file names any; the digests that :func:`checked_record` compares are a quick check.
    """
    records: dict[Path, ScoreRecord] = {}
    if plan.settings.scorer is not None and plan.scores is not None:
        for source in plan.sources:
            paths = [score_path(plan.scores, source.label, ability) for ability in source.abilities]
            records |= {path: read_record(path) for path in paths}
    if not any(record.identities.get("target", {}).get("sha256") for record in records.values()):
        return None

    def check(sha256: Mapping[str, str]) -> None:
        raise_if_any(
            [issue for path in records for issue in weight_file_issues(path, records[path], {"target": sha256})]
        )

    return check


def weight_file_issues(
    path: Path, record: ScoreRecord, models: Mapping[str, Path | Mapping[str, str] | None], strict: bool = False
) -> list[ConfigIssue]:
    """How the weight files of target and source differ from those that a score file was measured on, by SHA-256.

    Args:
        path: The score file.
        record: Its record.
        models: The checkpoint by role, ``target`` or ``source``, all of whose bytes are read, or the SHA-256 by file.
        strict: Whether a record without SHA-256 is an issue, too; models that were measured in memory have none.
    """
    issues = []
    for role, model in models.items():
        measured = record.identities.get(role, {}).get("sha256")
        if measured and model is not None:
            actual = identify(model, verify=True).sha256 or {} if isinstance(model, Path) else model
            if changed := sorted(file for file, digest in actual.items() if measured.get(file) != digest):
                files = ", ".join(changed[:3])
                problem = f"must have been measured on the {role} of this run, of which {files} has changed since"
                issues.append(ConfigIssue("transfer.scores", str(path), problem, _MEASURE_AGAIN))
        elif strict:
            problem = f"must hold the SHA-256 of the {role}'s weight files to be verified, and holds none"
            issues.append(ConfigIssue("transfer.scores", str(path), problem, "Profile again, or leave out --verify."))
    return issues
