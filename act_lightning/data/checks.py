"""What is wrong with the data section of a config, as far as no data need be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from act_lightning.checkpoints.files import name_issues
from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.conversations import row_issues
from act_lightning.data.templates import template_issues
from act_lightning.data.wording import question_issues
from act_lightning.errors import ConfigIssue

EVALUATING = ("test", "predict")
"""Stages that read evaluation sets and no ability."""


def ability_issues(abilities: Mapping[str, AbilityData]) -> list[ConfigIssue]:
    """Issues of ``data.abilities``.

    Args:
        abilities: Settings by name.
    """
    if not abilities:
        hint = "Add one, such as {math-en: {path: math-en.jsonl}}."
        return [ConfigIssue("data.abilities", {}, "must hold an ability", hint)]
    return [issue for name, one in abilities.items() for issue in _set_issues("data.abilities", name, one)]


def evaluation_issues(evaluations: Mapping[str, EvaluationData], needed_to: str | None = None) -> list[ConfigIssue]:
    """Issues of ``data.evaluations``.

    Args:
        evaluations: Settings by name.
        needed_to: What cannot be done without any: ``test`` or ``predict``.
    """
    issues = []
    if needed_to and not evaluations:
        hint = "Add one, such as {gsm: {path: gsm.jsonl, role: keep}}."
        issues.append(ConfigIssue("data.evaluations", {}, f"must hold a set to {needed_to} on", hint))
    for name, one in evaluations.items():
        issues += _set_issues("data.evaluations", name, one)
        issues += question_issues(one, f"data.evaluations.{name}")
        issues += positive_issues(one.max_new_tokens, f"data.evaluations.{name}.max_new_tokens")
    return issues


def training_issues(
    train: Sequence[str], validation: Sequence[str] | float, abilities: Mapping[str, AbilityData]
) -> list[ConfigIssue]:
    """Issues of ``data.abilities``, ``data.train`` and ``data.validation``.

    Args:
        train: Names of abilities.
        validation: Names of abilities, or a share of each one that is trained on.
        abilities: Settings by name.
    """
    issues = ability_issues(abilities) + list_issues(train, abilities, "data.train")
    if abilities and not train:
        issues.append(ConfigIssue("data.train", [], "must name an ability", "Write null to train on all of them."))
    return issues + validation_issues(validation, abilities)


def validation_issues(validation: Sequence[str] | float, known: Collection[str]) -> list[ConfigIssue]:
    """Issues of ``data.validation``: unknown names, or a share outside (0, 1).

    Args:
        validation: Names of abilities, or a share of each one that is trained on.
        known: Names of the abilities there are.
    """
    if not isinstance(validation, (int, float)):
        return list_issues(validation, known, "data.validation")
    if 0 < validation < 1:
        return []
    return [
        ConfigIssue("data.validation", validation, "must lie in (0, 1)", "Write a share such as 0.1, or [] for none.")
    ]


def list_issues(names: Sequence[str], known: Collection[str], setting: str) -> list[ConfigIssue]:
    """Names that no ability has, or that stand twice.

    Args:
        names: A list of abilities.
        known: Names of the abilities there are.
        setting: Where the list was given.
    """
    hint = "Name each ability once, as it is called in data.abilities."
    problem = f"must be one of data.abilities: {', '.join(known)}"
    issues = [ConfigIssue(setting, name, problem, hint) for name in dict.fromkeys(names) if name not in known]
    twice = [name for name, times in Counter(names).items() if times > 1]
    return issues + [ConfigIssue(setting, name, "must not be named twice", hint) for name in twice]


def positive_issues(value: int, setting: str) -> list[ConfigIssue]:
    """The issue of a number below 1.

    Args:
        value: What was given.
        setting: Where it was given.
    """
    return [] if value >= 1 else [ConfigIssue(setting, value, "must be at least 1", "Write 1 or more.")]


def _set_issues(section: str, name: str, settings: AbilityData) -> list[ConfigIssue]:
    where = f"{section}.{name}"
    issues = row_issues(settings, where)
    issues += name_issues(name, section)
    if settings.template is not None:
        issues += template_issues(settings.template, f"{where}.template")
    return issues
