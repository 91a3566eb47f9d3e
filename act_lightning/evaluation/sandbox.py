"""Code that a model wrote: assembled from its output, and run against tests in a separate, limited process."""

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


def passes_tests(code: str, test: str, entry_point: str, seconds: float = 10.0, memory: int = 2 << 30) -> bool:
    """Whether ``check(entry_point)``, which ``test`` defines, succeeds after ``code`` has run in a limited process.

    The process may run for ``seconds`` and use ``memory`` bytes of address space.
    """
    limits = {
        "RLIMIT_CPU": max(1, round(seconds)),
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": 1 << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }
    marker = f"passed {os.urandom(8).hex()}"  # random, so that exiting early does not look like success
    program = f"{code}\n\n{test}\n\ncheck({entry_point})\n"
    runner = _RUNNER.format(limits=limits, marker=marker)
    return marker in _run([*network_isolation(), sys.executable, "-I", "-c", runner], program, seconds)


def _run(command: list[str], program: str, seconds: float) -> str:
    """Standard output of a process; empty if it fails or runs out of time. Its children are killed with it."""
    temporary = tempfile.TemporaryDirectory(prefix="act-code-", ignore_cleanup_errors=True)
    with temporary as folder, Path(folder, ".stdout").open("wb") as stdout:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=stdout,
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
        return Path(stdout.name).read_text("utf-8", "replace") if process.returncode == 0 else ""


@cache
def network_isolation() -> tuple[str, ...]:
    """Prefix of a command that runs it without network; empty where this machine does not permit that."""
    program = shutil.which("unshare")
    if program is None:
        return ()
    prefix = (program, "--user", "--net")
    trial = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if trial.returncode == 0 else ()


_FENCE = re.compile(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# Where EvalPlus cuts the output of a model that goes on after its function: provider/utility.py, version 0.3.1.
_STOPS = ("\nif __name__", "\ndef main(", "\nprint(", "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")


def assemble_program(prompt: str, output: str, entry_point: str) -> str:
    r"""The program in an output: the output alone if it defines the function, otherwise after the prompt.

    Of a fenced block only the block counts; other text counts up to where EvalPlus would cut it. Lines at the end that
    are not valid Python, as in a truncated answer, are dropped.

    >>> print(assemble_program("def one():\n", "    return 1\n\nprint(one())", "one"))
    def one():
        return 1
    >>> print(assemble_program("def one():\n", "Sure:\n```python\ndef one():\n    return 1\n```\nDone.", "one"))
    def one():
        return 1
    """
    end = min((index for stop in _STOPS if (index := output.find(stop)) >= 0), default=len(output))
    block = _FENCE.search(output)
    if block is None or block.start() > end:
        return _valid_lines(prompt + output[:end])
    code = _valid_lines(block[1])
    return code if defines_function(code, entry_point) else _valid_lines(prompt + block[1])


def _valid_lines(code: str) -> str:
    """``code`` without the fewest lines at its end that keep it from being valid Python."""
    lines = code.rstrip().splitlines()
    for end in range(len(lines), 0, -1):
        text = "\n".join(lines[:end])
        if _parse(text) is not None:
            return text
    return ""


def defines_function(code: str, name: str) -> bool:
    """Whether ``code`` is valid Python and defines a function of this name at the top level."""
    module = _parse(code)
    statements = [] if module is None else module.body
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name for node in statements)


def _parse(code: str) -> ast.Module | None:
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.parse(code)
    return None
