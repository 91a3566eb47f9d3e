"""Fits that SIGKILL or SIGTERM ends anywhere: the next start goes on, and ends with the bits of an undisturbed one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.front_door import Config, basic, changed, left, write_yaml
from tests.killing import Point, status_of
from tests.reference.act import assert_same_bits
from tests.tiny import save_pair, write_jsonl
from tests.training.processes import weights

pytestmark = pytest.mark.slow
STOPPED = 143

POINTS = {
    "profiling": Point("os.rename", r"/scores/s/e\.safetensors$"),  # d is finished
    "writing scores": Point("os.rename", r"/scores/s/e\.safetensors$", half=True),
    "injection": Point("os.rename", r"/run/transfer\.json$"),
    "training, before a checkpoint": Point("open", r"/\.last\.ckpt\.tmp-"),
    "training": Point("open", r"/\.last\.ckpt\.tmp-", time=2),
    "the first checkpoint": Point("os.rename", r"/checkpoints/last\.ckpt$", half=True),
    "a later checkpoint": Point("os.rename", r"/checkpoints/last\.ckpt$", time=3, half=True),
    "export": Point("os.rename", r"/run/model$"),
    "writing the model": Point("open", r"/\.model\.tmp-[^/]*/model\.safetensors"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of models and two abilities."""
    root = tmp_path_factory.mktemp("killed")
    save_pair(root, "llama")
    for name in ("d", "e"):
        rows = ({"prompt": f"{name} {i}", "answer": "one " * (1 + 7 * i % 5)} for i in range(11))
        write_jsonl(root / f"{name}.jsonl", rows)
    return root


def config_of(place: Path, name: str) -> Config:
    """Two epochs of 18 samples: of two updates with two micro-batches, and one with one; a checkpoint after each."""
    folder = place / name
    folder.mkdir()
    config = basic(folder, place / "target", place / "source", place / "d.jsonl")
    config["data"] |= {"abilities": {name: {"path": str(place / f"{name}.jsonl")} for name in ("d", "e")}}
    config["data"] |= {"batch_size": 4, "validation": 0.2}
    config["profile"]["sources"][0]["abilities"] = ["d", "e"]
    kept = {"class_path": "act_lightning.callbacks.LastCheckpoint", "init_args": {"every_n_updates": 1}}
    config["trainer"] |= {"accumulate_grad_batches": 2, "max_epochs": 2, "callbacks": [kept]}
    return config


def fit(config: Config, *arguments: object, until: Point | None = None) -> int:
    """As a script does that starts a fit again until it ends well: always with the same command."""
    file = write_yaml(Path(config["trainer"]["default_root_dir"]).with_name("config.yaml"), config)
    return status_of("fit", file, "--ckpt_path", "last", *arguments, until=until)


@pytest.fixture(scope="module")
def straight(place: Path) -> Path:
    """The run that nothing disturbs."""
    config = config_of(place, "straight")
    assert fit(config) == 0
    return Path(config["trainer"]["default_root_dir"])


def assert_the_same(root: Path, straight: Path) -> None:
    assert_same_bits(weights(root / "model"), weights(straight / "model"))
    assert json.loads((root / "transfer.json").read_text()) == json.loads((straight / "transfer.json").read_text())
    assert [name for name in left(root) if ".tmp-" in name] == []


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_killed(point: Point, place: Path, straight: Path, request: pytest.FixtureRequest) -> None:
    config = config_of(place, request.node.callspec.id.replace(" ", "-").replace(",", ""))
    root = Path(config["trainer"]["default_root_dir"])
    assert fit(config, until=point) == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in root.glob("scores/s/*.safetensors")}
    assert finished
    assert fit(config) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert_the_same(root, straight)


def test_killed_again_and_again(place: Path, straight: Path) -> None:
    config = config_of(place, "again")
    starts = 0
    while fit(config, until=Point("os.rename", r"/checkpoints/last\.ckpt$", time=2)) == -signal.SIGKILL:
        starts += 1
    assert starts == 5, "each start has done one more of six updates"
    assert_the_same(Path(config["trainer"]["default_root_dir"]), straight)


TOLD = {
    "profiling": (Point("os.rename", r"/scores/s/e\.safetensors$", by=signal.SIGINT), False),
    "training": (Point("open", r"/\.last\.ckpt\.tmp-", time=2, by=signal.SIGINT), True),
    "exporting": (Point("open", r"/\.model\.tmp-[^/]*/model\.safetensors", by=signal.SIGTERM), True),
}


@pytest.mark.parametrize(("point", "kept"), TOLD.values(), ids=TOLD)
def test_told_to_stop(point: Point, kept: bool, place: Path, straight: Path, request: pytest.FixtureRequest) -> None:
    """Nothing half written is left."""
    config = config_of(place, f"told-{request.node.callspec.id}")
    root = Path(config["trainer"]["default_root_dir"])
    assert fit(config, until=point) == 128 + point.by
    assert [name for name in left(root) if ".tmp-" in name] == []
    assert (root / "checkpoints" / "last.ckpt").exists() == kept
    assert not (root / "model").exists()
    assert fit(config) == 0
    assert_the_same(root, straight)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_told_within_a_window(by: signal.Signals, place: Path, straight: Path) -> None:
    """When the log of the first update is opened; the window that has begun is finished, and a checkpoint written."""
    config = changed(config_of(place, f"window-{by.name}"), "trainer.callbacks", [])
    root = Path(config["trainer"]["default_root_dir"])
    told = Point("open", r"/logs/version_0/metrics\.csv$", by=by)
    assert fit(config, until=told) == 128 + by
    assert left(root / "checkpoints") == ["last.ckpt"]
    assert fit(config) == 0
    assert_the_same(root, straight)


def test_profile_told_to_stop(place: Path) -> None:
    config = config_of(place, "profile")
    root = Path(config["trainer"]["default_root_dir"])
    file = write_yaml(root.with_name("config.yaml"), config)
    told = Point("os.rename", r"/scores/s/e\.safetensors$", by=signal.SIGTERM)
    assert status_of("profile", file, until=told) == STOPPED
    assert left(root / "scores") == ["s", "s/d.safetensors"]
    assert status_of("profile", file) == 0
    assert left(root / "scores") == ["s", "s/d.safetensors", "s/e.safetensors"]
