"""Every example runs: with tiny models in this process, and as its first lines say, on the laboratory."""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import act_lightning
from tests.front_door import launch_forgotten

ROOT = Path(act_lightning.__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
Numbers = Callable[[str], list[float]]

# What an example's table must show, given the numbers in the line that starts with a label.
SHOWS: dict[str, Callable[[Numbers], bool]] = {
    "custom_scorer": lambda of: of("Rare")[0] > of("activation")[0] and of("Rare")[3] > of("target")[3] - 5,
    "huggingface_trainer": lambda of: of("ACT")[1] < of("fine-tuning")[1] < of("fine-tuning")[0],
    "lightning_loop": lambda of: of("ACT")[0] < of("fine-tuning")[0] < of("target")[0],
    "publish_patch": lambda of: of("patch:")[1] < 10,
    "two_sources": lambda of: all(of(name)[3] > of(name)[0] + 50 for name in ("first", "second")),
}

each = pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)


def commands(file: Path) -> list[list[str]]:
    """The commands in an example's first lines."""
    head = file.read_text(encoding="utf-8").split('"""')[1].replace("\\\n", "")
    return [shlex.split(line)[1:] for line in head.splitlines() if line.startswith("    python ")]


@each
# Eight samples make no stable mask, and tiny models have large heads.
@pytest.mark.filterwarnings("ignore:.* (belong to|answer tokens are fewer)")
# 2026-11-29: transformers 5.23 asks torch for pinned memory without an accelerator, too.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_runs_with_tiny_models(
    file: Path,
    target_folder: Path,
    source_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = [source_folder] * (2 if file.stem == "two_sources" else 1)
    words = [file, "--target", target_folder, "--source", *sources, "--samples", 8, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()) as out, launch_forgotten():
        runpy.run_path(str(file), run_name="__main__")
    assert "Next: " in out.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@each
def test_says_how_to_run_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, with_models = commands(file)
    assert own == [f"examples/{file.name}"]
    assert {"--target", "--source"} <= set(with_models)
    monkeypatch.setattr(sys, "argv", [*with_models, "--help"])  # whose action exits after what is before it is parsed
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(file), run_name="__main__")


@pytest.mark.slow
@each
def test_shows_what_it_promises_on_the_laboratory(file: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def numbers(label: str) -> list[float]:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(label)]
        return [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", line.removeprefix(label))]

    assert SHOWS[file.stem](numbers), done.stdout
