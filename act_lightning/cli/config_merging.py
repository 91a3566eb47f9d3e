"""Several ``--config`` files as overlays: later files win, and dicts of data sets are merged by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]  # computed __all__
from lightning.pytorch.cli import LightningArgumentParser

from act_lightning.cli.yaml_checks import repeated_keys
from act_lightning.errors import raise_if_any

_MERGED_BY_KEY = ("data.abilities", "data.evaluations")


class ConfigParser(LightningArgumentParser):
    """A parser whose messages name the config file that they are about.

    Attributes:
        reading: The file that is being read.
    """

    reading = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print ``message`` and exit."""
        super().error(f"{self.reading}: {message}" if self.reading else message, ex)


class MergeConfigFiles(ActionConfigFile):
    """``--config``, given several times: later files win, and dicts of data sets are merged by key."""

    def __call__(  # type: ignore[override]
        self, parser: ArgumentParser, cfg: Namespace, values: str, option_string: str | None = None
    ) -> None:
        """Apply one more config file.

        Raises:
            ActError: If it gives a key twice in one place.
        """
        raise_if_any(repeated_keys(_content(str(values)), str(values)))
        earlier = {key: _plain(cfg.get(key)) for key in _MERGED_BY_KEY}
        _set_reading(parser, str(values))
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        _set_reading(parser, "")
        for key, before in earlier.items():
            later = _plain(cfg.get(key))
            if before and later is not None:
                cfg[key] = _merge(before, later)


def _set_reading(parser: ArgumentParser, file: str) -> None:
    if isinstance(parser, ConfigParser):
        parser.reading = file


def _content(file: str) -> str:
    """The text of a file; nothing where there is none, of which the parser has more to say."""
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of a config
    """Namespaces and what they hold as dicts."""
    if isinstance(value, Namespace):
        value = vars(value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _merge(before: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    both = {**before, **later}
    nested = {
        key for key in before.keys() & later.keys() if isinstance(before[key], dict) and isinstance(later[key], dict)
    }
    return {key: _merge(before[key], later[key]) if key in nested else both[key] for key in both}
