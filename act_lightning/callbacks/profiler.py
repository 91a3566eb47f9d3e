"""Activation-difference profiling before fit: which channels differ most on an ability's answer tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PretrainedConfig

from act_lightning.architecture import find_language_model, is_transferred
from act_lightning.callbacks.fisher import FisherInformation
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.checkpoints.files import check_writable
from act_lightning.data.cache import lengths
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.masks import overlap
from act_lightning.profiling.channel_means import ChannelMeans, float64_device
from act_lightning.profiling.gradient_scores import measure_gradients
from act_lightning.profiling.measurement import Measurement, groups, measure_weights, measurements, save
from act_lightning.profiling.pair import Pair
from act_lightning.profiling.placement import PairSettings, open_pair
from act_lightning.profiling.samples import MeasuredScores, Sampling
from act_lightning.profiling.sibling_checks import check_compatibility
from act_lightning.profiling.target import Target, find_target
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.attribution import Attribution
from act_lightning.scorers.scorer import ActivationScorer, WeightScorer
from act_lightning.scores import scores_folder
from act_lightning.training.lightning_compat import isolate_rng, resumes_from_checkpoint
from act_lightning.transfer.selection import partner_channels
from act_lightning.transfer.settings import TransferSettings
from act_lightning.transfer.sources import AbilitySource, source_issues


class ActivationDifferenceProfiler(L.Callback):
    """Measure Δa of every channel between the target and each source, before the training model has weights.

    Δa_i = (1/|T|) Σ_{t∈T} |a_i,t(abl) − a_i,t(trg)| over all answer tokens T (paper §3.1,
    https://arxiv.org/abs/2601.09398). Scores are written to ``<default_root_dir>/scores`` and used again while both
    models, the data and the precision are the same. Every process takes a share of the samples.

    Args:
        sources: The ability models; ``None`` means plain fine-tuning, in which case nothing is done.
        tokens_per_batch: Bound on rows × length of a padded batch, or on the length of a packed row. Batches are of
            samples of like length, at most 2 % of them padding; ``data.packing: true`` packs them instead.
        target: Folder or hub id of the target, for a LightningModule that builds its model in ``configure_model``.
        revision: Revision of that hub id.
        placement: Where the models are meanwhile: ``resident`` on the device; ``offload`` in the host's memory, from
            which each layer comes to the device for its turn in every batch; ``layerwise`` on disk, from which each
            layer comes once for many batches, so that two layers (one of each model) and the hidden states have to
            find room. ``auto``: resident if the device has the memory, else layerwise.
        quantization: ``8bit`` or ``4bit``: compare the pair in that precision, on a GPU, with bitsandbytes. Scores of
            other precisions are not taken for these.
        chunks: Number of chunks of samples, 2 to 16, that scores are kept of beside those of all samples, so that it
            can be told how stable a mask is; 0 for none.
        stop_when_stable: The mean bootstrap overlap of an ability's mask, such as 0.98, at which the rest of its
            samples is left; the mask is the one that the transfer will make, looked at after 64 samples (of 16 chunks),
            128 and so on.
    """

    def __init__(
        self,
        sources: list[AbilitySource] | None = None,
        tokens_per_batch: int = 8192,
        target: str | None = None,
        revision: str | None = None,
        placement: str = "auto",
        quantization: str | None = None,
        chunks: int = 0,
        stop_when_stable: float | None = None,
    ) -> None:
        self.sources = sources
        self.tokens_per_batch = tokens_per_batch
        self.target = target
        self.revision = revision
        self.placement = placement
        self.quantization = quantization
        self.chunks = chunks
        self.stop_when_stable = stop_when_stable
        self.target_digests: list[str] = []
        self.target_folder: Path | None = None
        self._channels: ChannelInventory | None = None

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings, without looking at files."""
        found = source_issues(self.sources)
        if self.tokens_per_batch < 1:
            problem = "must be at least 1"
            found.append(ConfigIssue("profile.tokens_per_batch", self.tokens_per_batch, problem, "Try 8192."))
        return found + self._held.issues() + self.sampling(TransferSettings()).issues()

    @property
    def _held(self) -> PairSettings:
        return PairSettings(self.placement, self.quantization, self.tokens_per_batch)

    def sampling(self, settings: TransferSettings) -> Sampling:
        """In which chunks samples are read, and when to stop, given how a transfer will select."""
        return Sampling(settings, self.chunks, self.stop_when_stable)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Profile before a fit that starts from the beginning and needs scores."""
        if stage != "fit" or self.sources is None:
            return
        if resumes_from_checkpoint(trainer) or is_transferred(find_language_model(pl_module)):
            return
        beside = trainer.callbacks  # type: ignore[attr-defined]
        transfers = [callback for callback in beside if hasattr(callback, "needs_profiling")]
        raise_if_any(self.issues() + [issue for callback in transfers for issue in callback.issues()])
        target = find_target(pl_module, self.target, self.revision)
        self.target_digests, channels = target.digests(), target.inventory()
        self.target_folder = target.folder
        self._channels = channels
        raise_if_any(issue for callback in transfers for issue in callback.selection_issues(channels, self.sources))
        datamodule = getattr(trainer, "datamodule", None)
        for settings in [one.settings for one in transfers if one.needs_profiling] if transfers else [None]:
            self.profile(trainer, pl_module, datamodule, settings)
        if any(callback.needs_fisher for callback in transfers):
            FisherInformation(self.sources, self.target, self.revision).gather(trainer, pl_module, datamodule)

    def channels(self, model: nn.Module) -> ChannelInventory:
        """The target's channels as found before a strategy could flatten its parameters, or else those of ``model``."""
        return self._channels or inventory(model)

    def profile(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        settings: TransferSettings | None = None,
    ) -> None:
        """Measure whatever saved scores do not answer, and write it.

        Args:
            trainer: Its processes and devices are used.
            pl_module: Holds the target, or names it.
            datamodule: Where the samples of abilities are that a source brings no batches of.
            settings: How a transfer will select, which tells what is measured: Δa, unless its selection has a scorer.

        Raises:
            ActError: If a setting, a model, its tokenizer or an ability does not fit; before work begins.
        """
        if self.sources is None:
            return
        raise_if_any(self.issues())
        settings = settings or TransferSettings()
        sampling = self.sampling(settings)
        scorer = settings.scorer or Activation()
        root = scores_folder(Path(trainer.default_root_dir), scorer)
        raise_if_any(check_writable(root, "trainer.default_root_dir"))
        with isolate_rng():  # a loader of the user's own may draw random numbers
            target = find_target(pl_module, self.target, self.revision)
            wanted = measurements(self.sources, target, datamodule, root, scorer, self.quantization, sampling)
            if scorer.needs_samples:
                raise_if_any(
                    issue for one in wanted for issue in sampling.sample_issues(one.label, len(one.samples.samples))
                )
            check_compatibility(target, wanted)
            raise_if_any(self._held.run_issues(trainer.strategy.root_device, target, scorer))
            due = [one for one in wanted if _is_due(one)]
            trainer.strategy.barrier("profiling starts")
            if isinstance(scorer, WeightScorer):
                measure_weights(due, target, scorer, trainer)
            if isinstance(scorer, Attribution):
                measure_gradients(due, target, scorer, sampling, trainer)
            if isinstance(scorer, ActivationScorer):
                for group in groups(due):
                    self._measure(group, target, scorer, sampling, trainer)

    def _measure(
        self,
        group: Sequence[Measurement],
        target: Target,
        scorer: ActivationScorer,
        sampling: Sampling,
        trainer: L.Trainer,
    ) -> None:
        """Load the target and the sources of a group once, and measure all its abilities."""
        device, channels = trainer.strategy.root_device, target.inventory()
        folders = dict.fromkeys(one.folder for one in group)
        match = {folder: target.folder and match_vocabularies(target.folder, folder) for folder in folders}
        with open_pair(target, folders, self._held, trainer) as (pair, config):
            for together in _by_samples(group):
                partners = [partner_channels(channels, match[one.folder] or None) for one in together]
                means = [_new_means(channels, scorer, device, paired, sampling.kept) for paired in partners]
                found = self._measure_ability(together, pair, means, config, channels, sampling, trainer)
                for one, measured in zip(together, found, strict=True):
                    if trainer.is_global_zero:
                        _tell_of_precision(one, channels, measured.scores, partial(sampling.mask, one.source, channels))
                    save(one, channels, measured, trainer)
                trainer.strategy.barrier("scores written")

    def _measure_ability(
        self,
        together: Sequence[Measurement],
        pair: Pair,
        means: Sequence[ChannelMeans],
        config: PretrainedConfig,
        channels: ChannelInventory,
        sampling: Sampling,
        trainer: L.Trainer,
    ) -> list[MeasuredScores]:
        """Let the pair read this process's share of the samples, until the masks of all sources are stable."""
        samples, processes = together[0].samples, trainer.world_size
        title = f"profiling {', '.join(one.label for one in together)}"
        wanted = [(one.folder, its) for one, its in zip(together, means, strict=True)]
        total, found = sum(lengths(samples.samples)), [MeasuredScores(torch.empty(0))]
        with tqdm(total=total, unit="tok", desc=title, disable=not trainer.is_global_zero) as bar:
            for part in sampling.parts(len(samples.samples)):
                mine = (config, self.tokens_per_batch, trainer.global_rank, processes, sampling.kept, part)
                for batch, _ in pair.run(samples.readings(*mine), wanted):
                    done = int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())
                    bar.update(min(done * processes, total - bar.n))  # as many by every process, about
                found = [
                    sampling.judged(one.source, samples, channels, _found(its, part.stop))
                    for one, its in zip(together, means, strict=True)
                ]
                if all(sampling.is_stable(one.overlap) for one in found):
                    break
        return found


def _found(means: ChannelMeans, used: int) -> MeasuredScores:
    """What was found so far, on all processes alike."""
    scores = means.compute().cpu()
    if not means.chunks:
        return MeasuredScores(scores, used=used)
    with means.sync_context():
        return MeasuredScores(scores, means.compute_chunks().cpu(), used)


def _tell_of_precision(
    one: Measurement, channels: ChannelInventory, scores: Tensor, choose: Callable[[Tensor], Tensor]
) -> None:
    """How much of the mask of scores in another precision, which these replace, is selected by these as well."""
    before = one.in_other_precision(channels)
    if before is not None and bool(scores.isfinite().all()):
        precision, others = before
        share = overlap(choose(others), choose(scores))
        rank_zero_info(f"{one.label}: {share:.1%} of the mask in {precision} is that in {one.record.dtype}, too")


def _is_due(one: Measurement) -> bool:
    reason = one.reason_to_measure()
    rank_zero_info(f"{one.label}: " + (f"measuring, {reason}" if reason else f"scores used again ({one.path})"))
    return reason is not None


def _by_samples(group: Sequence[Measurement]) -> list[list[Measurement]]:
    """Measurements on the same samples together: the target runs once for all of them."""
    found: dict[str, list[Measurement]] = {}
    for one in group:
        found.setdefault(one.samples.fingerprint, []).append(one)
    return list(found.values())


def _new_means(
    channels: ChannelInventory,
    scorer: ActivationScorer,
    device: torch.device,
    partners: Mapping[str, Tensor],
    chunks: int,
) -> ChannelMeans:
    """Means whose float64 sums are kept on the device, except on one without float64."""
    means = ChannelMeans(channels, scorer, partners, chunks).to(float64_device(device))
    nothing = torch.empty(0, channels.modules[0].count)
    # A process may get no samples, and torchmetrics would warn then.
    means.update(channels.modules[0].name, nothing, nothing, nothing)
    return means
