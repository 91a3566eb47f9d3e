"""Fisher information before fit: how much each parameter of target and sources matters for an ability's answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.architecture import find_language_model
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.checkpoints.files import check_writable, save_tensors
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.console import progress_bar
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.profiling.gradients import summed_squared_gradients
from act_lightning.profiling.measurement import Measurement, check_compatibility, find_target, measurements
from act_lightning.scores import encode_record
from act_lightning.training.lightning_compat import isolate_rng, resumes_from_checkpoint
from act_lightning.training.together import collective_hook
from act_lightning.transfer.preparation import previous_transfer
from act_lightning.transfer.saved_fisher import ALIASES, FISHER_FOLDER, source_fisher_path, target_fisher_path
from act_lightning.transfer.settings import AbilitySource, source_issues


class FisherInformation(RootWriter):
    """Gather the diagonal Fisher information of each source, and of the target, on the answers of each ability.

    F = (1/N) Σ_n (∂ log p(answer_n | prompt_n) / ∂θ)², one sample at a time (Matena and Raffel 2022,
    https://arxiv.org/abs/2111.09832). Written to ``<default_root_dir>/fisher/sources/<source>/<ability>.safetensors``
    and ``fisher/target/<samples>.safetensors``, one float32 number per parameter, and reused while model, data and
    precision are the same. Only one model is in memory at a time, with a float32 number per parameter. Every process
    takes a share of the samples.

    A transfer whose method needs it gathers it by itself, with the sources of its profiler. The target is measured on
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
        if stage != "fit" or resumes_from_checkpoint(trainer) or previous_transfer(find_language_model(pl_module)):
            return
        super().setup(trainer, pl_module, stage)
        self.gather(trainer, pl_module, getattr(trainer, "datamodule", None))

    @collective_hook
    def gather(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: L.LightningDataModule | None = None
    ) -> None:
        """Gather and write all information that is not saved yet.

        Raises:
            ActError: A setting, a model, its tokenizer or an ability is invalid; before work begins. Or a gradient is
                NaN or infinite.
        """
        root = Path(trainer.default_root_dir) / FISHER_FOLDER
        raise_if_any(source_issues(self.sources) + check_writable(root, "trainer.default_root_dir"))
        with isolate_rng():  # a user's loader may draw random numbers
            target = find_target(pl_module, self.target, self.revision)
            pairs = measurements(self.sources, target, datamodule, root)
            check_compatibility(target, pairs)
            of_target: dict[Path, Measurement] = {}  # once for all sources that share samples
            of_sources = []
            for pair in pairs:
                path = target_fisher_path(root, pair.samples.fingerprint)
                named_target = AbilitySource(target.name, [pair.ability], name="target")
                of_target[path] = replace(_of_one_model(pair, "target", path), source=named_target)
                path = source_fisher_path(root, pair.source.label, pair.ability)
                of_sources.append(_of_one_model(pair, "source", path))
            pending_of_target, by_folder = [], dict[Path, list[Measurement]]()
            for measurement in (*of_target.values(), *of_sources):
                reason = measurement.reason_to_measure()
                message = f"gathering, {reason}" if reason else f"used again ({measurement.path})"
                rank_zero_info(f"Fisher information of {measurement.label}: {message}")
                if reason and measurement.path in of_target:
                    pending_of_target.append(measurement)
                elif reason:
                    by_folder.setdefault(measurement.folder, []).append(measurement)
            trainer.strategy.barrier("gathering Fisher information starts")
            device = trainer.strategy.root_device
            if pending_of_target:
                with target.ready(device) as model:
                    _gather(model, pending_of_target, trainer)
            for folder, pending in by_folder.items():
                _gather(load_on_device(folder, target.dtype, device), pending, trainer)


def _of_one_model(pair: Measurement, role: str, path: Path) -> Measurement:
    """The measurement of one model of a pair; what it saves does not depend on the other model's weights."""
    models, identities = {role: pair.record.models[role]}, {role: pair.record.identities[role]}
    return replace(pair, record=replace(pair.record, models=models, identities=identities), path=path)


def _gather(model: PreTrainedModel, pending: Sequence[Measurement], trainer: L.Trainer) -> None:
    """Gather the information of one model on each ability in turn."""
    first_names = {values: name for name, values in model.named_parameters()}
    every_name = dict(model.named_parameters(remove_duplicate=False))
    aliases = json.dumps(
        {name: first_names[values] for name, values in every_name.items() if name != first_names[values]}
    )
    for measurement in pending:
        samples = list(measurement.samples.samples[trainer.global_rank :: trainer.world_size])
        title = f"Fisher information of {measurement.label}"
        with progress_bar(samples, desc=title, disable=not trainer.is_global_zero) as bar:
            sums = summed_squared_gradients(model, bar)
        means = {}
        for name, values in sums.items():
            total = trainer.strategy.reduce(values, reduce_op="sum")
            assert isinstance(total, Tensor)
            means[name] = total.cpu() / len(measurement.samples.samples)
            if not bool(torch.isfinite(means[name]).all()):
                problem, hint = f"must be finite on {measurement.label}", "Gather it in model.dtype: float32."
                raise ActError(ConfigIssue(f"gradient of {name}", "NaN or infinity", problem, hint))
        if trainer.is_global_zero:
            record = encode_record(measurement.record, means)
            save_tensors(measurement.path, means, {"act": record, ALIASES: aliases})
        trainer.strategy.barrier("Fisher information written")
