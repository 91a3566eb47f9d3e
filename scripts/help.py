"""Write what the code says of its verbs and settings: act_lightning/cli/help.json, docs/verbs.md and docs/settings.md.

    python scripts/help.py

``--help`` prints the first without an import of Lightning.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser

from act_lightning.analysis.causes_settings import CausesSettings
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.cli import PROGRAM, VERBS, main
from act_lightning.data.ability_data import AbilityData, EvaluationData, PerGroup
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.merging import METHODS
from act_lightning.module import AbilityTransferModule
from act_lightning.scorers import SCORERS
from act_lightning.sweep.sweep_settings import SweepSettings
from act_lightning.transfer.settings import AbilitySource
from act_lightning.translation.translation_settings import TranslationSettings

ROOT = Path(__file__).parent.parent
FILE = ROOT / "act_lightning" / "cli" / "help.json"
SETTINGS_PAGE, VERBS_PAGE = ROOT / "docs" / "settings.md", ROOT / "docs" / "verbs.md"
WIDTH, NAME, DEFAULT = 80, 31, 11
SECTIONS: dict[str, Any] = {
    "model": AbilityTransferModule,
    "data": AbilityDataModule,
    "profile": ActivationDifferenceProfiler,
    "transfer": MaskedTaskVectorInjection,
    "sweep": SweepSettings,
    "causes": CausesSettings,
    "translate": TranslationSettings,
}
SHOWN = {  # sections in full, and an example
    "fit": (("model", "data", "profile", "transfer"), "fit --config recover.yaml --transfer.ratio 0.02"),
    "validate": (("data",), "validate --config recover.yaml --model.target runs/qwen/model"),
    "test": (("data",), "test --config recover.yaml --model.target runs/qwen/model"),
    "predict": (("data",), "predict --config recover.yaml --model.target runs/qwen/model"),
    "profile": (("profile",), "profile --config recover.yaml --profile.chunks 16"),
    "merge": (("profile", "transfer"), "merge --config recover.yaml --transfer.scale 0.7"),
    "causes": (("causes",), "causes --config recover.yaml --causes.samples 64"),
    "sweep": (("sweep",), "sweep --config recover.yaml --sweep.ratios 0.01,0.05"),
    "plan": ((), "plan --config recover.yaml --for merge --json"),
    "data inspect": ((), "data inspect --config recover.yaml"),
    "data translate": (("translate",), "data translate --config recover.yaml --config configs/data/translation.yaml"),
}
RARE = {"model.generator_args", "data.num_proc", "data.cache_dir", "model.revision"}
LINKED = {"target", "revision"}  # of data and profile: taken from section model
OPTIONS = {
    "fit": "--ckpt_path PATH, --overwrite, --verify",
    "merge": "--overwrite, --verify",
    "plan": "--for VERB, --calibrate, --json, --overwrite",
    "data inspect": "--json",
    "data translate": "--yes, --dry_run",
}
PATCH = ("patch", *(f"patch {name}" for name in ("make", "apply", "revert", "show", "extract-lora")))
OTHERS = ("compare", "card", "replay", "report", "dequantize", "init", "config-schema", "env", *PATCH)


def short_help(verb: str) -> str:
    """Usage, what it does, an example, and a line for each setting of its own."""
    sections, example = SHOWN[verb]
    lines = [f"usage: {PROGRAM} {verb} --config FILE [--config FILE …]", "       [--section.key VALUE …]", ""]
    lines += [*textwrap.wrap(about_of(verb), WIDTH), "", f"  {PROGRAM} {example}", ""]
    for section in sections:
        lines += settings(section, SECTIONS[section])
    others = [f"{section}.*" for section in ("model", "data", "profile", "transfer") if section not in sections]
    rest = f"{', '.join([*others, 'trainer.*'])}: see --help-all. Options: --print_config"
    if options := OPTIONS.get(verb):
        rest += f", {options}"
    return "\n".join([*lines, *textwrap.wrap(f"{rest}.", WIDTH)]) + "\n"


def about_of(verb: str) -> str:
    """What a verb does, from the parser that answers it."""
    if verb in VERBS:
        return VERBS[verb].about
    from act_lightning.cli import lightning_cli

    return str({"data inspect": lightning_cli._INSPECT, "data translate": lightning_cli._TRANSLATE}[verb])


def settings(section: str, cls: Any) -> Iterator[str]:  # noqa: ANN401 - any class with settings
    """A line for each setting of a section: name, default, and the first sentence about it."""
    documented = documented_settings(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        if f"{section}.{name}" in RARE or (section in ("data", "profile") and name in LINKED):
            continue
        required = parameter.default is inspect.Parameter.empty
        default = "required" if required else default_text(parameter.default)
        about = " ".join(documented.get(name, "").replace("``", "").split())
        yield fit_line(f"  {f'--{section}.{name}':<{NAME}}{default:<{DEFAULT}}", about)


def documented_settings(cls: Any) -> dict[str, str]:  # noqa: ANN401
    """What the docstrings of a class and of its bases say about each of its settings."""
    documented: dict[str, str] = {}
    for each in inspect.getmro(cls):
        for entry in docstring_parser.parse(each.__doc__ or "").meta:
            if isinstance(entry, docstring_parser.common.DocstringParam):
                documented.setdefault(entry.arg_name, entry.description or "")
    return documented


def default_text(value: object) -> str:
    """A default, as short as it stands in a config."""
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    if text is None and str(value) == "<factory>":
        return "…"
    text = text or (", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return text if 0 < len(text) < DEFAULT else "…" if text else "none"


def fit_line(start: str, about: str) -> str:
    """The line, with as many clauses as it has room for, or else words."""
    room = WIDTH - len(start)
    ends = [match.start() for match in re.finditer(r"[.;:,](?= |$)", f"{about}.") if 12 < match.start() <= room]
    clause = about[: ends[-1]] if ends else ""
    open_bracket = clause.count("(") != clause.count(")") or clause.count("{") != clause.count("}")
    return (
        start + (clause if clause and not open_bracket else textwrap.shorten(about, room, placeholder=" …"))
    ).rstrip()


def parsers_help(verb: str) -> str:
    """The help of a verb whose parser is small."""
    with redirect_stdout(io.StringIO()) as text, suppress(SystemExit):
        main([*verb.split(), "--help"])
    return text.getvalue()


NESTED: dict[str, dict[str, tuple[str, Any]]] = {  # by section: the setting, a sentence, and the class of its values
    "data": {
        "data.abilities.NAME": ("Where the rows of an ability come from: see [Data](data.md).", AbilityData),
        "data.abilities.NAME.per_group": ("", PerGroup),
        "data.evaluations.NAME": ("All settings of an ability, and: see [Evaluation](evaluation.md).", EvaluationData),
    },
    "profile": {"profile.sources[]": ("", AbilitySource)},
    "transfer": {
        "transfer.selection": (
            "A name, or `{class_path: act_lightning.scorers.CLASS, init_args: {…}}`: see [Selections](selections.md).",
            SCORERS,
        ),
        "transfer.method": (
            "A name, or `{class_path: act_lightning.merging.CLASS, init_args: {…}}`: see [Merging](merging.md).",
            METHODS,
        ),
    },
}


def settings_page() -> str:
    """Every setting with its type, default and meaning."""
    lines = [(Path(__file__).parent / "settings_page.md").read_text(encoding="utf-8").strip()]
    for section, cls in SECTIONS.items():
        lines += [
            "",
            f"## {section}",
            "",
            markdown_text(docstring_parser.parse(cls.__doc__).short_description or ""),
            "",
        ]
        lines += settings_table(cls, LINKED if section in ("data", "profile") else set())
        for name, (about, of) in NESTED.get(section, {}).items():
            lines += ["", f"### {name}", ""]
            if isinstance(of, dict):
                lines += [about, "", *classes_table(of)]
                continue
            lines += [about or markdown_text(docstring_parser.parse(of.__doc__).short_description or ""), ""]
            lines += settings_table(
                of,
                {each.name for each in dataclasses.fields(AbilityData)} - {"role"} if of is EvaluationData else set(),
            )
    return "\n".join(lines) + "\n"


def settings_table(cls: Any, left_out: set[str]) -> Iterator[str]:  # noqa: ANN401
    """A row for each setting of a class."""
    documented = documented_settings(cls)
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in left_out:
            meaning = markdown_text(documented.get(name, ""))
            yield f"| `{name}` | {type_text(cls, parameter)} | {written(parameter)} | {meaning} |"


def type_text(cls: Any, parameter: inspect.Parameter) -> str:  # noqa: ANN401
    """The type of a setting, with the choices of one that has choices."""
    names = {name: value for each in inspect.getmro(cls) for name, value in vars(sys.modules[each.__module__]).items()}
    text = re.sub(r"\b[A-Z]\w+\b(?!\[)", lambda word: choices(names.get(word[0])) or word[0], str(parameter.annotation))
    text = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace(", ", " | "), text)
    return (
        "`" + re.sub(r"\bNone\b", "null", text).replace("'", "").replace(" | ", " or ") + "`"
    )  # no table has | in code


def choices(value: object) -> str:
    """The values of an alias of ``Literal``, alone or with other types, or nothing."""
    if get_origin(value) is Literal:
        return " | ".join(map(str, get_args(value)))
    if get_origin(value) is Union:
        return " | ".join(choices(each) or each.__name__ for each in get_args(value))
    return ""


def classes_table(classes: dict[str, Any]) -> Iterator[str]:
    """A row for each selection or merging method, with the arguments that it takes."""
    yield "| name | class | arguments and defaults |"
    yield "|---|---|---|"
    for name, cls in classes.items():
        pairs = (f"`{each}`: {written(value)}" for each, value in inspect.signature(cls).parameters.items())
        yield f"| `{name}` | `{cls.__name__}` | {', '.join(pairs)} |"


def written(parameter: inspect.Parameter) -> str:
    """A default as a config writes it."""
    value = parameter.default
    if value is inspect.Parameter.empty:
        return "required"
    if str(value) == "<factory>":
        return "…"
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False, default=str)
    return f"`{text if isinstance(value, list | tuple | dict) else text.strip(chr(34))}`".replace("``", "empty")


def markdown_text(docstring: str) -> str:
    """A paragraph of a docstring as a cell of a table."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(docstring.split()))
    return text.replace("``", "`").replace("`None`", "`null`").replace("|", "\\|")


def verbs_page(texts: dict[str, str]) -> str:
    """Every verb: what it does, and its help."""
    lines = [(Path(__file__).parent / "verbs_page.md").read_text(encoding="utf-8").strip(), ""]
    lines += ["| verb | does |", "|---|---|"]
    lines += [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {verb.about} |" for name, verb in VERBS.items() if name != "data"
    ]
    lines += [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {about_of(name)} |" for name in texts if name.startswith("data ")
    ]
    for name in sorted(texts, key=lambda name: [*VERBS].index(name.split()[0])):
        lines += ["", f"## {name}", "", "```text", texts[name].rstrip(), "```"]
    return "\n".join(lines) + "\n"


def make() -> str:
    """The content of the file."""
    texts = {verb: short_help(verb) for verb in SHOWN} | {verb: parsers_help(verb) for verb in OTHERS}
    return json.dumps(texts, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.unlink(missing_ok=True)  # else the parsers' own help would come from it
    FILE.write_text(make(), encoding="utf-8")
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")
    VERBS_PAGE.write_text(verbs_page(json.loads(FILE.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"written to {FILE}, {SETTINGS_PAGE} and {VERBS_PAGE}")
