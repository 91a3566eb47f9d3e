"""The command line as a user calls it: a small config, the outcome of a call, and the files that it left."""

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


# What Lightning sets in the environment: seeds, and the rendezvous of a process group.
_LAUNCH_VARIABLES = (
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
    """Hide the environment variables of earlier launches, and remove those of this one afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _LAUNCH_VARIABLES:
            patch.setenv(name, "0")
            patch.delenv(name)
        yield


def call(*arguments: object) -> Outcome:
    """Run ``python -m act_lightning`` with these arguments in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, launch_forgotten():
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def run(verb: str, config: Mapping[str, Any], *arguments: object) -> Outcome:
    """Run a verb with a config, which is written next to the run's folder, and more arguments."""
    root = Path(config["trainer"]["default_root_dir"])
    return call(verb, "--config", write_yaml(root.with_name("config.yaml"), config), *arguments)


def basic(root: Path, target: Path, source: Path, data: Path) -> Config:
    """A config with one source and one ability of 24 rows: two updates."""
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
    """A copy with another value at the dotted ``path`` (numbers index lists), or without it if the value is ``...``."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node: Any = config
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return config


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a YAML file and return its path."""
    path.write_text(yaml.safe_dump(dict(content), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def left(root: Path) -> list[str]:
    """All files and folders below ``root``, sorted; none if it does not exist."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))
