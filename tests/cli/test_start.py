"""How fast a verb starts: by what it imports, not by the clock; and what it says before that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

import act_lightning.cli
from act_lightning.cli import VERBS, main

ROOT = Path(act_lightning.cli.__file__).parents[2]
HEAVY = {"lightning", "transformers", "datasets", "pandas", "matplotlib", "optuna", "torchmetrics"}


def imported_by(code: str) -> set[str]:
    """The packages that a new process has imported when it has run ``code``."""
    code = f"import sys\n{code}\nprint('\\n' + ' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].imports != "PyTorch Lightning"])
def test_a_verb_imports_no_more_than_it_says(verb: str) -> None:
    module = VERBS[verb].entry.partition(":")[0]
    packages = imported_by(f"import act_lightning.cli.{module}")
    assert not packages & HEAVY
    assert ("torch" in packages) is (VERBS[verb].imports == "torch")


@pytest.mark.parametrize("arguments", [["--help"], ["nonsense"], ["fit", "--help"], ["data", "inspect", "--help"]])
def test_help_and_wrong_verbs_wait_for_no_import(arguments: list[str]) -> None:
    code = f"from act_lightning.cli import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert not imported_by(code) & (HEAVY | {"torch", "jsonargparse", "numpy", "rich"})


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_line_stands_before_the_first_import(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> NoReturn:
        raise KeyboardInterrupt

    def first_lines(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["act-lightning", verb, *arguments])
        assert main() == 130
        return capsys.readouterr().err.replace("stopped by Ctrl-C\n", "")

    monkeypatch.setattr(act_lightning.cli, "import_module", interrupted)
    line = first_lines("--config", "recover.yaml")
    expected = f"{verb}: importing {VERBS[verb].imports}, then reading what it is given\n"
    assert line == (expected if VERBS[verb].imports else "")
    assert len(line) <= 80
    assert first_lines("--json") == first_lines("--print_config") == ""
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert first_lines() == ""


def test_a_program_that_calls_main_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Any = ["compare", "nowhere", "elsewhere"]
    assert main(arguments) == 1
    assert "importing" not in capsys.readouterr().err
