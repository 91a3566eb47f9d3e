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
from act_lightning.merging.method import MergingMethod
from act_lightning.merging.registry import merging_method
from act_lightning.scorers.scorer import Scorer, recorded_scorer
from act_lightning.scores import ScoreRecord, read_record, read_scores, score_path
from act_lightning.transfer.importance import Importance, SavedFisher, source_path, target_path
from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.report import transfer_report
from act_lightning.transfer.selection import SelectedSource, drop_unmatched, select, union_of_sources
from act_lightning.transfer.settings import TransferSettings, weight_issues
from act_lightning.transfer.sources import AbilitySource, source_scales


@dataclass(frozen=True)
class PreparedTransfer:
    """The sources with their masks, and what ``transfer.json`` will say.

    Attributes:
        inventory: The channels of the target.
        sources: The sources with their masks, in order.
        method: How task vectors are merged.
        seed: Seed of random draws.
        report: The contents of ``transfer.json``.
        scale: λ of the transfer.
        target: The target's checkpoint, if there is one.
        importance: Fisher information, where the method asks for it.
    """

    inventory: ChannelInventory
    sources: list[SelectedSource]
    method: MergingMethod
    seed: int
    report: dict[str, Any]
    scale: float = 1.0
    target: Path | None = None
    importance: Importance | None = None

    @property
    def parameter_share(self) -> float:
        """Share of the target's parameters that the sources together may change."""
        mask = union_of_sources(self.sources, self.inventory.total)
        return self.inventory.count_elements(mask) / self.inventory.parameters

    def injection(self) -> MaskedInjection:
        """The injection into parameters; use it as a context manager."""
        return MaskedInjection(self.inventory, self.sources, self.method, self.seed, self.scale, self.importance)


def prepare(
    sources: Sequence[AbilitySource],
    inventory: ChannelInventory,
    settings: TransferSettings,
    folder_of_scores: Path,
    seed: int,
    target_digests: Sequence[str],
    target: Path | None = None,
    fisher: Path | None = None,
) -> PreparedTransfer:
    """Read scores and select channels.

    Args:
        sources: The ability models.
        inventory: The channels of the target.
        settings: How channels are selected and merged.
        folder_of_scores: That of the scorer, ``<scores>/<source>/<ability>.safetensors``.
        seed: Seed of random selections and of methods that draw.
        target_digests: Digests under which the target's weights are known.
        target: The target's checkpoint, whose tokens say which entry of a source's vocabulary is which.
        fisher: The folder of Fisher information, for a method that asks for it.

    Raises:
        ActError: If scores are missing or belong to other weights, a mask selects nothing, or the sources' scales make
            no weights for the method.
    """
    raise_if_any(weight_issues(settings, source_scales(sources)))
    selected, hashes = [], {"target": target_digests[0]}
    for source in sources:
        folder = locate(source.model, source.revision, "profile.sources.model")
        hashes[source.label] = identify(folder).digest
        digests = {"target": target_digests, "source": [hashes[source.label]]}
        found = {
            name: _scores_of(source, name, inventory, settings, folder_of_scores, digests) for name in source.abilities
        }
        ratio = settings.ratio if source.ratio is None else source.ratio
        values = {name: scores for name, (scores, _) in found.items()}
        masks = select(inventory, values, ratio, settings, (seed, source.label))
        tokens = {name: tokens for name, (_, tokens) in found.items()}
        scale = settings.scale if source.scale is None else source.scale
        vocabulary = None if target is None else match_vocabularies(target, folder)
        masks = {name: drop_unmatched(inventory, mask, vocabulary) for name, mask in masks.items()}
        selected.append(SelectedSource(source.label, source.model, folder, scale, ratio, masks, tokens, vocabulary))
    method = merging_method(settings.method)
    name = settings.method if isinstance(settings.method, str) else repr(settings.method)
    report = transfer_report(
        inventory, selected, selection=settings.selection_name, method=name, seed=seed, hashes=hashes
    )
    importance = None
    if fisher is not None and method.needs_importance:
        importance = saved_importance(fisher, sources, hashes, target_digests)
    return PreparedTransfer(inventory, selected, method, seed, report, settings.scale, target, importance)


def _scores_of(
    source: AbilitySource,
    ability: str,
    inventory: ChannelInventory,
    settings: TransferSettings,
    root: Path,
    digests: Mapping[str, Sequence[str]],
) -> tuple[Tensor | None, int]:
    """Scores, where the selection needs them, and the number of answer tokens they were measured on."""
    if settings.scorer is None:
        return None, 0
    path = score_path(root, source.label, ability)
    record = saved_record(path, root, digests, settings.scorer)
    return read_scores(path, inventory), record.tokens


def saved_importance(
    root: Path, sources: Sequence[AbilitySource], digests: Mapping[str, str], target_digests: Sequence[str]
) -> Importance:
    """The files of Fisher information, which must have been gathered on the models of this run.

    Args:
        root: The folder of all of them.
        sources: The ability models.
        digests: The digest of each source, by its label.
        target_digests: Digests under which the target is known.

    Raises:
        ActError: If a file is missing, or was gathered on other weights.
    """
    targets: dict[Path, int] = {}
    found = []
    for source in sources:
        paths = [source_path(root, source.label, ability) for ability in source.abilities]
        records = [saved_record(path, root, {"source": [digests[source.label]]}) for path in paths]
        found.append(SavedFisher({path: record.samples for path, record in zip(paths, records, strict=True)}))
        targets |= {target_path(root, record.data): record.samples for record in records}
    for path in targets:
        saved_record(path, root, {"target": target_digests})
    return Importance(found, SavedFisher(targets))


def saved_record(
    path: Path, root: Path, digests: Mapping[str, Sequence[str]], scorer: Scorer | None = None
) -> ScoreRecord:
    """The record of saved scores that were measured on the models of this run, and by its scorer.

    Args:
        path: The file.
        root: The folder of all scores, for messages.
        digests: Digests under which ``target`` and ``source`` are known.
        scorer: What channels are to be ranked by.

    Raises:
        ActError: If there is no such file, or it was measured on other weights or by another scorer.
    """
    if not path.is_file():
        problem = f"must hold {path.relative_to(root)}"
        raise ActError(
            ConfigIssue("transfer.scores", str(root), problem, "Run `profile`, or name the folder that holds it.")
        )
    record = read_record(path)
    for role, known in digests.items():
        if record.identities.get(role, {}).get("digest") not in known:
            measured = record.models.get(role)
            problem = f"must have been measured on the {role} of this run, but was on other weights ({measured})"
            raise ActError(ConfigIssue("transfer.scores", str(path), problem, "Profile again, or name those models."))
    if scorer is not None and dict(record.scorer) != scorer.record():
        wanted, found = recorded_scorer(scorer.record()), recorded_scorer(record.scorer)
        problem = f"must hold scores by {wanted}, and holds scores by {found}"
        raise ActError(
            ConfigIssue("transfer.scores", str(path), problem, "Name the folder of those, or change the selection.")
        )
    return record
