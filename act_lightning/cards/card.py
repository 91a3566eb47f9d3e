"""The card of an exported model: a README for the hub and for readers, which holds all that a replay needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from act_lightning.cards.record import (
    CARD,
    LICENSE_KEYS,
    License,
    common_license,
    data_fingerprints,
    is_hub_id,
    license_text,
    model_identities,
    portable_recipe,
    short_name,
    versions,
)
from act_lightning.checkpoints.adapters import split_adapter
from act_lightning.checkpoints.files import parse_json, read_json
from act_lightning.checkpoints.weight_files import CONFIG, identify
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.escaping import markdown_code, markdown_text, terminal_text
from act_lightning.redaction import redact

TRANSFER = "transfer.json"
_LARGEST, _DEEPEST = 1 << 22, 50  # characters of a card, and brackets of its recipe in each other
_EXPORTS = ("model", "merged")
_RECIPE, _RECORD = "## Recipe", "## Record"
_MIXED = "The licenses are not all the same or not all stated: what they allow together is for you to find out."
_SHARES = ("exact_match", "flexible_match", "answered")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def new_card(base: str, recipe_yaml: str, transfer: Mapping[str, Any], verb: str) -> str:
    """The card that is written with an export, while its models and data are at hand.

    Args:
        base: How the user named the target.
        recipe_yaml: The run's config; empty if the run was started from Python.
        transfer: The content of ``transfer.json``; empty without a transfer.
        verb: ``merge`` or ``fit``.

    Raises:
        ActError: The recipe is not a YAML mapping.
    """
    try:
        recipe = dict(yaml.safe_load(recipe_yaml) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        problem = f"must be a YAML mapping, as a config is ({error})"
        raise ActError(ConfigIssue("recipe", recipe_yaml, problem, "Give the run's config, or nothing.")) from error
    portable, shortened = portable_recipe(recipe)
    if "model" not in recipe:
        sources = [{"model": source["model"]} for source in transfer.get("sources", {}).values()]
        recipe = {"model": {"target": base}, "profile": {"sources": sources}}
    models, data = model_identities(recipe), data_fingerprints(recipe)
    record = {"verb": verb, "versions": versions(), "models": models, "data": data, "shortened": shortened}
    return render_card(record, portable, transfer)


def rebuild_card(folder: Path, evaluations: Path | None = None, sha256: Mapping[str, str] | None = None) -> str:
    """The card of an exported ``folder`` with the hashes of its weights, and the run's results so far.

    :func:`new_card` has no hashes: weights cannot be hashed before they are written, and a folder never appears without
    a card.

    Args:
        folder: An exported model.
        evaluations: The run's folder of results; it need not exist.
        sha256: That of every weight file, as it was written; by default all bytes are read.

    Raises:
        ActError: The folder has no card of act-lightning, or its recipe or record is damaged.
    """
    recipe, record = read_card(folder)
    identity = identify(folder, verify=sha256 is None)
    identity = replace(identity, sha256=sha256 or identity.sha256)
    results = [] if evaluations is None else result_rows(evaluations, identity.full_digest)
    record["result"] = {"digest": identity.digest, "sha256": dict(identity.sha256 or {})}
    try:
        return render_card(record, recipe, read_transfer(folder), results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ActError):
            raise
        problem = f"must hold the record and the recipe of a run, undamaged ({error!r})"
        raise ActError(ConfigIssue("card", str(folder / CARD), problem, "Export the model again.")) from error


def render_card(
    record: Mapping[str, Any],
    recipe: Mapping[str, Any] = _NOTHING,
    transfer: Mapping[str, Any] = _NOTHING,
    results: Sequence[Sequence[str]] = (),
) -> str:
    """The text of a ``README.md``: YAML front matter for the hub, then what was done with which models and data.

    Args:
        record: Models, data, their hashes and licenses, and hashes of the result.
        recipe: The run's config without absolute paths; empty if the run was started from Python.
        transfer: The content of ``transfer.json``; empty without a transfer.
        results: Rows of a table, its head first; empty without evaluations.
    """
    record, recipe = redact(dict(record)), redact(dict(recipe))
    base = str(record["models"]["model.target"]["name"])
    sources = [short_name(source["model"]) for source in transfer.get("sources", {}).values()]
    models = [model for model in record["models"].values() if model["name"] in (base, *sources)]
    abilities = (recipe.get("data") or {}).get("abilities") or {}
    license_ = common_license([model["license"] for model in models])
    tags, relation = (["merge", "act-lightning"], "merge") if sources else (["act-lightning"], "finetune")
    data = [ability["path"] for ability in abilities.values()]
    lines = front_matter([base, *sources], license_, tags, relation, data)
    if sources:
        names = " and ".join(map(markdown_code, sources))
        lines += [f"# {markdown_text(base)} with abilities of {markdown_text(', '.join(sources))}", ""]
        lines += [f"Channels of {names} transferred into {markdown_code(base)} by act-lightning (arXiv 2601.09398)."]
        facts = [(name.capitalize(), transfer.get(name)) for name in ("method", "selection", "seed")]
        if settings := " ".join(f"{name}: {markdown_text(value)}." for name, value in facts if value is not None):
            lines += ["", settings]
    else:
        lines += [f"# {markdown_text(base)}, fine-tuned", ""]
        lines += [f"{markdown_code(base)} fine-tuned with act-lightning, without a transfer."]
    for name, source in transfer.get("sources", {}).items():
        lines += ["", *_source_section(name, source)]
    rows = [[model["name"], license_text(model["license"])] for model in models]
    lines += ["", "## Base models", "", *table([["model", "license"], *rows])]
    if not license_:
        lines += ["", _MIXED]
    if abilities:
        rows = [["ability", "data", "rows at most", "fingerprint (SHA-256)"]]
        for name, settings in abilities.items():
            where = ", ".join(str(settings[key]) for key in ("path", "name", "split", "revision") if settings.get(key))
            fingerprint = record.get("data", {}).get(f"data.abilities.{name}") or "not known"
            rows.append([name, where, str(settings.get("limit") or "all"), fingerprint])
        lines += ["", "## Data", "", *table(rows)]
    if results:
        lines += ["", "## Results", "", *table(results)]
    blocks = [(_RECORD, "json", terminal_text(json.dumps(record, indent=2, ensure_ascii=False)))]
    if recipe:
        blocks.insert(0, (_RECIPE, "yaml", yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)))
    for title, language, text in blocks:
        longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
        fence = "`" * max(3, longest + 1)  # longer than any run of backticks in the text
        lines += ["", title, "", fence + language, text.rstrip("\n"), fence]
    return "\n".join([*lines, ""])


def _source_section(name: str, source: Mapping[str, Any]) -> list[str]:
    facts = [f"{key} {markdown_text(source[key])}" for key in ("scale", "ratio") if key in source]
    if "parameter_share" in source:
        facts.append(f"{source['parameter_share']:.2%} of all parameters")
    rows = [
        [ability, str(counts.get("selected", "")), str(counts.get("tokens", ""))]
        for ability, counts in source.get("abilities", {}).items()
    ]
    sentence = [", ".join(facts) + ".", ""] if facts else []
    return [
        f"## {markdown_text(name)}",
        "",
        *sentence,
        *table([["ability", "selected channels", "answer tokens"], *rows]),
    ]


def front_matter(
    models: Iterable[str], license_: License, tags: Sequence[str], relation: str | None = None, data: Iterable[str] = ()
) -> list[str]:
    """The lines of YAML with which a card on the hub begins; only hub ids are listed as base models and data sets."""
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    values |= {key: markdown_text(license_[key]) for key in LICENSE_KEYS if key in license_}
    parts = (part for model in models for part in split_adapter(model) or (model,))
    if base_models := [model for model in dict.fromkeys(parts) if is_hub_id(model)]:
        values["base_model"] = base_models
        values |= {"base_model_relation": relation} if relation else {}
    if datasets := [path for path in dict.fromkeys(data) if is_hub_id(path)]:
        values["datasets"] = datasets
    values["tags"] = list(tags)
    return ["---", yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip("\n"), "---", ""]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row is its head.

    >>> table([["a", "b"], ["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def read_card(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe and the record in the card at ``path``, a file or its folder.

    Raises:
        ActError: There is no card of act-lightning, or its recipe or record is damaged.
    """
    path = path / CARD if path.is_dir() else path
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"it is longer than {_LARGEST:,} characters")
        block = _block(text, _RECIPE, "yaml")
        _check_recipe(block)
        recipe, record = yaml.safe_load(block), parse_json(_block(text, _RECORD, "json"), unique_keys=True)
        if not isinstance(recipe, dict) or not isinstance(record, dict):
            raise ValueError("recipe and record must be mappings")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problem = f"must be a readable card ({error.strerror if isinstance(error, OSError) else error})"
        raise ActError(ConfigIssue("card", str(path), problem, "Name a README.md.")) from error
    if not record:
        problem = "must hold the record of a run, as the cards of act-lightning's exports do"
        hint = "Name the README.md of a folder that `fit` or `merge` wrote."
        raise ActError(ConfigIssue("card", str(path), problem, hint))
    return recipe, record


def _block(text: str, title: str, language: str) -> str:
    """What the first block of code with this title holds; that of an empty mapping if it is not there."""
    opening = re.search(rf"^{re.escape(title)}\n\n(`{{3,}}){language}\n", text, re.MULTILINE)
    if opening is None:
        return "{}"
    end = re.compile(rf"^{opening[1]}$", re.MULTILINE).search(text, opening.end())
    return text[opening.end() : end.start()] if end else "{}"


def _check_recipe(text: str) -> None:
    """Refuse YAML that takes long to read, or holds more than it has lines; ValueError says why."""
    depth, starts = 0, (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken)
    for token in yaml.scan(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(token, starts) - isinstance(token, (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken))
        if depth > _DEEPEST:
            raise ValueError("a recipe is not nested that deeply")
        if isinstance(token, yaml.AliasToken):
            raise ValueError("a recipe has no aliases, of which a few lines can make a mapping without end")


def read_transfer(folder: Path) -> dict[str, Any]:
    """The content of an exported folder's ``transfer.json``; empty without a transfer.

    Raises:
        ActError: It is damaged.
    """
    path = folder / TRANSFER
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        problem = f"must be the JSON of a transfer ({error})"
        raise ActError(ConfigIssue("transfer.json", str(path), problem, "Export the model again.")) from error


def exported_folders(run: Path) -> list[Path]:
    """The exported models of a run: ``model`` and ``merged`` in its folder, or the folder itself.

    Raises:
        ActError: There is none.
    """
    folders = [run / name for name in _EXPORTS if (run / name / CONFIG).is_file()]
    folders = folders or ([run] if (run / CONFIG).is_file() else [])
    if not folders:
        problem = f"must be a run's folder that holds {' or '.join(_EXPORTS)}, or an exported model"
        raise ActError(ConfigIssue("run", str(run), problem, "Run `fit` or `merge` first, or correct the path."))
    return folders


def result_rows(folder: Path, digest: str) -> list[list[str]]:
    """The figures in every JSON file of a run's ``evaluations/``, the head of the table first.

    Results of ``test`` come with their intervals, comparisons as accuracies, and any other number under
    its dotted name. Rows name the model that was evaluated; another than the one with the card also by the digest of
    its weights. Files that are not JSON are skipped, for they may come from other programs.

    Args:
        folder: The folder; it need not exist.
        digest: Of the weights of the model with the card.
    """
    rows: list[list[str]] = []
    for path in (*sorted(folder.glob("*.json")), *sorted(folder.glob("*/results.json"))):
        try:
            content = read_json(path)
        except (OSError, ValueError):
            continue
        items = content if isinstance(content, list) else []
        if items and all(isinstance(item, dict) and {"correct", "total"} <= item.keys() for item in items):
            for item in items:
                for name, correct in item["correct"].items():
                    total = item["total"][name]
                    share = f"{correct / total:.1%} ({correct} of {total})" if total else "no items"
                    rows.append([name, str(item.get("model", "")), "accuracy", share])
        elif isinstance(content, dict) and {"model", "sets"} <= content.keys():
            rows += _test_rows(content, digest)
        else:
            rows += [[path.stem, "", name, f"{value:g}"] for name, value in _numbers(content)]
    return [["evaluation", "model", "what", "value"], *rows] if rows else []


def _test_rows(content: Mapping[str, Any], digest: str) -> Iterator[list[str]]:
    """Shares with their 95 % intervals by evaluation set; then the means over sets to keep and sets to recover."""
    model, evaluated = short_name(str(content["model"])), content.get("digest")
    if evaluated != digest:
        model += " (digest not recorded)" if evaluated is None else f" ({str(evaluated)[:8]})"
    for name, result in content["sets"].items():
        for share in (share for share in _SHARES if share in result.get("shares", {})):
            yield [name, model, share.replace("_", " "), f"{_interval(result['shares'][share])}, n = {result['total']}"]
    for role, mean in content.get("means", {}).items():
        yield [role, model, "mean accuracy", _interval(mean)]


def _interval(share: Mapping[str, float]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _numbers(child, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name or "value", float(value)
