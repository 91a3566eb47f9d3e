"""Write the JSON schema of a config to act_lightning/cli/config.schema.json, from the parsers of the verbs.

python -m scripts.schema
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import types
from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from act_lightning.cli.config_schema import FILE
from act_lightning.cli.lightning_cli import ActCLI
from act_lightning.translation.translation_settings import TranslationSettings

Schema = dict[str, Any]
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_SEQUENCES = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_OBJECT: Schema = {  # any class, known here or not
    "type": "object",
    "required": ["class_path"],
    "properties": {
        "class_path": {"type": "string"},
        "init_args": {"type": "object"},
        "dict_kwargs": {"type": "object"},
    },
    "additionalProperties": False,
}
_ABOUT = "A config of act-lightning. Every part may be missing: several files add up, and later ones win."


class Parsers(ActCLI):
    """The parsers of the verbs, before any argument is parsed."""

    def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
        """Stop here."""
        raise InterruptedError(self._subcommand_parsers)


def parsers() -> list[ArgumentParser]:
    """Those whose settings a config may hold."""
    verbs = ["fit", "sweep", "causes"]
    try:
        Parsers(verbs)
    except InterruptedError as stopped:
        translate = ArgumentParser()
        translate.add_class_arguments(TranslationSettings, "translate")
        return [*(stopped.args[0][verb] for verb in verbs), translate]
    raise RuntimeError("no parsers were made")


def make() -> Schema:
    """The schema of all settings."""
    schema: Schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "act-lightning"}
    schema |= {"description": _ABOUT, "type": "object", "properties": {}, "additionalProperties": False}
    for action in (action for parser in parsers() for action in parser._actions):
        name, hint = action.dest, getattr(action, "_typehint", None)
        if hint is None and action.nargs == 0 and name in ("verify", "overwrite"):
            hint = bool | None
        if hint is None or name.endswith(".help"):
            continue
        section, _, key = name.rpartition(".")
        properties = schema["properties"]
        if section:
            new = {"type": "object", "properties": {}, "additionalProperties": False}
            properties = properties.setdefault(section, new)["properties"]
        about = "" if action.help in (None, "==SUPPRESS==") else " ".join(str(action.help).split())
        properties.setdefault(key, of_type(hint) | ({"description": about.replace("``", "`")} if about else {}))
    for name in ("abilities", "evaluations"):  # an overlay may change one setting of a set
        for part in schema["properties"]["data"]["properties"][name]["additionalProperties"]["anyOf"]:
            part.pop("required", None)
    return schema


def of_type(hint: Any) -> Schema:  # noqa: ANN401 - any type
    """The schema of the values that jsonargparse accepts for a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return any_of([of_type(argument) for argument in arguments])
    if hint in _SEQUENCES or origin in _SEQUENCES:
        items = [argument for argument in arguments if argument is not ...]
        return {"type": "array"} | ({"items": of_type(items[0])} if items else {})
    if hint is dict or origin in (dict, collections.abc.Mapping):
        values = of_type(arguments[1]) if arguments else {}
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    if hint in (Path, timedelta):
        return {"type": "string"}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return of_dataclass(hint)
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return {"enum": list(hint.__members__)}
    if hint is Any or isinstance(hint, TypeVar):
        return {}
    return any_of([{"type": "string"}, _OBJECT])


def any_of(schemas: Sequence[Schema]) -> Schema:
    """One schema of several; those that only name a type become a list of types."""
    flat = [part for schema in schemas for part in (schema["anyOf"] if set(schema) == {"anyOf"} else [schema])]
    if {} in flat:
        return {}
    named = [schema for schema in flat if set(schema) == {"type"}]
    kinds = sorted(
        {kind for schema in named for kind in ([schema["type"]] if isinstance(schema["type"], str) else schema["type"])}
    )
    if {"integer", "number"} <= {*kinds}:
        kinds.remove("integer")
    others = [schema for i, schema in enumerate(flat) if schema not in named and schema not in flat[:i]]
    parts = others + ([{"type": kinds[0] if len(kinds) == 1 else kinds}] if kinds else [])
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def of_dataclass(cls: Any) -> Schema:  # noqa: ANN401 - any data class
    """An object with a property for each field."""
    hints, about = get_type_hints(cls), documented(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        described = {"description": about[field.name]} if field.name in about else {}
        properties[field.name] = of_type(hints[field.name]) | described
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def documented(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about each attribute."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        for part in docstring_parser.parse(each.__doc__ or "").meta:
            if isinstance(part, docstring_parser.DocstringParam):
                texts[part.arg_name] = " ".join((part.description or "").split()).replace("``", "`")
    return texts


def text() -> str:
    """The content of the file."""
    return json.dumps(make(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"written to {FILE}")
