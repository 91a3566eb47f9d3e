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

from act_lightning.checkpoints.compatibility import token_id_issues
from act_lightning.checkpoints.files import name_issues
from act_lightning.checkpoints.models import load_config, load_tokenizer, locate
from act_lightning.data.ability_data import AbilityData, EvaluationData, list_issues, positive_issues, question_issues
from act_lightning.data.batches import MAX_PADDING, Batch, Packing, should_pack, token_budget_batches
from act_lightning.data.cache import TokenizedAbility, largest_id, lengths, tokenize_ability
from act_lightning.data.conversations import row_issues
from act_lightning.data.labels import Sample
from act_lightning.data.loaders import (
    MicroBatch,
    MicroBatchLoader,
    MicroBatchSampler,
    TrainingLoader,
    collate_micro_batch,
    shard_evenly,
)
from act_lightning.data.loading import load_from_hub, source_kind
from act_lightning.data.tasks import Prompt, collate_prompts, read_prompts, read_references
from act_lightning.data.templates import template_issues
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_EVALUATION_STAGES = ("test", "predict")  # they need evaluation sets and no ability
_MAX_DESCRIBED_SAMPLES, _MAX_DESCRIBED_CHARACTERS = 3, 60

Settings = TypeVar("Settings", bound=AbilityData)
Read = TypeVar("Read")


class AbilityDataModule(L.LightningDataModule):
    """Abilities as labeled token ids, and evaluation sets as prompts.

    Args:
        abilities: Data sets by name; ``null`` removes a name that an earlier config gave.
        train: Abilities to train on; by default all.
        validation: Abilities to validate on, or one share held out of each that is trained on: its last rows, at least
            one, which are then neither trained nor profiled on.
        evaluations: Evaluation sets by name; ``null`` removes a name that an earlier config gave.
        batch_size: Samples in a micro-batch of training.
        shuffle: Whether training shuffles its samples in every epoch.
        template: ``chat`` (the target's own), a shipped name such as ``wizardmath``, text that contains ``{prompt}``,
            or a chat template in a ``.jinja`` file.
        max_length: Longer sequences are cut at the end.
        target: Folder or hub id of the model whose tokenizer is used.
        revision: Revision of that hub id.
        packing: Whether the samples of a micro-batch share one row, one after the other, or have padded rows of their
            own. ``auto`` packs in training, where their lengths differ, if the model keeps them apart, and pads where
            batches hold samples of similar length, which wastes less than 2 %: in validation and profiling; and in
            training of a model that cannot read packed rows, whose micro-batches are then composed by length.
        num_proc: Processes that turn rows into tokens; by default one for each core, up to 16.
        cache_dir: Folder of the tokenized sets, which later runs reuse; by default
            ``$ACT_LIGHTNING_CACHE/data`` or ``~/.cache/act_lightning/data``. It may be deleted at any time.
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
        self.abilities = {name: settings for name, settings in abilities.items() if settings is not None}
        self.train = list(self.abilities) if train is None else train
        self.validation = validation
        self.evaluations = {name: settings for name, settings in evaluations.items() if settings is not None}
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
        """Everything that is wrong with the settings for a stage of the Trainer, without reading data."""
        issues: list[ConfigIssue] = []
        if stage not in _EVALUATION_STAGES:
            issues += self._training_issues()
        elif not self.evaluations:
            issues.append(_no_evaluations(f"must hold a set to {stage} on"))
        for name, settings in self.evaluations.items():
            where = f"data.evaluations.{name}"
            issues += _set_issues("data.evaluations", name, settings)
            issues += question_issues(settings, where)
            issues += positive_issues(settings.max_new_tokens, f"{where}.max_new_tokens")
        for name in ("batch_size", "max_length", "num_proc", "tokens_per_batch"):
            value = getattr(self, name)
            issues += [] if value is None else positive_issues(value, f"data.{name}")
        return issues + template_issues(self.template, "data.template")

    def _training_issues(self) -> list[ConfigIssue]:
        issues: list[ConfigIssue] = []
        if not self.abilities:
            hint = "Add one, such as {math-en: {path: math-en.jsonl}}."
            issues.append(ConfigIssue("data.abilities", {}, "must hold an ability", hint))
        for name, settings in self.abilities.items():
            issues += _set_issues("data.abilities", name, settings)
        issues += list_issues(self.train, self.abilities, "data.train")
        if self.abilities and not self.train:
            hint = "Write null to train on all of them."
            issues.append(ConfigIssue("data.train", [], "must name an ability", hint))
        if isinstance(self.validation, list):
            issues += list_issues(self.validation, self.abilities, "data.validation")
        elif not 0 < self.validation < 1:
            hint = "Write a share such as 0.1, or [] for none."
            issues.append(ConfigIssue("data.validation", self.validation, "must lie in (0, 1)", hint))
        return issues

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

    def _check_ids(self, largest: int, setting: str) -> None:
        """Raise an :class:`ActError` if the target's embedding has no row for the largest token id."""
        raise_if_any(token_id_issues(largest, locate(self.target or "", self.revision, weights=False), setting))

    def prepare_data(self) -> None:
        """Download tokenizer and hub data sets, and tokenize the abilities, on one process of each node."""
        stage = self.trainer.state.fn if self.trainer else None
        raise_if_any(self.issues(stage))
        _ = self.tokenizer
        for name, settings in self.evaluations.items():
            if source_kind(settings.path) == "hub":
                load_from_hub(settings, f"data.evaluations.{name}")
        if stage not in _EVALUATION_STAGES:
            _ = self._splits

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs, once.

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
    def _splits(self) -> dict[str, tuple[TokenizedAbility, TokenizedAbility | None]]:
        """Every ability by name, and the part of it that is held out for validation."""

        def read(name: str, settings: AbilityData) -> tuple[TokenizedAbility, TokenizedAbility | None]:
            limits = self.max_length, self.num_proc, self.cache_dir
            ability = tokenize_ability(name, settings, self.tokenizer, self.template, *limits)
            self._check_ids(largest_id(ability.samples), f"data.abilities.{name}")
            if isinstance(self.validation, list) or name not in self.train:
                return ability, None
            return ability.hold_out(self.validation)

        return _read_all(self.abilities, read)

    @cached_property
    def tokenized(self) -> dict[str, TokenizedAbility]:
        """Every ability by name, without what is held out for validation."""
        return {name: part for name, (part, _) in self._splits.items()}

    @cached_property
    def held_out(self) -> dict[str, TokenizedAbility]:
        """The validation sets by name."""
        if isinstance(self.validation, list):
            return {name: self.tokenized[name] for name in self.validation}
        return {name: part for name, (_, part) in self._splits.items() if part is not None}

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """Every evaluation set by name."""

        def read(name: str, settings: EvaluationData) -> list[Prompt]:
            prompts = read_prompts(name, settings, self.tokenizer, self.template)
            self._check_ids(largest_id(prompts), f"data.evaluations.{name}")
            return prompts

        return _read_all(self.evaluations, read)

    @cached_property
    def references(self) -> dict[str, list[Sample]]:
        """Every evaluation set by name, with its references as labels."""
        return _read_all(
            self.evaluations, lambda name, sets: read_references(name, sets, self.tokenizer, self.template)
        )

    @property
    def validation_names(self) -> list[str]:
        """Names of the validation sets, in the order of their loaders."""
        return self.validation if isinstance(self.validation, list) else list(self.train)

    @property
    def evaluation_names(self) -> list[str]:
        """Names of the evaluation sets, in the order of their loaders."""
        return list(self.evaluations)

    @property
    def evaluation_tokens(self) -> int:
        """Rows × length of a batch of validation and evaluation."""
        return self.tokens_per_batch or self.batch_size * self.max_length

    def train_dataloader(self) -> TrainingLoader:
        """This process's micro-batches of the samples of all abilities in ``train``."""
        sets = [self.tokenized[name].samples for name in self.train]
        samples: Any = ConcatDataset(sets)  # type: ignore[arg-type]  # sequences are data sets
        packed = self.batch_size > 1 and self._should_pack(by_length=False)
        by_length = self.batch_size > 1 and not packed
        all_lengths = [length for members in sets for length in lengths(members)] if by_length else None
        seed, shard = int(os.environ.get("PL_GLOBAL_SEED", 0)), self._rank_and_world_size
        sampler = MicroBatchSampler(len(samples), self.batch_size, self.shuffle, seed, *shard, lengths=all_lengths)
        return TrainingLoader(samples, sampler, self._pad_id, packed, self.trainer)

    def describe_samples(self, micro_batch: int) -> str:
        """Ability, number and beginning of the samples in a micro-batch of training, three of them at most."""
        loader = self.trainer.train_dataloader if self.trainer else None
        if not isinstance(loader, TrainingLoader):
            return ""
        numbered = [(name, number) for name in self.train for number in range(len(self.tokenized[name].samples))]
        members = [numbered[index] for index in loader.samples_in(micro_batch)]
        descriptions = []
        for name, number in members[:_MAX_DESCRIBED_SAMPLES]:
            ids = self.tokenized[name].samples[number].input_ids
            text = " ".join(str(self.tokenizer.decode(ids, skip_special_tokens=True)).split())
            descriptions.append(f"sample {number} of {name}, {text[:_MAX_DESCRIBED_CHARACTERS]!r}")
        if len(members) > _MAX_DESCRIBED_SAMPLES:
            descriptions.append(f"{len(members) - _MAX_DESCRIBED_SAMPLES} more")
        return "; ".join(descriptions)

    def val_dataloader(self) -> list[MicroBatchLoader[Batch]]:
        """One loader for each validation set, in batches of as many tokens as a micro-batch of training may have."""
        loaders = []
        for name in self.validation_names:
            samples, packed = self.held_out[name].samples, self._should_pack(by_length=True)
            micro_batches = self._shard_by_tokens(lengths(samples), MAX_PADDING, packed)
            collate = partial(collate_micro_batch, samples, self._pad_id, packed)
            loaders.append(MicroBatchLoader(micro_batches, collate))
        if not loaders:  # Lightning warns, but this is intended
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return loaders

    def test_dataloader(self) -> list[MicroBatchLoader[dict[str, Any]]]:
        """One loader for each evaluation set, in batches bounded by their tokens after generation."""
        if not self.evaluations:
            raise ActError(_no_evaluations("must hold a set to test or predict on"))
        # What the model module declares: a generator of its own, such as vLLM, takes a set whole.
        takes_whole_sets = getattr(getattr(self.trainer, "lightning_module", None), "answers_whole_sets", False)
        loaders = []
        for name, prompts in self.prompts.items():
            if takes_whole_sets:
                micro_batches = [MicroBatch(tuple(range(len(prompts))))]
            else:
                max_new_tokens = self.evaluations[name].max_new_tokens
                micro_batches = self._shard_by_tokens([len(prompt.input_ids) + max_new_tokens for prompt in prompts])
            loaders.append(MicroBatchLoader(micro_batches, partial(collate_prompts, prompts, self._pad_id)))
        return loaders

    def predict_dataloader(self) -> list[MicroBatchLoader[dict[str, Any]]]:
        """The same loaders as for testing."""
        return self.test_dataloader()

    def _shard_by_tokens(
        self, lengths: Sequence[int], max_padding: float = 1.0, packed: bool = False
    ) -> list[MicroBatch]:
        batches = token_budget_batches(lengths, self.evaluation_tokens, max_padding, packed)
        return shard_evenly(batches, *self._rank_and_world_size)

    def _should_pack(self, by_length: bool) -> bool:
        """Whether samples are packed: ``auto`` only if the LightningModule declares that it reads packed rows."""
        module = getattr(self.trainer, "lightning_module", None)
        allowed = self.packing is True or getattr(module, "reads_packed_rows", False)
        return allowed and should_pack(self.packing, self._reader_config, by_length)

    @property
    def _reader_config(self) -> PretrainedConfig:
        """The target's config with the attention implementation that the LightningModule requests."""
        attention = getattr(getattr(self.trainer, "lightning_module", None), "attention", "auto")
        config = copy.deepcopy(self._config)
        if attention != "auto":
            config._attn_implementation = attention
        return config

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        """Of the processes that share the data."""
        share = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"rank": 0, "num_replicas": 1}
        return share["rank"], share["num_replicas"]

    @property
    def _pad_id(self) -> int:
        """A token that the embedding has a row for, and that no mask lets through."""
        ids, rows = (
            (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id),
            self._config.get_text_config().vocab_size,
        )
        return next((token for token in ids if token is not None and token < rows), 0)


def _set_issues(section: str, name: str, settings: AbilityData) -> list[ConfigIssue]:
    where = f"{section}.{name}"
    issues = row_issues(settings, where) + name_issues(name, section)
    return issues if settings.template is None else issues + template_issues(settings.template, f"{where}.template")


def _no_evaluations(problem: str) -> ConfigIssue:
    hint = "Add one, such as {gsm: {path: gsm.jsonl, role: keep}}."
    return ConfigIssue("data.evaluations", {}, problem, hint)


def _read_all(sets: Mapping[str, Settings], read: Callable[[str, Settings], Read]) -> dict[str, Read]:
    """Read every data set, and raise the issues of all of them at once."""
    results, issues = dict[str, Read](), list[ConfigIssue]()
    for name, settings in sets.items():
        try:
            results[name] = read(name, settings)
        except ActError as error:
            issues += error.issues
    raise_if_any(issues)
    return results
