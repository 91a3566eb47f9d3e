"""Fisher information before fit: how much each parameter of target and sources matters for an ability's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from act_lightning.architecture import find_language_model, is_transferred
from act_lightning.checkpoints.files import check_writable, save_tensors
from act_lightning.checkpoints.models import load_model
from act_lightning.data.batches import shard
from act_lightning.data.labels import Sample
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.profiling.gradients import summed_squared_gradients
from act_lightning.profiling.measurement import Measurement, measurements
from act_lightning.profiling.sibling_checks import check_compatibility
from act_lightning.profiling.target import Target, find_target
from act_lightning.scores import ScoreRecord
from act_lightning.training.lightning_compat import isolate_rng, resumes_from_checkpoint
from act_lightning.transfer.importance import ALIASES, FOLDER, source_path, target_path
from act_lightning.transfer.sources import AbilitySource, source_issues


class FisherInformation(L.Callback):
    """Gather the diagonal Fisher information of each source, and of the target, on the answers of each ability.

    F = (1/N) Σ_n (∂ log p(answer_n | prompt_n) / ∂θ)², one sample at a time (Matena and Raffel 2022,
    https://arxiv.org/abs/2111.09832). Written to ``<default_root_dir>/fisher/sources/<source>/<ability>.safetensors``
    and ``fisher/target/<samples>.safetensors``, float32, a number for each parameter, and used again while model, data
    and precision are the same. Only one model is in memory at a time, with a float32 number for each parameter. Every
    process takes a share of the samples.

    A transfer whose method asks for it gathers by itself, with the sources of its profiler. The target is measured on
    the sources' samples: what counts is how much its own values matter where a source's would replace them.

    Args:
        sources: The ability models.
        target: Folder or hub id of the target, for a LightningModule that builds its model in ``configure_model``.
        revision: Revision of that hub id.
    """

    def __init__(
        self, sources: Sequence[AbilitySource], target: str | None = None, revision: str | None = None
    ) -> None:
        self.sources = sources
        self.target = target
        self.revision = revision

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gather before a fit that starts from the beginning."""
        if (
            stage == "fit"
            and not resumes_from_checkpoint(trainer)
            and not is_transferred(find_language_model(pl_module))
        ):
            self.gather(trainer, pl_module, getattr(trainer, "datamodule", None))

    def gather(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: L.LightningDataModule | None = None
    ) -> None:
        """Gather whatever saved files do not answer, and write it.

        Raises:
            ActError: If a setting, a model, its tokenizer or an ability does not fit; before work begins. If a gradient
                is NaN or infinite.
        """
        root = Path(trainer.default_root_dir) / FOLDER
        raise_if_any(source_issues(self.sources) + check_writable(root, "trainer.default_root_dir"))
        with isolate_rng():  # a loader of the user's own may draw random numbers
            target = find_target(pl_module, self.target, self.revision)
            compared = measurements(self.sources, target, datamodule, root)
            check_compatibility(target, compared)
            due = [one for one in _of_target(compared, target, root) if _is_due(one)]
            by_folder = _by_folder([one for one in _of_sources(compared, root) if _is_due(one)])
            trainer.strategy.barrier("gathering Fisher information starts")
            device = trainer.strategy.root_device
            if due:
                with target.ready(device) as model:
                    _gather(model, due, trainer)
            for folder, its in by_folder.items():
                _gather(load_model(folder, target.dtype, device), its, trainer)


def _of_sources(compared: Sequence[Measurement], root: Path) -> list[Measurement]:
    """The information of the sources, which does not depend on the target's weights."""
    return [
        replace(one, record=_record_of(one, "source"), path=source_path(root, one.source.label, one.ability))
        for one in compared
    ]


def _of_target(compared: Sequence[Measurement], target: Target, root: Path) -> list[Measurement]:
    """The information of the target, once for all sources that share samples."""
    found = {}
    for one in compared:
        path = target_path(root, one.samples.fingerprint)
        known = AbilitySource(target.name, [one.ability], name="target")
        found[path] = replace(one, source=known, record=_record_of(one, "target"), path=path)
    return list(found.values())


def _record_of(one: Measurement, role: str) -> ScoreRecord:
    """The record of what one of the two models alone was measured on."""
    models, identities = one.record.models, one.record.identities
    return replace(one.record, models={role: models[role]}, identities={role: identities[role]})


def _is_due(one: Measurement) -> bool:
    reason = one.reason_to_measure()
    said = f"gathering, {reason}" if reason else f"used again ({one.path})"
    rank_zero_info(f"Fisher information of {one.label}: {said}")
    return reason is not None


def _by_folder(due: Sequence[Measurement]) -> dict[Path, list[Measurement]]:
    found: dict[Path, list[Measurement]] = {}
    for one in due:
        found.setdefault(one.folder, []).append(one)
    return found


def _gather(model: PreTrainedModel, due: Sequence[Measurement], trainer: L.Trainer) -> None:
    """Gather on each ability in turn, with one model."""
    names = dict(model.named_parameters())
    first = {values: name for name, values in names.items()}
    every = dict(model.named_parameters(remove_duplicate=False))
    aliases = json.dumps({name: first[values] for name, values in every.items() if name not in names})
    for one in due:
        mine = shard(one.samples.samples, trainer.global_rank, trainer.world_size)
        sums = summed_squared_gradients(model, _shown(mine, one.label, trainer.is_global_zero))
        found = {name: _mean(name, values, one, trainer) for name, values in sums.items()}
        if trainer.is_global_zero:
            save_tensors(one.path, found, {"act": json.dumps(asdict(one.record), sort_keys=True), ALIASES: aliases})
        trainer.strategy.barrier("Fisher information written")


def _shown(samples: Sequence[Sample], label: str, shown: bool) -> Iterator[Sample]:
    yield from tqdm(samples, desc=f"Fisher information of {label}", disable=not shown)


def _mean(name: str, total: Tensor, one: Measurement, trainer: L.Trainer) -> Tensor:
    """The mean over the samples of all processes."""
    everywhere = trainer.strategy.reduce(total, reduce_op="sum")
    assert isinstance(everywhere, Tensor)
    mean = everywhere.cpu() / len(one.samples.samples)
    if not bool(torch.isfinite(mean).all()):
        problem = f"must be finite on {one.label}"
        raise ActError(
            ConfigIssue(f"gradient of {name}", "NaN or infinity", problem, "Gather it in model.dtype: float32.")
        )
    return mean
