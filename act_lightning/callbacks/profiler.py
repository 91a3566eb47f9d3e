"""Activation-difference profiling before fit: which channels differ most on an ability's answer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.architecture import find_language_model
from act_lightning.callbacks.fisher import FisherInformation
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.files import check_writable
from act_lightning.errors import raise_if_any
from act_lightning.profiling.activations import measure_activations
from act_lightning.profiling.gradients import measure_gradients
from act_lightning.profiling.measurement import check_compatibility, find_target, measure_weights, measurements
from act_lightning.profiling.memory import PairSettings
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.attribution import Attribution
from act_lightning.scorers.scorer import ActivationScorer, WeightScorer
from act_lightning.scores import scores_folder
from act_lightning.sections import ProfileSection, TransferSection
from act_lightning.training.lightning_compat import callbacks_of, isolate_rng, resumes_from_checkpoint
from act_lightning.training.together import collective_hook
from act_lightning.transfer.preparation import previous_transfer
from act_lightning.transfer.settings import TransferSettings


class ActivationDifferenceProfiler(ProfileSection, RootWriter):
    """Measure Δa of every channel between the target and each source, before the training model has weights.

    Δa_i = (1/|T|) Σ_{t∈T} |a_i,t(abl) − a_i,t(trg)| over all answer tokens T (paper §3.1,
    https://arxiv.org/abs/2601.09398). Scores are written to ``<default_root_dir>/scores`` and reused while both models,
    the data and the precision are the same. Every process takes a share of the samples.

    Args:
        sources: The ability models; ``None`` means plain fine-tuning, and nothing is done.
        tokens_per_batch: Bound on rows × length of a padded batch, or on the length of a packed row. Batches hold
            samples of similar length, at most 2 % of them padding; ``data.packing: true`` packs them instead.
        target: Folder or hub id of the target, for a LightningModule that builds its model in ``configure_model``.
        revision: Revision of that hub id.
        placement: Where the models are: ``resident`` on the device; ``offload`` in the host's memory, from where each
            layer is copied to the device for every batch; ``layerwise`` on disk, from where each layer is read once for
            many batches, so that the device needs room for two layers (one of each model) and the hidden states only.
            ``auto``: resident if the device has the memory, else layerwise.
        quantization: ``8bit`` or ``4bit``: compare the pair in that precision, on a GPU, with bitsandbytes. Scores of
            other precisions are not reused.
        chunks: Number of chunks of samples, 2 to 16, for which scores are saved as well, to measure how stable a mask
            is; 0 for none.
        stop_when_stable: The mean bootstrap overlap of an ability's mask, such as 0.98, at which its remaining samples
            are skipped. The mask is the one that the transfer will make; it is checked after 64 samples (of 16 chunks),
            128 and so on.

    Attributes:
        target_digests: Digests under which the target's weights are known, once a fit is set up.
        target_folder: The target's checkpoint, if there is one.
        target_channels: The target's channels, from before a strategy could flatten its parameters.
    """

    target_digests: Sequence[str] = ()
    target_folder: Path | None = None
    target_channels: ChannelInventory | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Profile before a fit that starts from the beginning and needs scores."""
        if stage != "fit" or self.sources is None:
            return
        super().setup(trainer, pl_module, stage)
        if resumes_from_checkpoint(trainer) or previous_transfer(find_language_model(pl_module)):
            return
        transfers = callbacks_of(trainer, TransferSection)
        raise_if_any(self.issues() + [issue for transfer in transfers for issue in transfer.issues()])
        target = find_target(pl_module, self.target, self.revision)
        channels = target.inventory()
        self.target_digests, self.target_folder, self.target_channels = target.digests(), target.folder, channels
        raise_if_any(issue for transfer in transfers for issue in transfer.selection_issues(channels, self.sources))
        datamodule = getattr(trainer, "datamodule", None)
        if not transfers:
            self.profile(trainer, pl_module, datamodule)
        for transfer in transfers:
            if transfer.needs_profiling:
                self.profile(trainer, pl_module, datamodule, transfer.settings)
        if any(transfer.settings.needs_fisher for transfer in transfers):
            FisherInformation(self.sources, self.target, self.revision).gather(trainer, pl_module, datamodule)

    @collective_hook
    def profile(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        settings: TransferSettings | None = None,
    ) -> None:
        """Measure and write all scores that are not saved yet.

        Args:
            trainer: Provides processes, devices and the folder.
            pl_module: Holds the target, or names it.
            datamodule: Holds the samples of abilities, except those for which a source brings its own batches.
            settings: How a transfer will select, which decides what is measured: Δa, unless its selection has another
                scorer.

        Raises:
            ActError: A setting, a model, its tokenizer or an ability is invalid; before work begins.
        """
        if self.sources is None:
            return
        raise_if_any(self.issues())
        settings = settings or TransferSettings()
        sampling = self.sampling(settings)
        scorer = settings.scorer or Activation()
        root = scores_folder(Path(trainer.default_root_dir), scorer)
        raise_if_any(check_writable(root, "trainer.default_root_dir"))
        with isolate_rng():  # a user's loader may draw random numbers
            target = find_target(pl_module, self.target, self.revision)
            required = measurements(self.sources, target, datamodule, root, scorer, self.quantization, sampling)
            check_compatibility(target, required)
            pair_settings = PairSettings(self.placement, self.quantization, self.tokens_per_batch)
            raise_if_any(pair_settings.run_issues(trainer.strategy.root_device, target, scorer))
            pending = []
            for measurement in required:
                if reason := measurement.reason_to_measure():
                    pending.append(measurement)
                    rank_zero_info(f"{measurement.label}: measuring, {reason}")
                else:
                    again = f"scores used again ({measurement.path}), by a quick check of the weights"
                    rank_zero_info(f"{measurement.label}: {again}")
            if trainer.is_global_zero:  # which writes the records
                pending = [measurement.with_file_hashes(target) for measurement in pending]
            trainer.strategy.barrier("profiling starts")
            if isinstance(scorer, WeightScorer):
                measure_weights(pending, target, scorer, trainer)
            if isinstance(scorer, Attribution):
                measure_gradients(pending, target, scorer, sampling, pair_settings, trainer)
            if isinstance(scorer, ActivationScorer):
                measure_activations(pending, target, scorer, sampling, pair_settings, trainer)
