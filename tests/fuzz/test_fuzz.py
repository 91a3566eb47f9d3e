"""A minute of ``python -m tests.fuzz``, in a process whose memory is bounded."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

_MEMORY = 8 << 30


@pytest.mark.slow
def test_a_minute_of_strange_files() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "60"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY)),
    )
    assert result.returncode == 0, result.stderr[-5000:]
    assert result.stdout.count(" of them refused") == 13
