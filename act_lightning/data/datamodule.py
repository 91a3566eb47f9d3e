"""The LightningDataModule: abilities to train, validate and profile on, and evaluation sets."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import lightning as L
from torch.utils.data import ConcatDataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from act_lightning.checkpoints.models import load_config, load_tokenizer, locate
from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.batches import MAX_PADDING, Batch, token_budget_batches
from act_lightning.data.cache import lengths
from act_lightning.data.checks import EVALUATING, evaluation_issues, positive_issues, training_issues
from act_lightning.data.labels import Sample
from act_lightning.data.loaders import (
    FitProgress,
    MicroBatch,
    MicroBatchLoader,
    MicroBatchSampler,
    TrainingLoader,
    collate_micro_batch,
    shard_evenly,
)
from act_lightning.data.loading import load_from_hub, source_kind
from act_lightning.data.packing import Packing, should_pack
from act_lightning.data.tasks import Prompt, collate_prompts, read_prompts, read_references
from act_lightning.data.templates import template_issues
from act_lightning.data.tokenized import TokenizedAbility, tokenize_ability
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_SHOWN_SAMPLES, _SHOWN_LETTERS = 3, 60

Settings = TypeVar("Settings", bound=AbilityData)
Read = TypeVar("Read")


class AbilityDataModule(L.LightningDataModule):
    """Abilities as labeled token ids, and evaluation sets as prompts.

    Args:
        abilities: Data sets by name; ``null`` removes a name that an earlier config gave.
        train: Abilities to train on; by default all.
        validation: Abilities to validate on, or one share held out of each that is trained on: its last rows, one at
            least, which are then neither trained nor profiled on.
        evaluations: Evaluation sets by name; ``null`` removes a name that an earlier config gave.
        batch_size: Samples in a micro-batch of training.
        shuffle: Whether training shuffles its samples in every epoch.
        template: ``chat`` (the target's own), a shipped name such as ``wizardmath``, text that contains ``{prompt}``,
            or a chat template in a ``.jinja`` file.
        max_length: Longer sequences are cut at the end.
        target: Folder or hub id of the model whose tokenizer is used.
        revision: Revision of that hub id.
        packing: Whether the samples of a micro-batch stand in one row one after the other, or in rows of their own that
            are padded. ``auto`` packs them in training, where they are of any length, if the model keeps them apart,
            and pads where samples of like length stand together, which wastes less than 2 %: in validation and
            profiling; and in training of a model that cannot be given packed rows, whose micro-batches are then
            composed of samples of like length.
        num_proc: Processes that turn rows into tokens; by default one for each core, up to 16.
        cache_dir: Folder of the tokenized sets, where later runs find them again; by default
            ``$ACT_LIGHTNING_CACHE/data`` or ``~/.cache/act_lightning/data``. Any of it may be deleted at any time.
        tokens_per_batch: Rows × length, with what is to be generated, of a batch of validation and evaluation, which
            need less memory than training; by default ``batch_size`` × ``max_length``.
    """

    def __init__(
        self,
        abilities: dict[str, AbilityData | None] = {},  # noqa: B006  # a default that a printed config shows
        train: list[str] | None = None,
        validation: list[str] | float = [],  # noqa: B006
        evaluations: dict[str, EvaluationData | None] = {},  # noqa: B006
        batch_size: int = 1,
        shuffle: bool = True,
        template: str = "chat",
        max_length: int = 2048,
        target: str = "",
        revision: str | None = None,
        packing: Packing = "auto",
        num_proc: int | None = None,
        cache_dir: str | None = None,
        tokens_per_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.abilities = _present(abilities)
        self.train = list(self.abilities) if train is None else train
        self.validation = validation
        self.evaluations = _present(evaluations)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.template = template
        self.max_length = max_length
        self.target = target
        self.revision = revision
        self.packing = packing
        self.num_proc = num_proc
        self.cache_dir = cache_dir
        self.tokens_per_batch = tokens_per_batch

    def issues(self, stage: str | None = None) -> list[ConfigIssue]:
        """Everything that is wrong with the settings, as far as no data need be read.

        Args:
            stage: ``test`` or ``predict``, which need no abilities but an evaluation set, or any other.
        """
        if stage in EVALUATING:
            issues = evaluation_issues(self.evaluations, needed_to=stage)
        else:
            issues = training_issues(self.train, self.validation, self.abilities) + evaluation_issues(self.evaluations)
        issues += positive_issues(self.batch_size, "data.batch_size")
        issues += positive_issues(self.max_length, "data.max_length")
        for name in ("num_proc", "tokens_per_batch"):
            value = getattr(self, name)
            issues += [] if value is None else positive_issues(value, f"data.{name}")
        return issues + template_issues(self.template, "data.template")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer."""
        if not self.target:
            hint = "Give the target's folder or hub id."
            raise ActError(ConfigIssue("data.target", self.target, "must name the model whose tokenizer is used", hint))
        return load_tokenizer(locate(self.target, self.revision, weights=False))

    @cached_property
    def _config(self) -> PretrainedConfig:
        return load_config(locate(self.target, self.revision, weights=False))

    def prepare_data(self) -> None:
        """Fetch tokenizer and hub data sets, and tokenize the abilities, on one process of each node.

        Raises:
            ActError: If settings are wrong, or something is not to be had.
        """
        stage = self.trainer.state.fn if self.trainer else None
        raise_if_any(self.issues(stage))
        _ = self.tokenizer
        for name, settings in self.evaluations.items():
            if source_kind(settings.path) == "hub":
                load_from_hub(settings, f"data.evaluations.{name}")
        if stage not in EVALUATING:
            _ = self._parts

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs, once.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all.

        Raises:
            ActError: With all issues of the settings, or else with those of all data sets.
        """
        raise_if_any(self.issues(stage))
        if stage == "validate" and not self.validation_names:
            hint = "Name abilities, or a share of each to hold out."
            raise ActError(ConfigIssue("data.validation", [], "must name something to validate on", hint))
        if stage in (None, "fit", "validate"):
            _ = self.packing is not True or should_pack(True, self._reader_config, by_length=False)
            _ = self.tokenized
        if stage in (None, "fit", "test", "predict"):
            _ = self.prompts

    @cached_property
    def tokenized(self) -> dict[str, TokenizedAbility]:
        """Every ability by name, without what is held out for validation."""
        return {name: part for name, (part, _) in self._parts.items()}

    @cached_property
    def held_out(self) -> dict[str, TokenizedAbility]:
        """The validation sets by name."""
        if isinstance(self.validation, list):
            return {name: self.tokenized[name] for name in self.validation}
        return {name: held for name, (_, held) in self._parts.items() if held is not None}

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """Every evaluation set by name."""

        def read(name: str, settings: EvaluationData) -> list[Prompt]:
            return read_prompts(name, settings, self.tokenizer, self.template)

        return _read_all(self.evaluations, read)

    @cached_property
    def references(self) -> dict[str, list[Sample]]:
        """Every evaluation set by name, with its references as labels."""

        def read(name: str, settings: EvaluationData) -> list[Sample]:
            return read_references(name, settings, self.tokenizer, self.template)

        return _read_all(self.evaluations, read)

    @cached_property
    def _parts(self) -> dict[str, tuple[TokenizedAbility, TokenizedAbility | None]]:
        def read(name: str, settings: AbilityData) -> tuple[TokenizedAbility, TokenizedAbility | None]:
            limits = self.max_length, self.num_proc, self.cache_dir
            ability = tokenize_ability(name, settings, self.tokenizer, self.template, *limits)
            if isinstance(self.validation, list) or name not in self.train:
                return ability, None
            return ability.hold_out(self.validation)

        return _read_all(self.abilities, read)

    @property
    def validation_names(self) -> list[str]:
        """Names of the validation sets, in the order of their loaders."""
        return self.validation if isinstance(self.validation, list) else list(self.train)

    @property
    def evaluation_names(self) -> list[str]:
        """Names of the evaluation sets, in the order of their loaders."""
        return list(self.evaluations)

    def train_dataloader(self) -> TrainingLoader:
        """This process's micro-batches of the samples of all abilities in ``train``."""
        sets = [self.tokenized[name].samples for name in self.train]
        samples: Any = ConcatDataset(sets)  # type: ignore[arg-type]  # sequences are data sets
        several = self.batch_size > 1
        packed = several and self._packs(by_length=False)
        of_each = [length for one in sets for length in lengths(one)] if several and not packed else None
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        sampler = MicroBatchSampler(len(samples), self.batch_size, self.shuffle, seed, *self._share, lengths=of_each)
        progress = FitProgress(self.trainer) if self.trainer else None
        return TrainingLoader(samples, sampler, self._pad_id, packed, progress)

    def shown_samples(self, micro_batch: int) -> str:
        """Ability, number and beginning of the samples in a micro-batch of training, three of them at most.

        Args:
            micro_batch: Its number in the epoch, among those of this process.
        """
        loader = self.trainer.train_dataloader if self.trainer else None
        if not isinstance(loader, TrainingLoader):
            return ""
        numbered = [(name, number) for name in self.train for number in range(len(self.tokenized[name].samples))]
        chosen = [numbered[index] for index in loader.samples_in(micro_batch)]
        shown = []
        for name, number in chosen[:_SHOWN_SAMPLES]:
            ids = self.tokenized[name].samples[number].input_ids
            text = " ".join(str(self.tokenizer.decode(ids, skip_special_tokens=True)).split())
            shown.append(f"sample {number} of {name}, {text[:_SHOWN_LETTERS]!r}")
        more = [f"{len(chosen) - _SHOWN_SAMPLES} more"] if len(chosen) > _SHOWN_SAMPLES else []
        return "; ".join(shown + more)

    def val_dataloader(self) -> list[MicroBatchLoader[Batch]]:
        """One loader for each validation set, in batches of as many tokens as a micro-batch of training may have."""
        loaders = []
        for name in self.validation_names:
            samples, packed = self.held_out[name].samples, self._packs(by_length=True)
            chosen = self._dealt(lengths(samples), MAX_PADDING, packed)
            loaders.append(MicroBatchLoader(chosen, partial(collate_micro_batch, samples, self._pad_id, packed)))
        if not loaders:  # Lightning doubts that this was the intention; it is
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return loaders

    def test_dataloader(self) -> list[MicroBatchLoader[dict[str, Any]]]:
        """One loader for each evaluation set, in batches bounded by their tokens after generation.

        Raises:
            ActError: If there is no evaluation set.
        """
        if not self.evaluations:
            hint = "Add one, such as {gsm: {path: gsm.jsonl, role: keep}}."
            raise ActError(ConfigIssue("data.evaluations", {}, "must hold a set to test or predict on", hint))
        loaders = []
        for name, prompts in self.prompts.items():
            room = self.evaluations[name].max_new_tokens
            lengths = [len(prompt.input_ids) + room for prompt in prompts]
            at_once = getattr(getattr(self.trainer, "lightning_module", None), "answers_whole_sets", False)
            chosen = [MicroBatch(tuple(range(len(prompts))))] if at_once else self._dealt(lengths)
            loaders.append(MicroBatchLoader(chosen, partial(collate_prompts, prompts, self._pad_id)))
        return loaders

    def predict_dataloader(self) -> list[MicroBatchLoader[dict[str, Any]]]:
        """The same loaders as for testing."""
        return self.test_dataloader()

    def _dealt(self, lengths: Sequence[int], waste: float = 1.0, packed: bool = False) -> list[MicroBatch]:
        batches = token_budget_batches(lengths, self.evaluation_tokens, waste, packed)
        return shard_evenly(batches, *self._share)

    @property
    def evaluation_tokens(self) -> int:
        """Rows × length of a batch of validation and evaluation."""
        return self.tokens_per_batch or self.batch_size * self.max_length

    def _packs(self, by_length: bool) -> bool:
        """Whether samples are packed: ``auto`` asks the LightningModule, too, which may want an attention mask."""
        module = getattr(self.trainer, "lightning_module", None)
        may = self.packing is True or getattr(module, "reads_packed_rows", False)
        return may and should_pack(self.packing, self._reader_config, by_length)

    @property
    def _reader_config(self) -> PretrainedConfig:
        """The target's config with the implementation of attention that the LightningModule asks for."""
        asked = getattr(getattr(self.trainer, "lightning_module", None), "attention", "auto")
        config = copy.deepcopy(self._config)
        if asked != "auto":
            config._attn_implementation = asked
        return config

    @property
    def _share(self) -> tuple[int, int]:
        """Rank and number of the processes that share the data."""
        share = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"rank": 0, "num_replicas": 1}
        return share["rank"], share["num_replicas"]

    @property
    def _pad_id(self) -> int:
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in ids if token is not None)


def _present(sets: Mapping[str, Settings | None]) -> dict[str, Settings]:
    return {name: settings for name, settings in sets.items() if settings is not None}


def _read_all(sets: Mapping[str, Settings], read: Callable[[str, Settings], Read]) -> dict[str, Read]:
    """Read every data set, and raise the issues of all of them together."""
    found: dict[str, Read] = {}
    issues: list[ConfigIssue] = []
    for name, settings in sets.items():
        try:
            found[name] = read(name, settings)
        except ActError as error:
            issues += error.issues
    raise_if_any(issues)
    return found
