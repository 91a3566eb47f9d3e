"""Section ``data`` of a config: its settings, and its sets as token ids, without Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from act_lightning.checkpoints.compatibility import token_id_issues
from act_lightning.checkpoints.files import name_issues
from act_lightning.checkpoints.models import load_config, load_tokenizer, locate
from act_lightning.data.ability_data import AbilityData, EvaluationData, list_issues, positive_issues, question_issues
from act_lightning.data.batches import Packing
from act_lightning.data.cache import TokenizedAbility, largest_id, tokenize_ability
from act_lightning.data.conversations import row_issues
from act_lightning.data.labels import Sample
from act_lightning.data.tasks import Prompt, read_prompts, read_references
from act_lightning.data.templates import template_issues
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

EVALUATION_STAGES = ("test", "predict")
"""They need evaluation sets and no ability."""

Settings = TypeVar("Settings", bound=AbilityData)
Read = TypeVar("Read")


class DataSection:
    """Section ``data`` of a config, without loaders; its settings are those of ``AbilityDataModule``."""

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
        if stage not in EVALUATION_STAGES:
            issues += self._training_issues()
        elif not self.evaluations:
            issues.append(no_evaluations(f"must hold a set to {stage} on"))
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

    def read(self, stage: str | None = None) -> None:
        """Read what a stage of the Trainer needs, once.

        Raises:
            ActError: With all issues of the settings, or else with those of all data sets.
        """
        raise_if_any(self.issues(stage))
        if stage == "validate" and not self.validation_names:
            hint = "Name abilities, or a share of each to hold out."
            raise ActError(ConfigIssue("data.validation", [], "must name something to validate on", hint))
        if stage in (None, "fit", "validate"):
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


def _set_issues(section: str, name: str, settings: AbilityData) -> list[ConfigIssue]:
    where = f"{section}.{name}"
    issues = row_issues(settings, where) + name_issues(name, section)
    return issues if settings.template is None else issues + template_issues(settings.template, f"{where}.template")


def no_evaluations(problem: str) -> ConfigIssue:
    """The issue of a data section without evaluation sets."""
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
