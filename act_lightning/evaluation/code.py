"""Code that a model wrote: put together from its output, and run against tests in a process of its own."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

SECONDS = 10.0
MEMORY = 2 << 30
_RUNNER = """\
import os, resource, sys
for name, limit in {limits!r}.items():
    kind = getattr(resource, name, None)
    if kind is not None:
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):
            pass
program = sys.stdin.read()
sys.stdout = open(os.devnull, "w")
exec(compile(program, "<answer>", "exec"), {{"__name__": "answer"}})
sys.__stdout__.write({marker!r})
"""


def passes_tests(code: str, test: str, entry_point: str, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
    """Whether ``check(entry_point)`` of ``test`` ends well after ``code`` has run, in a process of its own.

    Args:
        code: What the model wrote, with what it completes.
        test: Code that defines ``check``.
        entry_point: The function that is checked.
        seconds: Time that the process may take.
        memory: Bytes that it may ask for.
    """
    marker = f"passed {os.urandom(8).hex()}"  # so that leaving early is no success
    program = f"{code}\n\n{test}\n\ncheck({entry_point})\n"
    runner = _RUNNER.format(limits=_limits(seconds, memory), marker=marker)
    return marker in _run([*without_network(), sys.executable, "-I", "-c", runner], program, seconds)


def _limits(seconds: float, memory: int) -> dict[str, int]:
    return {
        "RLIMIT_CPU": max(1, round(seconds)),
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": 1 << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }


def _run(command: list[str], program: str, seconds: float) -> str:
    """What a process says within its time; nothing if it fails or is killed, with all that it has started."""
    with tempfile.TemporaryDirectory(prefix="act-code-", ignore_cleanup_errors=True) as folder:
        said = Path(folder) / ".said"
        with said.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                process.communicate(program.encode("utf-8", "replace"), timeout=seconds)
            except subprocess.TimeoutExpired:
                return ""
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return said.read_text("utf-8", "replace") if process.returncode == 0 else ""


@cache
def without_network() -> tuple[str, ...]:
    """The beginning of a command that takes the network away; empty where this machine does not permit it."""
    program = shutil.which("unshare")
    prefix = (program, "--user", "--net") if program else ()
    tried = prefix and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if tried else ()


_FENCE = re.compile(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# Where EvalPlus stops a model that completes a function and goes on: its provider/utility.py, version 0.3.1.
_STOPS = (
    "\nif __name__",
    "\ndef main(",
    "\nprint(",
    "\ndef ",
    "\nclass ",
    "\nimport ",
    "\nfrom ",
    "\nassert ",
)


def completed(prompt: str, output: str, entry_point: str) -> str:
    r"""The program that an output makes: on its own where it defines the function, else after the prompt.

    A fenced block counts alone; other text up to where EvalPlus stops a model. Lines at the end that are no Python (an
    answer that was cut) are dropped.

    >>> print(completed("def one():\n", "    return 1\n\nprint(one())", "one"))
    def one():
        return 1
    >>> print(completed("def one():\n", "Sure:\n```python\ndef one():\n    return 1\n```\nDone.", "one"))
    def one():
        return 1
    """
    end = min((place for stop in _STOPS if (place := output.find(stop)) >= 0), default=len(output))
    block = _FENCE.search(output)
    if block is None or block.start() > end:
        return _parsing(prompt + output[:end])
    own = _parsing(block[1])
    return own if defines(own, entry_point) else _parsing(prompt + block[1])


def _parsing(code: str) -> str:
    """The longest beginning of ``code``, in lines, that is Python."""
    lines = code.rstrip().splitlines()
    for end in range(len(lines), 0, -1):
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            text = "\n".join(lines[:end])
            ast.parse(text)
            return text
    return ""


def defines(code: str, entry_point: str) -> bool:
    """Whether ``code`` is Python and defines a function of that name at its top."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == entry_point for node in body)
