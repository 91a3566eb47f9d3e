"""The command line as a user meets it: a config that runs in a second, a call with what it printed, what it left."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from act_lightning.cli import main

Config = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        status: The exit status.
        out: Standard output.
        err: Standard error, without what loggers write.
    """

    status: int
    out: str
    err: str


# What Lightning leaves in the environment: seeds, and where a group of processes meets.
_OF_A_LAUNCH = (
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
)


@contextmanager
def launch_forgotten() -> Iterator[None]:
    """A launch finds nothing of those before it in the environment, and leaves nothing to those after it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _OF_A_LAUNCH:
            patch.setenv(name, "0")
            patch.delenv(name)
        yield


def call(*arguments: object) -> Outcome:
    """``python -m act_lightning`` with these arguments, in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, launch_forgotten():
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def run(verb: str, config: Mapping[str, Any], *arguments: object) -> Outcome:
    """A verb with a config, written beside the run's folder, and more arguments."""
    root = Path(config["trainer"]["default_root_dir"])
    return call(verb, "--config", write_yaml(root.with_name("config.yaml"), config), *arguments)


def basic(root: Path, target: Path, source: Path, data: Path) -> Config:
    """One source and one ability of 24 rows: two updates."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return {
        "model": {"target": str(target), "learning_rate": 1.0e-3},
        "data": {"abilities": {"d": {"path": str(data)}}},
        "profile": {"sources": [{"model": str(source), "abilities": ["d"], "name": "s"}]},
        "transfer": {"ratio": 0.1},
        "trainer": {
            "accelerator": "cpu",
            "accumulate_grad_batches": 16,
            "default_root_dir": str(root / "run"),
            **quiet,
        },
    }


def changed(config: Config, path: str, value: Any) -> Config:
    """A copy in which ``path`` (dotted; numbers are places in lists) has another value, or is gone if it is ``...``."""
    config = copy.deepcopy(config)
    *way, last = path.split(".")
    place: Any = config
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return config


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    """A YAML file."""
    path.write_text(yaml.safe_dump(dict(content), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def left(root: Path) -> list[str]:
    """All files and folders below ``root``, in order; none if it does not exist."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))
