"""The pieces of Markdown that cards are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from act_lightning.cards.record import License, common_license, is_hub_id, license_text, short


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first row is its head.

    >>> table([["a", "b"], ["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def fenced(text: str, language: str) -> list[str]:
    """``text`` as a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, text.rstrip("\n"), fence]


def front_matter(values: Mapping[str, Any]) -> list[str]:
    """The YAML with which the hub wants a card to begin."""
    return ["---", yaml_text(values).rstrip("\n"), "---", ""]


def yaml_text(values: Mapping[str, Any]) -> str:
    """``values`` as YAML, in their order."""
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


_RECIPE, _RECORD = "## Recipe", "## Record"
_MIXED = "The licenses are not all the same or not all stated: what they allow together is for you to find out."


@dataclass(frozen=True)
class Card:
    """What a card tells.

    Attributes:
        record: The models and data that went in, their hashes and licenses, and the hashes of what came out; see
            :func:`~act_lightning.cards.record.run_record`.
        recipe: The run's config without paths of one's machine; empty where a program made the run.
        transfer: What ``transfer.json`` holds; empty without a transfer.
        results: Rows of a table, the head first; empty where nothing was evaluated.
    """

    record: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    transfer: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Sequence[str]] = ()

    @property
    def _base(self) -> str:
        return str(self.record["models"]["model.target"]["name"])

    @property
    def _sources(self) -> list[str]:
        return [short(source["model"]) for source in self.transfer.get("sources", {}).values()]

    @property
    def _models(self) -> list[Mapping[str, Any]]:
        """The records of the models that are in the result."""
        names = (self._base, *self._sources)
        return [one for one in self.record["models"].values() if one["name"] in names]

    def render(self) -> str:
        """The text of a ``README.md``: YAML front matter for the hub, then what was done with what."""
        parts = [*front_matter(self._front_matter()), *self._introduction()]
        for name, source in self.transfer.get("sources", {}).items():
            parts += ["", *_source_section(name, source)]
        for title, rows in (("Base models", self._bases()), ("Data", self._data()), ("Results", self.results)):
            if rows:
                parts += ["", f"## {title}", "", *table(rows)]
            if title == "Base models" and not self._license:
                parts += ["", _MIXED]
        if self.recipe:
            parts += ["", _RECIPE, "", *fenced(yaml_text(self.recipe), "yaml")]
        parts += ["", _RECORD, "", *fenced(json.dumps(self.record, indent=2, ensure_ascii=False), "json")]
        return "\n".join([*parts, ""])

    def _front_matter(self) -> dict[str, Any]:
        models = [model for model in dict.fromkeys((self._base, *self._sources)) if is_hub_id(model)]
        values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
        values |= self._license
        if models:
            values["base_model"] = models
            values["base_model_relation"] = "merge" if self._sources else "finetune"
        if data := [one["path"] for one in self._abilities().values() if is_hub_id(one["path"])]:
            values["datasets"] = list(dict.fromkeys(data))
        values["tags"] = ["merge", "act-lightning"] if self._sources else ["act-lightning"]
        return values

    def _introduction(self) -> Iterator[str]:
        base = self._base
        if not self._sources:
            yield from (f"# {base}, fine-tuned", "")
            yield f"`{base}` fine-tuned with act-lightning, without a transfer."
            return
        names = " and ".join(f"`{source}`" for source in self._sources)
        yield f"# {base} with abilities of {', '.join(self._sources)}"
        yield from ("", f"Channels of {names} transferred into `{base}` by act-lightning (arXiv 2601.09398).")
        facts = {name.capitalize(): self.transfer.get(name) for name in ("method", "selection", "seed")}
        told = [f"{label}: {value}." for label, value in facts.items() if value is not None]
        if told:
            yield from ("", " ".join(told))

    @property
    def _license(self) -> License:
        return common_license([one["license"] for one in self._models])

    def _bases(self) -> list[list[str]]:
        rows = [[one["name"], license_text(one["license"])] for one in self._models]
        return [["model", "license"], *rows]

    def _abilities(self) -> dict[str, Any]:
        return dict((self.recipe.get("data") or {}).get("abilities") or {})

    def _data(self) -> list[list[str]]:
        """A row for each ability: where its rows come from, and the fingerprint of those that were used."""
        prints = self.record.get("data", {})
        rows = []
        for name, settings in self._abilities().items():
            told = [str(settings[key]) for key in ("path", "name", "split", "revision") if settings.get(key)]
            print_ = prints.get(f"data.abilities.{name}") or "not known"
            rows.append([name, ", ".join(told), str(settings.get("limit") or "all"), print_])
        return [["ability", "data", "rows at most", "fingerprint (SHA-256)"], *rows] if rows else []


def recipe_and_record(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe and the record that a rendered card holds; empty where it holds none.

    Raises:
        ValueError: They have been edited, and are no longer YAML and JSON.
    """
    recipe, record = _block(text, _RECIPE, "yaml"), _block(text, _RECORD, "json")
    try:
        found = (yaml.safe_load(recipe) if recipe else {}), (json.loads(record) if record else {})
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not all(isinstance(one, dict) for one in found):
        raise ValueError("recipe and record must be mappings")
    return found


def _block(text: str, title: str, language: str) -> str:
    pattern = rf"^{re.escape(title)}\n\n(`{{3,}}){language}\n(.*?)\n\1$"
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    return found.group(2) if found else ""


def _source_section(name: str, source: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {name}", "")
    facts = [f"{key} {source[key]}" for key in ("scale", "ratio") if key in source]
    if "parameter_share" in source:
        facts.append(f"{source['parameter_share']:.2%} of all parameters")
    yield from (", ".join(facts) + ".", "") if facts else ()
    rows = [
        [ability, str(counts.get("selected", "")), str(counts.get("tokens", ""))]
        for ability, counts in source.get("abilities", {}).items()
    ]
    yield from table([["ability", "selected channels", "answer tokens"], *rows])
