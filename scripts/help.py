"""Write the help of every verb to act_lightning/cli/help.json, which is printed without an import of Lightning.

python scripts/help.py
"""

from __future__ import annotations

import inspect
import io
import json
import re
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import docstring_parser

from act_lightning.analysis.causes_settings import CausesSettings
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.cli import PROGRAM, VERBS, main
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from act_lightning.sweep.sweep_settings import SweepSettings
from act_lightning.translation.translation_settings import TranslationSettings

FILE = Path(__file__).parent.parent / "act_lightning" / "cli" / "help.json"
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
OTHERS = ("compare", "card", "replay", "report", "dequantize", "config-schema", "env", *PATCH)


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
    documented = {each.arg_name: each.description or "" for each in docstring_parser.parse(cls.__doc__).params}
    for attribute in docstring_parser.parse(cls.__doc__).meta:
        if isinstance(attribute, docstring_parser.common.DocstringParam):
            documented.setdefault(attribute.arg_name, attribute.description or "")
    for name, parameter in inspect.signature(cls).parameters.items():
        if f"{section}.{name}" in RARE or (section in ("data", "profile") and name in LINKED):
            continue
        required = parameter.default is inspect.Parameter.empty
        default = "required" if required else default_text(parameter.default)
        about = " ".join(documented.get(name, "").replace("``", "").split())
        yield fit_line(f"  {f'--{section}.{name}':<{NAME}}{default:<{DEFAULT}}", about)


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


def make() -> str:
    """The content of the file."""
    texts = {verb: short_help(verb) for verb in SHOWN} | {verb: parsers_help(verb) for verb in OTHERS}
    return json.dumps(texts, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.unlink(missing_ok=True)  # else the parsers' own help would come from it
    FILE.write_text(make(), encoding="utf-8")
    print(f"written to {FILE}")
