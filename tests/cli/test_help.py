"""Help is short, current, and printed at once."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import act_lightning
from act_lightning.cli import VERBS
from tests.front_door import call

ROOT = Path(act_lightning.__file__).parent.parent
HELP: dict[str, str] = json.loads((ROOT / "act_lightning" / "cli" / "help.json").read_text(encoding="utf-8"))


def script() -> Any:
    spec = importlib.util.spec_from_file_location("help_script", ROOT / "scripts" / "help.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_what_the_code_says() -> None:
    """Else run python scripts/help.py."""
    module = script()
    assert {verb: module.short_help(verb) for verb in module.SHOWN}.items() <= HELP.items()
    assert HELP.keys() == {*module.SHOWN, *module.OTHERS}
    assert {verb.split()[0] for verb in HELP} == set(VERBS)
    assert module.SETTINGS_PAGE.read_text(encoding="utf-8") == module.settings_page()
    assert module.VERBS_PAGE.read_text(encoding="utf-8") == module.verbs_page(HELP)


@pytest.mark.parametrize("verb", HELP)
def test_it_fits_a_screen(verb: str) -> None:
    lines = HELP[verb].splitlines()
    assert len(lines) <= 50
    assert call(*verb.split(), "--help").out == HELP[verb]
    if verb in script().SHOWN:
        assert not [line for line in lines if len(line) > 80 and not line.startswith("  python -m act_lightning")]


def test_all_settings_stand_in_the_long_help() -> None:
    text = call("fit", "--help-all").out
    assert len(text.splitlines()) > 400
    shown = [line.split()[0] for line in HELP["fit"].splitlines() if line.startswith("  --")]
    assert len(shown) > 30
    assert not [name for name in shown if name not in text]


def test_it_imports_neither_torch_nor_lightning() -> None:
    code = "import sys; from act_lightning.cli import main; main(['fit', '--help']); print([*sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, timeout=120).stdout
    assert not {"torch", "lightning", "transformers", "jsonargparse"} & set(eval(shown.splitlines()[-1]))
