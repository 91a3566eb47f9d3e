"""A stand-in GPU: a torch device over the host's memory, with the CPU's kernels and CUDA's rules.

What a test without a GPU can't see otherwise: tensors that are left on the other device, work that the host does in
place of the device, and how often the host waits. It can't show memory, speed, CUDA's own kernels and their rounding,
streams, compiled code, or several devices.

The name of a torch device is for the whole process and can't be taken back, so only programs import ``device``:
``device_checks.py``, ``compare.py`` and ``mutants.py``, which tests start as processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Without accelerate, which is no dependency, though the tests' environment has it.
_PROGRAM = (
    "import runpy, sys; sys.modules['accelerate'] = None; runpy.run_module(sys.argv.pop(1), {}, '__main__', True)"
)
_SECONDS = 3600  # all scenarios take four minutes on two free cores


def run_program(name: str, folder: Path, *arguments: str) -> None:
    """Run a program of this folder to its end."""
    root = Path(__file__).parents[2]
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", _PROGRAM, f"tests.standin.{name}", str(folder), *arguments]
    subprocess.run(command, env=os.environ | variables, timeout=_SECONDS, check=True, cwd=root)
