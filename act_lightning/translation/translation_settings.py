"""Section ``translate`` of a config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from act_lightning.checkpoints.files import check_writable, name_issues
from act_lightning.data.ability_data import AbilityData, list_issues, positive_issues
from act_lightning.errors import ConfigIssue
from act_lightning.translation.verification import FinalAnswer

MODEL_VARIABLE = "OPENAI_MODEL"


@dataclass(frozen=True)
class Price:
    """The price of a model, in US dollars for a million tokens.

    Attributes:
        input: Price of the tokens that are sent.
        output: Price of the tokens that come back.
    """

    input: float
    output: float


@dataclass
class TranslationSettings:
    """Which abilities are translated, into which languages, by which models, and how fast.

    Attributes:
        languages: Codes of the languages, such as ``ar``. Their order decides which rows each one gets of an ability in
            ``distinct``: append new ones, so that earlier replies stay useful.
        only: The languages to translate into now; ``None`` means all.
        abilities: Names out of ``data.abilities``; ``None`` means all.
        distinct: Abilities of which every language gets rows of its own, as many as the ability's ``limit``, after
            those that the ability itself has; the others are translated row for row into every language.
        out: Folder of the Parquet files, ``<ability>-<language>.parquet``, the ledger and the report.
        model: Name of the model; ``None`` means the environment's ``OPENAI_MODEL``.
        models: Other models, by language (``te``) or by ability and language (``math-te``).
        base_url: The endpoint; ``None`` means the environment's ``OPENAI_BASE_URL``, or else OpenAI's own.
        key: The endpoint's key; better left ``None`` and given in the environment. It is never written or shown.
        key_variable: Environment variable that holds the key; ``None`` for an endpoint that wants none.
        concurrency: Requests under way at the same time.
        requests_per_minute: Limit of the endpoint.
        tokens_per_minute: Limit of the endpoint, of tokens sent and received together.
        timeout: Seconds until a request without a whole reply is given up.
        retries: How often a request is sent again after a 429, a server's error, a timeout or an unreadable reply.
        attempts: Replies that are paid for until one keeps what must be kept; then the row is set aside.
        temperature: Of the model's output; ``None`` for models that take none.
        json_mode: Whether to ask for ``response_format: json_object``, which most endpoints know.
        final_answer: What is kept of a last line such as ``The answer is: 42``: the whole ``line``, or its ``value``,
            so that the words before it are translated.
        prices: Prices by model, for the report.
    """

    languages: list[str]
    only: list[str] | None = None
    abilities: list[str] | None = None
    distinct: list[str] = field(default_factory=list)
    out: str = "data/translated"
    model: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    base_url: str | None = None
    key: str | None = field(default=None, repr=False)
    key_variable: str | None = "OPENAI_API_KEY"
    concurrency: int = 16
    requests_per_minute: int = 500
    tokens_per_minute: int = 200_000
    timeout: float = 120.0
    retries: int = 6
    attempts: int = 3
    temperature: float | None = 0.0
    json_mode: bool = True
    final_answer: FinalAnswer = "line"
    prices: dict[str, Price] = field(default_factory=dict)

    def model_for(self, ability: str, language: str) -> str:
        """Name of the model that translates an ability into a language.

        >>> settings = TranslationSettings(["te"], model="small", models={"math-te": "large"})
        >>> settings.model_for("math", "te"), settings.model_for("science", "te")
        ('large', 'small')
        """
        default = self.models.get(language) or self.model or os.environ.get(MODEL_VARIABLE, "")
        return self.models.get(f"{ability}-{language}") or default

    def secret(self) -> str:
        """The endpoint's key; empty where it wants none."""
        return self.key or os.environ.get(self.key_variable or "", "")


def translation_issues(settings: TranslationSettings, abilities: Mapping[str, AbilityData]) -> list[ConfigIssue]:
    """Everything that is wrong with the settings, without reading a row or paying for a reply."""
    issues = _language_issues(settings) + _ability_issues(settings, abilities)
    for name in ("concurrency", "requests_per_minute", "tokens_per_minute", "attempts"):
        issues += positive_issues(getattr(settings, name), f"translate.{name}")
    if settings.retries < 0:
        issues.append(ConfigIssue("translate.retries", settings.retries, "must not be negative", "Write 0 for none."))
    if not settings.timeout > 0:
        issues.append(
            ConfigIssue("translate.timeout", settings.timeout, "must be positive", "Write seconds, such as 120.")
        )
    return issues + _endpoint_issues(settings) + check_writable(Path(settings.out), "translate.out")


def _language_issues(settings: TranslationSettings) -> list[ConfigIssue]:
    if not settings.languages:
        return [ConfigIssue("translate.languages", [], "must name a language", "Write, for example, [ar, bn].")]
    issues = [issue for code in settings.languages for issue in name_issues(code, "translate.languages")]
    if len(set(settings.languages)) < len(settings.languages):
        problem = "must name each language once"
        issues.append(ConfigIssue("translate.languages", settings.languages, problem, "Drop the second one."))
    if unknown := [code for code in settings.only or [] if code not in settings.languages]:
        hint = "Add it to translate.languages, at the end."
        issues.append(ConfigIssue("translate.only", unknown, "must be among translate.languages", hint))
    return issues


def _ability_issues(settings: TranslationSettings, abilities: Mapping[str, AbilityData]) -> list[ConfigIssue]:
    if not abilities:
        hint = "Add what is to be translated, such as {math: {path: math.jsonl}}."
        return [ConfigIssue("data.abilities", {}, "must hold an ability", hint)]
    issues = [issue for name in abilities for issue in name_issues(name, "data.abilities")]
    for setting in ("abilities", "distinct"):
        issues += list_issues(getattr(settings, setting) or [], abilities, f"translate.{setting}")
    for name in settings.distinct:
        if name in abilities and abilities[name].limit is None:
            problem = "must say how many rows each language gets, for the ability is in translate.distinct"
            issues.append(ConfigIssue(f"data.abilities.{name}.limit", None, problem, "Write a number, such as 1500."))
        if name in abilities and abilities[name].per_group is not None:
            problem = "must not stand beside translate.distinct, which takes further rows as they come"
            hint = "Give each group as an ability of its own, with filter."
            issues.append(ConfigIssue(f"data.abilities.{name}.per_group", abilities[name].per_group, problem, hint))
    return issues


def _endpoint_issues(settings: TranslationSettings) -> list[ConfigIssue]:
    issues = []
    if find_spec("openai") is None:
        problem = "needs the package openai, which is not installed"
        issues.append(ConfigIssue("translate", "openai", problem, "pip install 'act-lightning[translate]'"))
    if not (settings.model or os.environ.get(MODEL_VARIABLE)):
        hint = f"Write its name, such as gpt-4o-mini, or set {MODEL_VARIABLE}."
        issues.append(ConfigIssue("translate.model", None, "must name a model", hint))
    if settings.key_variable and not settings.secret():
        problem = "must name an environment variable that holds the endpoint's key, and it is not set"
        hint = f"export {settings.key_variable}=…, or write null for an endpoint that wants no key."
        issues.append(ConfigIssue("translate.key_variable", settings.key_variable, problem, hint))
    for model, price in settings.prices.items():
        if price.input < 0 or price.output < 0:
            hint = "Write dollars for a million tokens."
            issues.append(ConfigIssue(f"translate.prices.{model}", price, "must not be negative", hint))
    return issues
