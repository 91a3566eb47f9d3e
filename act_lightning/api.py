"""ACT in Python: score channels, select some of them, and move their weights from a sibling model.

>>> import act_lightning as act
>>> scores = act.score(target, source, batches)  # doctest: +SKIP
>>> moved = act.merge_(target, source, scores.select(ratio=0.01), scale=0.4)  # doctest: +SKIP

The numbers are those of the verbs ``profile`` and ``merge``, to the bit with the same number of CPU threads: both run
the same code.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.analysis.saved import saved_channels
from act_lightning.architecture import module_type
from act_lightning.cards.card import new_card, rebuild_card
from act_lightning.cards.record import CARD
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.checkpoints.export import FileContent, output_issues
from act_lightning.checkpoints.files import no_wider_than, write_file
from act_lightning.checkpoints.models import locate, meta_model
from act_lightning.checkpoints.streaming import merge_checkpoint
from act_lightning.checkpoints.weight_files import identify, identify_module
from act_lightning.defaults import EVERY_MODULE, RATIO, SCALE, SEED
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.merging import merging_method
from act_lightning.merging.method import MergingMethod
from act_lightning.scorers.scorer import Scorer
from act_lightning.scores import ScoreRecord, read_record, read_scores, score_path, scores_folder, write_scores
from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.preparation import count_by_type, layer_of, transfer_report
from act_lightning.transfer.selection import SelectedSource, drop_unmatched, select
from act_lightning.transfer.settings import AbilitySource, Scope, Share, TransferSettings, scale_issues
from act_lightning.transfer.summary import (
    describe_selection,
    rounding_issues,
    score_issues,
    stability_issues,
    vocabulary_issues,
    with_outcome,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Model = PreTrainedModel | str | Path
"""A causal language model in memory, its folder, or a hub id."""
_ABILITY = "ability"


@dataclass(frozen=True)
class Scores:
    """What the channels of a target are ranked by, for one source and one ability.

    Attributes:
        channels: The target's channels, in the model's order.
        values: float32 ``[channels]``.
        record: What they were measured on.
        scorer: What they measure; ``activation`` is the paper's rule, Δa.
    """

    channels: ChannelInventory
    values: Tensor
    record: ScoreRecord
    scorer: str | Scorer = "activation"

    def select(
        self,
        ratio: float | Fraction = RATIO,
        *,
        share: Share = "channels",
        scope: Scope = "global",
        include: Sequence[str] = EVERY_MODULE,
        exclude: Sequence[str] = (),
    ) -> Mask:
        """The channels with the highest scores; the arguments are the settings of section ``transfer``.

        Warns of a mask that is worth little, as the verbs do: mostly head or embedding, or of too few answer tokens.

        Raises:
            ActError: A setting is wrong, a pattern matches no module, nothing is selected, or all scores are zero.
        """
        settings = TransferSettings(ratio, share, selection=self.scorer, scope=scope, include=include, exclude=exclude)
        raise_if_any(settings.issues("select"))
        if share == "parameters" and not self.channels.parameters:
            hint = "Name the model: Scores.load(path, target=…)."
            raise ActError(ConfigIssue("select.share", share, "needs the shapes of the target's parameters", hint))
        if not bool(self.values.any()):
            problem, hint = "must hold a score other than zero; target and source act alike", "Compare two that differ."
            raise ActError(ConfigIssue("scores", self.record.models, problem, hint))
        mask = select(self.channels, {_ABILITY: self.values}, ratio, settings, ())[_ABILITY]
        label, scorer = AbilitySource(self.record.models.get("source", "?"), [_ABILITY]).label, settings.scorer
        ranked = self.values if scorer is None else scorer.ranked(self.values, self.channels)
        issues = vocabulary_issues(self.channels, mask, settings, label) + score_issues(ranked, mask, label)
        _warn(issues + stability_issues(self.record, label))
        return Mask(self, mask, ratio)

    def to_frame(self) -> pd.DataFrame:
        """One row per channel: ``module``, ``layer`` ("none" outside), ``module_type``, ``channel``, ``score``."""
        import pandas as pd

        parts = []
        for module, span in self.channels.spans():
            place = {"module": module.name, "layer": layer_of(module.name)}
            numbers = {"channel": range(module.count), "score": self.values[span].numpy()}
            parts.append(pd.DataFrame({**place, "module_type": module_type(module.name), **numbers}))
        return pd.concat(parts, ignore_index=True)

    def plot_ccdf(self, ratio: float = RATIO) -> Figure:
        """The share of channels above every score, on logarithmic axes, with the top ``ratio`` marked (Figure 1a)."""
        from act_lightning.analysis.distribution import ccdfs
        from act_lightning.analysis.figures.findings import ability_colors, ccdf_figure

        name = self.record.models.get("source", "scores")
        return ccdf_figure(ccdfs({name: self.values}), ability_colors({name: ""}), ratio)

    def save(self, path: str | Path) -> None:
        """Write a score file as ``profile`` writes it, which ``transfer.scores`` reads."""
        write_scores(Path(path), self.channels, self.values, self.record)

    @classmethod
    def load(cls, path: str | Path, target: Model | None = None) -> Scores:
        """Read a score file.

        Args:
            path: ``<scores>/<source>/<ability>.safetensors``.
            target: The model that was scored, needed to select a share of parameters.

        Raises:
            ActError: The file cannot be read, or holds scores of other modules than the target's.
        """
        channels = saved_channels(Path(path))[0] if target is None else inventory(_skeleton(target))
        record = read_record(Path(path))
        return cls(channels, read_scores(Path(path), channels), record, str(record.scorer["name"]))


@dataclass(frozen=True, repr=False)
class Mask:
    """Selected channels.

    Attributes:
        scores: What they were ranked by.
        selected: Bool ``[channels]``.
        ratio: p.
    """

    scores: Scores
    selected: Tensor
    ratio: float | Fraction

    def __len__(self) -> int:
        """How many channels are selected."""
        return int(self.selected.sum())

    def __repr__(self) -> str:
        """What is selected, by type of module."""
        channels = self.scores.channels
        counts, parameters = count_by_type(channels, self.selected)
        share = channels.count_elements(self.selected) / max(1, channels.parameters)
        return f"<Mask: {describe_selection(counts, parameters, share)}>"

    def __or__(self, other: Mask) -> Mask:
        """The union of the masks of two abilities (paper §4.2)."""
        return replace(self, selected=self.selected | other.selected)

    def to_frame(self) -> pd.DataFrame:
        """The rows of :meth:`Scores.to_frame` that are selected."""
        return self.scores.to_frame()[self.selected.numpy()]


def score(
    target: Model,
    source: Model,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    scorer: str | Scorer = "activation",
    tokens_per_batch: int = 8192,
) -> Scores:
    """Score every channel of ``target`` by how it differs from ``source`` on an ability's answer tokens (paper §3.1).

    Δa_i = (1/|T|) Σ_{t∈T} |a_i,t(source) − a_i,t(target)|, on one device: the accelerator, if there is one.

    Args:
        target: The model to be improved; one in memory is left as it is.
        source: Its sibling that has the ability.
        batches: Dicts of ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[rows, length]``; positions whose
            label is not −100 are answer tokens.
        scorer: The name of any selection that ranks by scores, such as ``attribution``, or a scorer.
        tokens_per_batch: Bound on rows × length of what is read at once.

    Raises:
        ActError: The models are no siblings, a batch has no answer tokens, or a score is not finite.
    """
    import lightning as L

    from act_lightning.callbacks.profiler import ActivationDifferenceProfiler

    settings = TransferSettings(selection=scorer)
    raise_if_any(settings.issues("score"))
    if settings.scorer is None:
        hint = "Select with a mask of your own, or by a scorer."
        raise ActError(ConfigIssue("scorer", str(scorer), "must be a selection that ranks by scores", hint))
    with _folder(source) as folder, TemporaryDirectory() as root:
        ability_source = AbilitySource(str(folder), {_ABILITY: batches}, name="source")
        name = None if isinstance(target, PreTrainedModel) else str(target)
        profiler = ActivationDifferenceProfiler([ability_source], tokens_per_batch, name)
        silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = L.Trainer(devices=1, default_root_dir=root, **silent)  # type: ignore[arg-type]
        module = L.LightningModule()
        if isinstance(target, PreTrainedModel):
            module.model = target
        trainer.strategy.setup_environment()
        profiler.profile(trainer, module, settings=settings)
        path = score_path(scores_folder(Path(root), settings.scorer), "source", _ABILITY)
        channels, record = inventory(_skeleton(target)), read_record(path)
        names = {"target": _name(target), "source": _name(source)}
        return Scores(channels, read_scores(path, channels), replace(record, models=names), scorer)


def merge_(
    target: PreTrainedModel,
    source: Model,
    mask: Mask,
    *,
    scale: float = SCALE,
    method: str | MergingMethod = "task_arithmetic",
    seed: int = SEED,
) -> dict[str, Any]:
    """Move the selected channels of ``source`` into ``target``, in place: θ + λ (θ_source − θ) · mask (paper §4.3).

    Args:
        target: A model in memory, on any device.
        source: Its sibling.
        mask: From scores of the same target.
        scale: λ.
        method: A merging method, by name or with settings of its own.
        seed: Of methods that draw.

    Returns:
        What moved, as in ``transfer.json``.

    Raises:
        ActError: A setting is wrong, the models are no siblings, or a value is not finite.
    """
    channels = inventory(target)
    with _folder(source) as folder:
        selected = _selected(channels, source, folder, mask, scale)
        hashes = {"target": identify_module(target).digest, selected.name: identify(folder).digest}
        parameters = dict(target.named_parameters(remove_duplicate=False))
        with MaskedInjection(channels, [selected], merging_method(method), seed, scale) as injection:
            for name in injection.names:
                injection.apply_(name, parameters[name].data)
    settings = TransferSettings(selection=mask.scores.scorer, method=method)
    _warn(issues := rounding_issues(injection.rounding))
    return with_outcome(transfer_report(channels, [selected], settings, seed, hashes), injection.rounding, issues)


def merge(
    target: str | Path,
    source: Model,
    mask: Mask,
    *,
    out: str | Path,
    scale: float = SCALE,
    method: str | MergingMethod = "task_arithmetic",
    seed: int = SEED,
    overwrite: bool = False,
) -> dict[str, Any]:
    """As :func:`merge_`, from disk to disk: read lazily, a few rows in memory at a time.

    Args:
        target: A folder or hub id.
        source: Its sibling.
        mask: From scores of the same target.
        out: The folder of the result, which holds the target's files, a card and ``transfer.json``, too.
        scale: λ.
        method: A merging method, by name or with settings of its own.
        seed: Of methods that draw.
        overwrite: Whether an earlier export in ``out`` may be replaced, once the new one is complete.

    Returns:
        What moved, as in ``transfer.json``.

    Raises:
        ActError: As :func:`merge_`; or ``out`` holds something else, or the disk is full.
    """
    target_folder, out = locate(str(target)), Path(out)
    channels = inventory(meta_model(target_folder))
    with _folder(source) as folder:
        raise_if_any(output_issues(out, target_folder, "out", [folder], overwrite, "Pass overwrite=True"))
        selected = _selected(channels, source, folder, mask, scale, target_folder)
        hashes = {"target": identify(target_folder).digest, selected.name: identify(folder).digest}
        settings = TransferSettings(selection=mask.scores.scorer, method=method)
        report = transfer_report(channels, [selected], settings, seed, hashes)
        injection = MaskedInjection(channels, [selected], merging_method(method), seed, scale)

        def outcome() -> dict[str, Any]:
            return with_outcome(report, injection.rounding, rounding_issues(injection.rounding))

        files: dict[str, FileContent] = {
            CARD: new_card(str(target), "", report, "merge"),
            "transfer.json": lambda: json.dumps(outcome(), indent=2) + "\n",
        }
        with no_wider_than(folder), injection:
            sha256 = merge_checkpoint(out, target_folder, injection, None, files, overwrite=overwrite)
    write_file(out / CARD, rebuild_card(out, sha256=sha256))
    _warn(rounding_issues(injection.rounding))
    return outcome()


def _warn(issues: Iterable[ConfigIssue]) -> None:
    for issue in issues:
        if issue.level == "warning":
            warnings.warn(str(issue), stacklevel=3)


@contextmanager
def _folder(model: Model) -> Iterator[Path]:
    """The checkpoint of a source; one in memory is saved for the while."""
    if not isinstance(model, PreTrainedModel):
        yield locate(str(model), setting="source", adapters=True)
        return
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def _skeleton(model: Model) -> PreTrainedModel:
    return model if isinstance(model, PreTrainedModel) else meta_model(locate(str(model)))


def _name(model: Model) -> str:
    return (model.name_or_path or type(model).__name__) if isinstance(model, PreTrainedModel) else str(model)


def _selected(
    channels: ChannelInventory, source: Model, folder: Path, mask: Mask, scale: float, target: Path | None = None
) -> SelectedSource:
    """The source with its mask, checked against the target's channels."""
    raise_if_any(scale_issues(scale, "scale"))
    names = [(module.name, module.count) for module in channels.modules]
    if names != [(module.name, module.count) for module in mask.scores.channels.modules]:
        hint = "Score this target, or load the scores that were measured on it."
        raise ActError(ConfigIssue("mask", len(mask), "must select channels of the target that is merged into", hint))
    vocabulary = None if target is None else match_vocabularies(target, folder)
    moved = drop_unmatched(channels, mask.selected, vocabulary)
    label, tokens = AbilitySource(_name(source), [_ABILITY]).label, {_ABILITY: mask.scores.record.tokens}
    return SelectedSource(label, _name(source), folder, scale, mask.ratio, {_ABILITY: moved}, tokens, vocabulary)
