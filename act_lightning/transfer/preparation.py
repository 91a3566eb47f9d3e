"""From sources and saved scores to masks: everything a transfer needs before it writes to a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.checkpoints.models import locate
from act_lightning.checkpoints.weight_files import identify
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.merging import merging_method
from act_lightning.merging.method import MergingMethod
from act_lightning.scorers.scorer import Scorer, recorded_scorer
from act_lightning.scores import ScoreRecord, read_record, read_scores, score_path
from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.report import transfer_report
from act_lightning.transfer.saved_fisher import SavedFisher, TransferFisher, source_fisher_path, target_fisher_path
from act_lightning.transfer.selection import SelectedSource, drop_unmatched, select, union_of_sources
from act_lightning.transfer.settings import AbilitySource, TransferSettings, weight_issues


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
        return self.inventory.count_elements(mask) / self.inventory.parameters

    def injection(self) -> MaskedInjection:
        """The injection into parameters; use it as a context manager."""
        return MaskedInjection(self.inventory, self.sources, self.method, self.seed, self.scale, self.fisher)


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
        folder = locate(source.model, source.revision, "profile.sources.model")
        hashes[source.label] = identify(folder).digest
        scores: dict[str, Tensor | None] = dict.fromkeys(source.abilities)
        tokens = dict.fromkeys(source.abilities, 0)
        if settings.scorer is not None:
            assert plan.scores is not None, "this selection needs scores"
            digests = {"target": plan.target_digests, "source": [hashes[source.label]]}
            for ability in source.abilities:
                path = score_path(plan.scores, source.label, ability)
                tokens[ability] = checked_record(path, plan.scores, digests, settings.scorer).tokens
                scores[ability] = read_scores(path, inventory)
        scale = settings.scale if source.scale is None else source.scale
        ratio = settings.ratio if source.ratio is None else source.ratio
        vocabulary = None if plan.target is None else match_vocabularies(plan.target, folder)
        masks = select(inventory, scores, ratio, settings, (plan.seed, source.label))
        masks = {ability: drop_unmatched(inventory, mask, vocabulary) for ability, mask in masks.items()}
        selected.append(SelectedSource(source.label, source.model, folder, scale, ratio, masks, tokens, vocabulary))
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
            raise ActError(ConfigIssue("transfer.scores", str(path), problem, "Profile again, or name those models."))
    if scorer is not None and dict(record.scorer) != scorer.record():
        expected, stored = recorded_scorer(scorer.record()), recorded_scorer(record.scorer)
        problem = f"must hold scores by {expected}, but holds scores by {stored}"
        hint = "Name the folder of those, or change the selection."
        raise ActError(ConfigIssue("transfer.scores", str(path), problem, hint))
    return record
