"""What is to be measured: a source and an ability with its samples, unless saved scores already answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import lightning as L
import torch
import transformers
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from act_lightning import __version__
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.checkpoints.models import locate
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_delta import channel_sums
from act_lightning.checkpoints.weight_files import identify
from act_lightning.errors import ActError
from act_lightning.profiling.samples import NO_SAMPLES, AbilitySamples, MeasuredScores, Sampling, ability_samples
from act_lightning.profiling.target import Target
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import Scorer, WeightScorer
from act_lightning.scores import (
    ChunkScores,
    ScoreRecord,
    chunks_path,
    read_chunk_sizes,
    read_record,
    read_scores,
    require_finite,
    score_path,
    write_chunks,
    write_scores,
)
from act_lightning.transfer.settings import AbilitySource


@dataclass(frozen=True)
class Measurement:
    """The scores of one ability of one source, to be measured or used again.

    Attributes:
        source: The source.
        folder: Its checkpoint.
        ability: The ability.
        samples: The samples it is measured on.
        record: What a new measurement would be recorded as.
        path: Where its scores stand.
        kept: The samples of abilities that are not to be lost, for a scorer that reads these as well.
        chunks: Number of chunks that scores are kept of, too.
    """

    source: AbilitySource
    folder: Path
    ability: str
    samples: AbilitySamples
    record: ScoreRecord
    path: Path
    kept: Mapping[str, AbilitySamples] = field(default_factory=dict)
    chunks: int = 0

    @property
    def label(self) -> str:
        """``source/ability``."""
        return f"{self.source.label}/{self.ability}"

    def reason_to_measure(self) -> str | None:
        """Why saved scores cannot be used, or ``None`` if they can."""
        if not self.path.exists():
            return "no saved scores"
        try:
            changes = read_record(self.path).changes(self.record)
            return "; ".join(changes) or self._reason_in_chunks()
        except ActError as error:
            return str(error)

    def in_other_precision(self, channels: ChannelInventory) -> tuple[str, Tensor] | None:
        """The precision of saved scores that differ in nothing else from those wanted, and these scores."""
        try:
            saved, wanted = read_record(self.path), self.record
            if saved.dtype == wanted.dtype or replace(saved, dtype=wanted.dtype).changes(wanted):
                return None
            return saved.dtype, read_scores(self.path, channels)
        except ActError:
            return None

    def _reason_in_chunks(self) -> str | None:
        if not self.chunks:
            return None
        if not chunks_path(self.path).exists():
            return "no scores of chunks"
        changes = read_record(chunks_path(self.path)).changes(self.record)
        count = len(read_chunk_sizes(self.path)[0])
        return "; ".join(changes) or (None if count == self.chunks else f"chunks were {count}, are {self.chunks}")


def measurements(
    sources: Sequence[AbilitySource],
    target: Target,
    datamodule: object,
    root: Path,
    scorer: Scorer | None = None,
    quantization: str | None = None,
    sampling: Sampling | None = None,
) -> list[Measurement]:
    """One measurement for each ability of each source, in order.

    Args:
        sources: The ability models.
        target: The target.
        datamodule: Where the samples of abilities are that a source brings no batches of.
        root: The folder of the scores.
        scorer: What is measured; by default the paper's score.
        quantization: The bits to which both models are quantized, such as ``4bit``.
        sampling: In which chunks samples are read, and when to stop; by default all at once.
    """
    scorer = scorer or Activation()
    identity, found = asdict(target.identity()), []
    samples: dict[tuple[int | None, str], AbilitySamples] = {}
    for i, source in enumerate(sources):
        folder = locate(source.model, source.revision, f"profile.sources[{i}].model")
        identities = {"target": identity, "source": asdict(identify(folder))}

        def read(ability: str, source: AbilitySource = source, number: int = i) -> AbilitySamples:
            key = (number if source.loaders else None, ability)
            if key not in samples:
                samples[key] = ability_samples(source, ability, datamodule)
            return samples[key]

        kept = {name: read(name) for name in scorer.keep}
        for ability in source.abilities:
            its = read(ability) if scorer.needs_samples else NO_SAMPLES
            record = _record(target, source, identities, its, quantization if scorer.needs_samples else None)
            record = replace(record, scorer=scorer.record(), keep=_digests(kept))
            path, chunks = score_path(root, source.label, ability), 0
            if sampling is not None and scorer.needs_samples:
                record, chunks = replace(record, stability=sampling.planned(source)), sampling.kept
            found.append(Measurement(source, folder, ability, its, record, path, kept, chunks))
    return found


def _digests(kept: Mapping[str, AbilitySamples]) -> dict[str, str]:
    return {name: its.fingerprint for name, its in kept.items()}


def _record(
    target: Target,
    source: AbilitySource,
    identities: dict[str, dict[str, object]],
    samples: AbilitySamples,
    quantization: str | None,
) -> ScoreRecord:
    precision = str(target.dtype).removeprefix("torch.")
    return ScoreRecord(
        tokens=samples.tokens,
        samples=len(samples.samples),
        dropped=samples.dropped,
        models={"target": target.name, "source": source.model},
        identities=identities,
        data=samples.fingerprint,
        dtype=precision if quantization is None else f"{precision}, {quantization}",
        versions={"act_lightning": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    )


def save(one: Measurement, channels: ChannelInventory, found: MeasuredScores, trainer: L.Trainer) -> None:
    """Write scores on the first process, when all of them have looked at these; those of chunks first.

    Args:
        one: What was measured.
        channels: The channels of the target.
        found: What was found.
        trainer: Its processes.

    Raises:
        ActError: On all processes, so that none waits for one that has stopped, if a score is NaN or infinite.
    """
    require_finite(one.path, channels, found.scores)
    record = _finished(one, found)
    if record.stability.get("of"):
        rank_zero_info(
            f"{one.label}: stopped after {found.used} of {len(one.samples.samples)} samples,"
            f" at a bootstrap overlap of {found.overlap:.1%}"
        )
    if not trainer.is_global_zero:
        return
    if found.chunks is not None:
        sizes = one.samples.chunk_sizes(len(found.chunks), found.used)
        write_chunks(one.path, channels, ChunkScores(found.chunks, *sizes), record)
    write_scores(one.path, channels, found.scores, record)


def _finished(one: Measurement, found: MeasuredScores) -> ScoreRecord:
    """The record of what was really read."""
    total = len(one.samples.samples)
    if found.overlap is None:
        return one.record
    stability = {**one.record.stability, "overlap": round(found.overlap, 4)}
    if found.used == total:
        return replace(one.record, stability=stability)
    tokens = sum(one.samples.chunk_sizes(1, found.used)[0])
    return replace(one.record, samples=found.used, tokens=tokens, stability={**stability, "of": total})


def groups(due: Sequence[Measurement]) -> list[list[Measurement]]:
    """Measurements whose sources should be in memory together: those that share an ability's samples."""
    found: list[list[Measurement]] = []
    for one in due:
        related = [group for group in found if any(_together(one, other) for other in group)]
        found = [group for group in found if group not in related]
        found.append([*(other for group in related for other in group), one])
    return found


def _together(one: Measurement, other: Measurement) -> bool:
    return one.source is other.source or one.samples.fingerprint == other.samples.fingerprint


def measure_weights(due: Sequence[Measurement], target: Target, scorer: WeightScorer, trainer: L.Trainer) -> None:
    """Measure each source once, and write its scores for each of its abilities.

    One process reads; the others wait for it.

    Raises:
        ActError: On all processes, if a weight or a score is NaN or infinite.
    """
    failed = None
    if trainer.is_global_zero:
        try:
            for folder in dict.fromkeys(one.folder for one in due):
                scores = _scores(target, folder, scorer)
                for one in due:
                    if one.folder == folder:
                        write_scores(one.path, target.inventory(), scores, one.record)
        except ActError as error:
            failed = error.issues
    failed = trainer.strategy.broadcast(failed)
    if failed:
        raise ActError(*failed)


def _scores(target: Target, folder: Path, scorer: WeightScorer) -> Tensor:
    """float32 ``[channels]``."""
    channels, match = target.inventory(), target.folder and match_vocabularies(target.folder, folder)
    with target.rows() as ours, CheckpointReader(folder) as theirs:
        sums = channel_sums(scorer.values, ours, theirs, channels, match or None)
    return scorer.finish(sums, channels.sizes()).float()
