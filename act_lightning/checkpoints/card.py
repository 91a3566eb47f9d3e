"""The README of an exported model, in the form the hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(base: str, sources: Sequence[str], recipe_yaml: str, transfer: Mapping[str, Any]) -> str:
    """A model card: YAML front matter for the hub, then what was transferred, and the recipe.

    Args:
        base: The target: a hub id, or a folder, of which only the last part is told.
        sources: The source models, likewise; none for plain fine-tuning.
        recipe_yaml: The config of the run.
        transfer: What ``transfer.json`` holds; empty without a transfer.

    Returns:
        The text of a ``README.md``.
    """
    parts = ["---\n" + _front_matter(base, sources) + "---", "", *_introduction(base, sources, transfer)]
    for name, source in transfer.get("sources", {}).items():
        parts += ["", *_source_section(name, source)]
    return "\n".join([*parts, "", "## Recipe", "", *_fenced(recipe_yaml, "yaml"), ""])


def _front_matter(base: str, sources: Sequence[str]) -> str:
    models = [model for model in dict.fromkeys((base, *sources)) if _HUB_ID.fullmatch(model)]
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if models:
        values["base_model"] = models
        values["base_model_relation"] = "merge" if sources else "finetune"
    values["tags"] = ["merge", "act-lightning"] if sources else ["act-lightning"]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _introduction(base: str, sources: Sequence[str], transfer: Mapping[str, Any]) -> Iterator[str]:
    if not sources:
        yield f"# {_short(base)}, fine-tuned"
        yield from ("", f"`{_short(base)}` fine-tuned with act-lightning, without a transfer.")
        return
    names = " and ".join(f"`{_short(source)}`" for source in sources)
    yield f"# {_short(base)} with abilities of {', '.join(map(_short, sources))}"
    yield from ("", f"Channels of {names} transferred into `{_short(base)}` by act-lightning (arXiv 2601.09398).")
    facts = {"Method": transfer.get("method"), "Selection": transfer.get("selection"), "Seed": transfer.get("seed")}
    told = [f"{label}: {value}." for label, value in facts.items() if value is not None]
    if told:
        yield from ("", " ".join(told))


def _source_section(name: str, source: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {name}", "")
    facts = [f"{key} {source[key]}" for key in ("scale", "ratio") if key in source]
    if "parameter_share" in source:
        facts.append(f"{source['parameter_share']:.2%} of all parameters")
    yield from (", ".join(facts) + ".", "") if facts else ()
    yield from ("| ability | selected channels | answer tokens |", "|---|---|---|")
    for ability, counts in source.get("abilities", {}).items():
        yield f"| {ability} | {counts.get('selected', '')} | {counts.get('tokens', '')} |"


def _fenced(text: str, language: str) -> list[str]:
    """``text`` as a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, text.rstrip("\n"), fence]


def _short(model: str) -> str:
    """A hub id as it is; of a folder the last part, for paths of one's machine are nobody's business."""
    return model if _HUB_ID.fullmatch(model) else re.split(r"[/\\]", model.rstrip("/\\"))[-1]
