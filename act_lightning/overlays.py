"""Several ``--config`` files as overlays: later files win, and dicts of data sets are merged by key."""

from __future__ import annotations

from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

_MERGED_BY_KEY = ("data.abilities", "data.evaluations")


class MergingConfigFile(ActionConfigFile):
    """``--config``, given several times: later files win, and dicts of data sets are merged by key."""

    def __call__(  # type: ignore[override]
        self, parser: ArgumentParser, cfg: Namespace, values: str, option_string: str | None = None
    ) -> None:
        """Apply one more config file."""
        earlier = {key: _plain(cfg.get(key)) for key in _MERGED_BY_KEY}
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        for key, before in earlier.items():
            later = _plain(cfg.get(key))
            if before and later is not None:
                cfg[key] = _merge(before, later)


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
