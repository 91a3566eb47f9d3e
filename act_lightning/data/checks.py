"""What is wrong with the data section of a config, as far as no data need be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from act_lightning.checkpoints import name_faults
from act_lightning.data.asking.questions import question_faults
from act_lightning.data.labeling.templates import template_faults
from act_lightning.data.reading.rows import row_faults
from act_lightning.data.settings import AbilityData, EvaluationData
from act_lightning.errors import Fault

EVALUATING = ("test", "predict")
"""Stages that read evaluation sets and no ability."""


def ability_faults(abilities: Mapping[str, AbilityData]) -> list[Fault]:
    """Faults of ``data.abilities``.

    Args:
        abilities: Settings by name.
    """
    if not abilities:
        remedy = "Add one, such as {math-en: {path: math-en.jsonl}}."
        return [Fault("data.abilities", {}, "must hold an ability", remedy)]
    return [fault for name, one in abilities.items() for fault in _set_faults("data.abilities", name, one)]


def evaluation_faults(evaluations: Mapping[str, EvaluationData], needed_to: str | None = None) -> list[Fault]:
    """Faults of ``data.evaluations``.

    Args:
        evaluations: Settings by name.
        needed_to: What cannot be done without any: ``test`` or ``predict``.
    """
    faults = []
    if needed_to and not evaluations:
        remedy = "Add one, such as {gsm: {path: gsm.jsonl, role: keep}}."
        faults.append(Fault("data.evaluations", {}, f"must hold a set to {needed_to} on", remedy))
    for name, one in evaluations.items():
        faults += _set_faults("data.evaluations", name, one)
        faults += question_faults(one, f"data.evaluations.{name}")
        faults += positive_faults(one.max_new_tokens, f"data.evaluations.{name}.max_new_tokens")
    return faults


def training_faults(
    train: Sequence[str], validation: Sequence[str] | float, abilities: Mapping[str, AbilityData]
) -> list[Fault]:
    """Faults of ``data.abilities``, ``data.train`` and ``data.validation``.

    Args:
        train: Names of abilities.
        validation: Names of abilities, or a share of each one that is trained on.
        abilities: Settings by name.
    """
    faults = ability_faults(abilities) + list_faults(train, abilities, "data.train")
    if abilities and not train:
        faults.append(Fault("data.train", [], "must name an ability", "Write null to train on all of them."))
    return faults + validation_faults(validation, abilities)


def validation_faults(validation: Sequence[str] | float, known: Collection[str]) -> list[Fault]:
    """Faults of ``data.validation``: unknown names, or a share outside (0, 1).

    Args:
        validation: Names of abilities, or a share of each one that is trained on.
        known: Names of the abilities there are.
    """
    if not isinstance(validation, (int, float)):
        return list_faults(validation, known, "data.validation")
    if 0 < validation < 1:
        return []
    return [Fault("data.validation", validation, "must lie in (0, 1)", "Write a share such as 0.1, or [] for none.")]


def list_faults(names: Sequence[str], known: Collection[str], setting: str) -> list[Fault]:
    """Names that no ability has, or that stand twice.

    Args:
        names: A list of abilities.
        known: Names of the abilities there are.
        setting: Where the list was given.
    """
    remedy = "Name each ability once, as it is called in data.abilities."
    rule = f"must be one of data.abilities: {', '.join(known)}"
    faults = [Fault(setting, name, rule, remedy) for name in dict.fromkeys(names) if name not in known]
    twice = [name for name, times in Counter(names).items() if times > 1]
    return faults + [Fault(setting, name, "must not be named twice", remedy) for name in twice]


def positive_faults(value: int, setting: str) -> list[Fault]:
    """The fault of a number below 1.

    Args:
        value: What was given.
        setting: Where it was given.
    """
    return [] if value >= 1 else [Fault(setting, value, "must be at least 1", "Write 1 or more.")]


def _set_faults(section: str, name: str, settings: AbilityData) -> list[Fault]:
    where = f"{section}.{name}"
    faults = row_faults(settings, where)
    faults += name_faults(name, section)
    if settings.template is not None:
        faults += template_faults(settings.template, f"{where}.template")
    return faults
