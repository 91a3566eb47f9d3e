"""The pieces of Markdown that cards are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from act_lightning.cards.recipes import portable_recipe
from act_lightning.cards.record import (
    CARD,
    License,
    common_license,
    is_hub_id,
    license_text,
    result_hashes,
    run_record,
    short_name,
)
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.weight_files import CONFIG
from act_lightning.errors import ActError, ConfigIssue


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
        return [short_name(source["model"]) for source in self.transfer.get("sources", {}).values()]

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


def parse_card(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
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


_SHARES = ("exact_match", "flexible_match", "answered")


def result_rows(folder: Path) -> list[list[str]]:
    """The figures in every JSON file of a run's ``evaluations/``, the head of the table first.

    Results of ``test`` are told with their intervals; comparisons as shares of exact matches; any other number under
    its dotted name. Rows name the model that was evaluated, which need not be the one with the card. A file that is no
    JSON is passed over, for others may put theirs there.

    Args:
        folder: The folder; it need not exist.
    """
    rows = [row for path in sorted(folder.glob("*.json")) for row in _file_rows(path)]
    return [["evaluation", "model", "what", "value"], *rows] if rows else []


def _file_rows(path: Path) -> Iterator[list[str]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    rows = content if isinstance(content, list) else []
    if rows and all(isinstance(row, dict) and {"correct", "total"} <= row.keys() for row in rows):
        yield from (line for row in rows for line in _comparison_rows(row))
    elif isinstance(content, dict) and {"model", "sets"} <= content.keys():
        yield from _test_rows(content)
    else:
        yield from ([path.stem, "", name, f"{value:g}"] for name, value in _numbers(content))


def _comparison_rows(row: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, correct in row["correct"].items():
        total = row["total"][name]
        share = f"{correct / total:.1%} ({correct} of {total})" if total else "no items"
        yield [name, str(row.get("model", "")), "exact match", share]


def _test_rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """Shares with the ends of their 95 % intervals, set by set; then the means of sets to keep and to recover."""
    model = short_name(str(content["model"]))
    for name, one in content["sets"].items():
        for share in (share for share in _SHARES if share in one.get("shares", {})):
            yield [name, model, share.replace("_", " "), f"{_interval(one['shares'][share])}, n = {one['total']}"]
    for role, mean in content.get("means", {}).items():
        yield [role, model, "mean exact match", _interval(mean)]


def _interval(share: Mapping[str, float]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name or "value", float(value)


TRANSFER = "transfer.json"
_EXPORTS = ("model", "merged")


def new_card(base: str, recipe_yaml: str, transfer: Mapping[str, Any], verb: str) -> str:
    """The card that is written with an export, while the models and data it came from are at hand.

    Args:
        base: How the user named the target.
        recipe_yaml: The run's config; empty where a program made the run.
        transfer: What ``transfer.json`` holds; empty without a transfer.
        verb: ``merge`` or ``fit``.

    Raises:
        ActError: The recipe is no YAML mapping.
    """
    recipe = _parsed(recipe_yaml)
    sources = [{"model": source["model"]} for source in transfer.get("sources", {}).values()]
    made_by_program = {"model": {"target": base}, "profile": {"sources": sources}}
    record = run_record(verb, recipe if "model" in recipe else made_by_program)
    travels, record["shortened"] = portable_recipe(recipe)
    return Card(record, travels, transfer).render()


def complete_card(folder: Path, verify: bool) -> None:
    """Add the hashes of an exported ``folder`` to its card.

    The weights cannot be hashed before they are written, and a folder appears with a card or not at all.

    Args:
        folder: An exported model.
        verify: Whether to read all bytes, for the SHA-256 of every weight file; else the digest of a sample has to do.
    """
    write_file(folder / CARD, _again(folder, [], verify))


def rebuild_card(folder: Path, evaluations: Path) -> str:
    """The card of an exported ``folder`` with all hashes, and the results that a run has saved since.

    Args:
        folder: An exported model.
        evaluations: The run's folder of results; it need not exist.

    Raises:
        ActError: There is no card of ours to start from, or its recipe or record has been damaged.
    """
    return _again(folder, result_rows(evaluations), verify=True)


def exported_folders(run: Path) -> list[Path]:
    """The exported models of a run: ``model`` and ``merged`` in its folder, or the folder itself.

    Raises:
        ActError: There is none.
    """
    found = [run / name for name in _EXPORTS if (run / name / CONFIG).is_file()]
    found = found or ([run] if (run / CONFIG).is_file() else [])
    if not found:
        problem = f"must be a run's folder that holds {' or '.join(_EXPORTS)}, or an exported model"
        raise ActError(ConfigIssue("run", str(run), problem, "Run `fit` or `merge` first, or correct the path."))
    return found


def read_card(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe and the record in the card at ``path``, or in the folder ``path``.

    Raises:
        ActError: There is no card, or none of ours.
    """
    path = path / CARD if path.is_dir() else path
    try:
        recipe, record = parse_card(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ActError(
            ConfigIssue("card", str(path), f"must be a readable card ({error})", "Name a README.md.")
        ) from error
    if not record:
        problem = "must hold the record of a run, as the cards of act-lightning's exports do"
        raise ActError(
            ConfigIssue("card", str(path), problem, "Name the README.md of a folder that `fit` or `merge` wrote.")
        )
    return recipe, record


def read_transfer(folder: Path) -> dict[str, Any]:
    """What the ``transfer.json`` of an exported folder holds; empty without a transfer.

    Raises:
        ActError: It has been damaged.
    """
    path = folder / TRANSFER
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        problem = f"must be the JSON of a transfer ({error})"
        raise ActError(ConfigIssue("transfer.json", str(path), problem, "Export the model again.")) from error


def _again(folder: Path, results: list[list[str]], verify: bool) -> str:
    recipe, record = read_card(folder)
    return Card({**record, "result": result_hashes(folder, verify)}, recipe, read_transfer(folder), results).render()


def _parsed(recipe_yaml: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(recipe_yaml) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        problem = f"must be a YAML mapping, as a config is ({error})"
        raise ActError(ConfigIssue("recipe", recipe_yaml, problem, "Give the run's config, or nothing.")) from error
