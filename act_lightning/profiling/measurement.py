"""The target before training, and what is to be measured: a source and an ability, unless saved scores answer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import lightning as L
import torch
import transformers
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from act_lightning import __version__
from act_lightning.architecture import evaluating, find_language_model, has_weights
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.compatibility import (
    match_vocabularies,
    pair_issues,
    sibling_issues,
    token_id_issues,
    tokenizer_issues,
)
from act_lightning.checkpoints.model_spec import model_spec, read_model_spec
from act_lightning.checkpoints.models import load_tokenizer, locate, meta_model, resolve_dtype
from act_lightning.checkpoints.reader import CheckpointReader, load_on_device
from act_lightning.checkpoints.weight_delta import ModelRows, Rows, channel_sums
from act_lightning.checkpoints.weight_files import Identity, identify, identify_module, read_headers
from act_lightning.data.cache import answer_tokens, largest_id
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.profiling.samples import NO_SAMPLES, AbilitySamples, MeasuredScores, Sampling, ability_samples
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import Scorer, WeightScorer
from act_lightning.scores import (
    ChunkScores,
    ScoreRecord,
    chunks_path,
    read_chunk_sizes,
    read_record,
    require_difference,
    require_finite,
    score_path,
    write_chunks,
    write_scores,
)
from act_lightning.transfer.settings import AbilitySource


@dataclass(frozen=True)
class Target:
    """Where the target's original weights are.

    Attributes:
        name: How the user named it.
        folder: Its checkpoint, if there is one.
        model: The model in memory, if it is there; otherwise the checkpoint is loaded.
        dtype: Precision in which the pair is compared.
    """

    name: str
    folder: Path | None
    model: PreTrainedModel | None
    dtype: torch.dtype

    def skeleton(self) -> PreTrainedModel:
        """The model in memory, or one without weights."""
        if self.model is not None:
            return self.model
        assert self.folder is not None
        return meta_model(self.folder)

    def inventory(self) -> ChannelInventory:
        """The target's channels."""
        return inventory(self.skeleton())

    def identity(self) -> Identity:
        """The identity of the weights that are compared."""
        if self.model is not None:
            return identify_module(self.model)
        assert self.folder is not None
        return identify(self.folder)

    def digests(self) -> list[str]:
        """Digests of these weights: in memory, and as the checkpoint that the user names."""
        in_folder = [identify(self.folder).digest] if self.folder is not None else []
        return [self.identity().digest, *in_folder]

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """The original weights, read some rows at a time."""
        if self.model is not None:
            yield ModelRows(self.model)
        else:
            assert self.folder is not None
            with CheckpointReader(self.folder) as reader:
                yield reader

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[PreTrainedModel]:
        """The target on ``device`` in evaluation mode; afterwards, a model in memory is where and as it was."""
        model = self.model
        if model is None:
            assert self.folder is not None
            yield load_on_device(self.folder, self.dtype, device)
            return
        original_device = next(model.parameters()).device
        try:
            with evaluating(model):
                yield nn.Module.to(model, device)
        finally:
            nn.Module.to(model, original_device)


def named_checkpoint(
    module: nn.Module, target: str | None = None, revision: str | None = None
) -> tuple[str | None, str | None]:
    """The checkpoint and its revision: those given, or else those that an ``AbilityTransferModule`` names.

    That class stands above this room, so its attribute ``weights_dtype`` identifies it: a ``target`` of any other
    module may mean anything.
    """
    if target is not None:
        return target, revision
    if not hasattr(module, "weights_dtype"):
        return None, None
    return getattr(module, "target", None), getattr(module, "revision", None)


def find_target(module: nn.Module, target: str | None, revision: str | None) -> Target:
    """The target of ``module``: its weights if it has them, else the checkpoint named by ``target``.

    Args:
        module: A LightningModule. One that builds its model in ``configure_model`` has no weights yet; if it is an
            ``AbilityTransferModule``, it names its checkpoint. One whose ``weights_unmodified`` is true (as ours after
            a test, or where weights are averaged) holds the checkpoint's weights in the precision of training, so that
            the checkpoint is compared.
        target: Folder or hub id given to the profiler.
        revision: Revision of the hub id.

    Raises:
        ActError: If there are neither weights nor a name.
    """
    name, revision = named_checkpoint(module, target, revision)
    folder = None if name is None else locate(name, revision)
    model = find_language_model(module)
    if model is not None and has_weights(model) and not getattr(module, "weights_unmodified", False):
        return Target(str(name or model.name_or_path or type(model).__name__), folder, model, model.dtype)
    if folder is None:
        problem = "must hold one causal language model of transformers before fit, or the profiler must name one"
        hint = "Give ActivationDifferenceProfiler(target=...) the folder or hub id that configure_model loads."
        raise ActError(ConfigIssue("LightningModule", type(module).__name__, problem, hint))
    return Target(str(name), folder, None, resolve_dtype(getattr(module, "weights_dtype", "auto"), folder))


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Measurement:
    """The scores of one ability of one source, to be measured or used again.

    Attributes:
        folder: The source's checkpoint.
        samples: The samples that scores are measured on.
        record: The record of a new measurement.
        path: The score file.
        keep: The samples of abilities that are not to be lost, for a scorer that reads these as well.
        chunks: Number of chunks that scores are kept of, too.
    """

    source: AbilitySource
    folder: Path
    ability: str
    samples: AbilitySamples
    record: ScoreRecord
    path: Path
    keep: Mapping[str, AbilitySamples] = field(default_factory=dict)
    chunks: int = 0

    @property
    def label(self) -> str:
        """``source/ability``."""
        return f"{self.source.label}/{self.ability}"

    def with_file_hashes(self, target: Target) -> Measurement:
        """The same, whose record has the SHA-256 of whole weight files, of those models that are measured from disk."""
        folders = {"source": self.folder}
        if target.model is None and target.folder is not None:
            folders["target"] = target.folder
        identities = {role: dict(identity) for role, identity in self.record.identities.items()}
        for role, folder in folders.items():
            identities[role]["sha256"] = identify(folder, verify=True).sha256
        return replace(self, record=replace(self.record, identities=identities))

    def reason_to_measure(self) -> str | None:
        """Why saved scores cannot be used, or ``None`` if they can."""
        if not self.path.exists():
            return "no saved scores"
        try:
            changes = read_record(self.path).changes(self.record)
            if changes or not self.chunks:
                return "; ".join(changes) or None
            if not chunks_path(self.path).exists():
                return "no scores of chunks"
            changes = read_record(chunks_path(self.path)).changes(self.record)
            count = len(read_chunk_sizes(self.path)[0])
            return "; ".join(changes) or (None if count == self.chunks else f"chunks were {count}, are {self.chunks}")
        except ActError as error:
            return str(error)


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
        target: The model that they are compared with.
        datamodule: Has the samples of abilities for sources without batches of their own.
        root: The folder of the scores.
        scorer: What is measured; by default the paper's rule.
        quantization: ``8bit`` or ``4bit``, if both models are quantized.
        sampling: In which chunks samples are read, and when to stop; by default all at once.

    Raises:
        ActError: If a model or an ability is not there, or an ability has fewer samples than chunks.
    """
    scorer = scorer or Activation()
    target_identity = asdict(target.identity())
    precision = str(target.dtype).removeprefix("torch.")
    if quantization is not None and scorer.needs_samples:
        precision += f", {quantization}"
    versions = {"act_lightning": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    chunks = sampling.chunk_count if sampling and scorer.needs_samples else 0
    cache: dict[tuple[int | None, str], AbilitySamples] = {}
    result, issues = [], []
    for i, source in enumerate(sources):
        folder = locate(source.model, source.revision, f"profile.sources[{i}].model", adapters=True)
        identities = {"target": target_identity, "source": asdict(identify(folder))}
        samples_of: dict[str, AbilitySamples] = {}
        for ability in [*scorer.keep, *(source.abilities if scorer.needs_samples else ())]:
            key = (i if source.loaders else None, ability)
            if key not in cache:
                cache[key] = ability_samples(source, ability, datamodule)
            samples_of[ability] = cache[key]
        keep = {name: samples_of[name] for name in scorer.keep}
        for ability in source.abilities:
            samples = samples_of[ability] if scorer.needs_samples else NO_SAMPLES
            record = ScoreRecord(
                tokens=answer_tokens(samples.samples),
                samples=len(samples.samples),
                dropped=samples.dropped,
                models={"target": target.name, "source": source.model},
                identities=identities,
                data=samples.fingerprint,
                dtype=precision,
                versions=versions,
                scorer=scorer.record(),
                keep={name: others.fingerprint for name, others in keep.items()},
                stability=sampling.record(source) if sampling and scorer.needs_samples else {},
            )
            path = score_path(root, source.label, ability)
            measurement = Measurement(source, folder, ability, samples, record, path, keep, chunks)
            result.append(measurement)
            if record.samples < chunks:
                problem = f"must not be more than the {record.samples} samples of {measurement.label}"
                hint = "Lower it, or read all samples (stop_when_stable: null)."
                issues.append(ConfigIssue("profile.chunks", chunks, problem, hint))
    raise_if_any(issues)
    return result


def check_compatibility(target: Target, compared: Sequence[Measurement]) -> None:
    """Check every source against the target before any model is loaded: architecture, shapes, token ids.

    Raises:
        ActError: With all issues of the weights, or else of the tokenizers.
    """
    names = {measurement.folder: measurement.source.model for measurement in reversed(compared)}
    issues: list[ConfigIssue] = []
    for folder in dict.fromkeys(measurement.folder for measurement in compared):
        read_headers(folder, names[folder])
        issues += _weight_issues(target, folder, names[folder])
    raise_if_any(issues)
    for measurement in compared:
        samples, folders = measurement.samples.samples, (target.folder, measurement.folder)
        if not samples or target.folder is None:
            continue  # weights alone are compared, or nothing says which tokenizer made the user's batches
        has_tokenizer = (any((folder / name).is_file() for name in _TOKENIZER_FILES) for folder in folders if folder)
        if measurement.ability in measurement.source.loaders and not all(has_tokenizer):
            continue
        tokenizer, source_tokenizer = load_tokenizer(target.folder), load_tokenizer(measurement.folder)
        texts = (sample.text or str(tokenizer.decode(sample.input_ids)) for sample in samples)
        issues += tokenizer_issues(tokenizer, source_tokenizer, texts, False, measurement.source.model)
    raise_if_any(issues)
    for measurement in compared:
        if measurement.samples.samples:
            largest = largest_id(measurement.samples.samples)
            read_by = [folder for folder in (target.folder, measurement.folder) if folder is not None]
            issues += [issue for folder in read_by for issue in token_id_issues(largest, folder, measurement.label)]
    raise_if_any(issues)


def _weight_issues(target: Target, source: Path, name: str) -> list[ConfigIssue]:
    """What keeps the weights of ``source`` from being moved into the target."""
    if target.model is None and target.folder is not None:
        return sibling_issues(target.folder, source, name)
    target_spec = model_spec(target.skeleton(), None, target.name)
    source_spec = read_model_spec(source)
    issues = pair_issues(target_spec, source_spec, name, "profile.sources")
    if issues or target.folder is not None:
        return issues
    resized = [entry for entry in target_spec.vocabulary if target_spec.shapes[entry] != source_spec.shapes[entry]]
    if not resized:
        return []
    problem = f"must have a vocabulary of the target's size, whose tokens no folder tells: {', '.join(resized)} differ"
    hint = "Give ActivationDifferenceProfiler(target=...) the target's folder."
    return [ConfigIssue("profile.sources", name, problem, hint)]


def save(measurement: Measurement, channels: ChannelInventory, measured: MeasuredScores, trainer: L.Trainer) -> None:
    """Write scores on the first process, after all processes have checked them; those of chunks first.

    Raises:
        ActError: On all processes, so that none waits for one that has stopped, if a score is NaN or infinite, or all
            are zero.
    """
    require_finite(measurement.path, channels, measured.scores)
    require_difference(measurement.path, measured.scores, measurement.record)
    record, total = measurement.record, len(measurement.samples.samples)
    if measured.overlap is not None:
        stability = {**record.stability, "overlap": round(measured.overlap, 4)}
        record = replace(record, stability=stability)
        if measured.used != total:
            tokens = sum(measurement.samples.chunk_sizes(1, measured.used)[0])
            record = replace(record, samples=measured.used, tokens=tokens, stability={**stability, "of": total})
            rank_zero_info(
                f"{measurement.label}: stopped after {measured.used} of {total} samples,"
                f" at a bootstrap overlap of {measured.overlap:.1%}"
            )
    if not trainer.is_global_zero:
        return
    if measured.chunks is not None:
        sizes = measurement.samples.chunk_sizes(len(measured.chunks), measured.used)
        write_chunks(measurement.path, channels, ChunkScores(measured.chunks, *sizes), record)
    write_scores(measurement.path, channels, measured.scores, record, measured.usage)


def measure_weights(pending: Sequence[Measurement], target: Target, scorer: WeightScorer, trainer: L.Trainer) -> None:
    """Measure each source once, and write its scores for each of its abilities.

    One process reads; the others wait for it.

    Raises:
        ActError: If a weight or a score is NaN or infinite, or all scores of a source are zero.
    """
    if trainer.is_global_zero:
        channels = target.inventory()
        for folder in dict.fromkeys(measurement.folder for measurement in pending):
            match = match_vocabularies(target.folder, folder) if target.folder else None
            with target.rows() as target_rows, CheckpointReader(folder) as source_rows:
                sums = channel_sums(scorer.values, target_rows, source_rows, channels, match)
            scores = scorer.finish(sums, channels.sizes()).float()
            for measurement in (measurement for measurement in pending if measurement.folder == folder):
                require_difference(measurement.path, scores, measurement.record)
                write_scores(measurement.path, channels, scores, measurement.record)
    trainer.strategy.barrier("scores written")
