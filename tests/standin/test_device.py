"""The stand-in device itself: it follows CUDA's rules, and sees a tensor that is left on the other device."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standin import run_program

pytestmark = pytest.mark.slow
_SYMPTOMS = re.compile("same device|device type tensor to numpy|requires `accelerate`")


def test_the_device_follows_cuda_s_rules() -> None:
    checks = Path(__file__).with_name("device_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", checks]
    subprocess.run(command, timeout=600, check=True, cwd=checks.parents[2])


def test_sees_every_move_that_is_left_out(tmp_path: Path) -> None:
    run_program("mutants", tmp_path)
    outcomes = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [outcome for outcome in outcomes if outcome["places"] != 1] == []  # the code is another now: so must they be
    unseen = [outcome for outcome in outcomes if not (outcome["linears"] or _SYMPTOMS.search(outcome["error"] or ""))]
    assert unseen == []
    assert len(outcomes) >= 18
