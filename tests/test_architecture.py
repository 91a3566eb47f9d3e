"""The house rules that a glance at the files can hold; import-linter holds the floors."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import act_lightning

ROOT = Path(act_lightning.__file__).parent.parent
SOURCES = sorted((ROOT / "act_lightning").rglob("*.py"))
HEAVY = ("torch", "transformers", "lightning", "datasets")


def test_callbacks_is_a_door_only() -> None:
    door = ROOT / "callbacks"
    assert door.is_symlink()
    assert door.readlink() == Path("act_lightning/callbacks")
    assert door.resolve() == ROOT / "act_lightning" / "callbacks"


def test_every_room_has_its_floor() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {room.strip(" ()") for layer in layers for room in layer.split("|")}
    rooms = {path.relative_to(ROOT / "act_lightning").parts[0].removesuffix(".py") for path in SOURCES}
    assert rooms - {"__init__"} <= named


def test_the_package_alone_is_light() -> None:
    code = f"import sys, act_lightning; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
