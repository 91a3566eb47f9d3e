"""Code that a model wrote: assembled from its output, and run against tests in a sandbox.

A sandbox is one of three kinds, see :class:`~act_lightning.data.ability_data.EvaluationData`. Each tests itself before
the first answer. Whatever goes wrong before an answer runs is an error of the sandbox, never a wrong answer.
"""

from __future__ import annotations

import ast
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO

from act_lightning.data.ability_data import NAMESPACES, PROCESS, EvaluationData
from act_lightning.errors import ActError, ConfigIssue

_RUNNER = files(__package__).joinpath("sandbox_runner.py")
_STARTUP = 60.0  # seconds for an interpreter, or a container, to start
_GRACE = 2.0  # seconds beyond the limit, in which the runner ends by itself
_ATTEMPTS = 3
_LONGEST_REPLY = 1 << 12
_ENVIRONMENT = {"HOME": "/tmp", "TMPDIR": "/tmp", "PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1"}
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store")  # what an interpreter may need
_UNPRIVILEGED = 65_534
_HINT = (
    "Give the set a container, `sandbox: [docker, run, --rm, -i, --network=none, IMAGE, python3]`, or "
    "`sandbox: process`, which keeps no code from your files and the network."
)


class SandboxError(Exception):
    """The sandbox does not work, whatever the answer."""


@dataclass(frozen=True)
class Sandbox:
    """A way to run code that passed its own test.

    Attributes:
        kind: ``namespaces``, ``process`` or ``container``.
        command: What starts an interpreter in it, which is given the runner.
    """

    kind: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        """What it holds."""
        program = Path(self.command[0]).name
        if self.kind == NAMESPACES:
            return f"namespaces ({program}): no network, no files but the interpreter's, and limits"
        if self.kind == PROCESS:
            return "a process with limits, which has your files and the network"
        return f"what {program} starts, with limits"

    def run(self, program: str, seconds: float, memory: int) -> bool:
        """Whether a program runs to its end, in ``seconds`` and ``memory`` bytes of address space.

        Raises:
            SandboxError: The sandbox does not work.
        """
        limits = {"CPU": max(1, round(seconds)), "AS": memory, "FSIZE": 1 << 20, "NOFILE": 64, "CORE": 0, "NPROC": 0}
        marker = f"passed {os.urandom(8).hex()}"  # random, so that exiting early does not look like success
        options: dict[str, object] = {"limits": limits, "seconds": seconds, "marker": marker}
        options |= {"reap": self.kind == PROCESS, "folder": "/tmp"}
        if self.kind == NAMESPACES and "unshare" in Path(self.command[0]).name:
            prefixes = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
            options["root"] = sorted({*_SYSTEM, *prefixes}, key=len)
            options["uid"] = _UNPRIVILEGED if os.geteuid() == 0 else None
        try:
            with ExitStack() as stack:
                if self.kind == PROCESS:
                    folder = tempfile.TemporaryDirectory(prefix="act-code-", ignore_cleanup_errors=True)
                    options["folder"] = stack.enter_context(folder)
                source = stack.enter_context(_anonymous_file())
                source.write(program.encode("utf-8", "replace"))
                source.seek(0)
                command = [*self.command, "-I", "-c", _RUNNER.read_text(encoding="utf-8"), json.dumps(options)]
                environment = None if self.kind == "container" else _ENVIRONMENT
                return marker in _converse(command, source, environment, seconds)
        except OSError as error:  # no space, no process, no such program
            raise SandboxError(str(error)) from error


def _anonymous_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("program"), "w+b")
    return tempfile.TemporaryFile()


def _converse(command: Sequence[str], source: IO[bytes], environment: dict[str, str] | None, seconds: float) -> str:
    """What a runner writes after it is ready, until it ends or the time is over; its processes are killed then.

    Raises:
        SandboxError: It ends, or says nothing, before it is ready.
    """
    process = subprocess.Popen(
        command,
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
        bufsize=0,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    replies = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    out, err = replies
    deadline, ready = time.monotonic() + _STARTUP, False
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in replies:
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            while time.monotonic() < deadline and selector.get_map() and len(replies[out]) < _LONGEST_REPLY:
                ended = process.poll() is not None
                for key, _ in selector.select(0 if ended else 0.2):
                    data = os.read(key.fd, _LONGEST_REPLY)
                    replies[key.fd] = (replies[key.fd] + data)[-2 * _LONGEST_REPLY :]
                    if not data:
                        selector.unregister(key.fd)
                if not ready and replies[out].startswith(b"ready\n"):
                    ready, deadline = True, time.monotonic() + seconds + _GRACE
                if ended:
                    break
        with suppress(subprocess.TimeoutExpired):  # the runner may be clearing up
            process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.stdout.close()
        process.stderr.close()
        process.wait()
    if not ready:
        reason = (replies[out] + replies[err]).decode("utf-8", "replace").strip().splitlines()
        raise SandboxError(reason[-1] if reason else f"status {process.returncode} before it was ready")
    return replies[out].decode("utf-8", "replace")


def passes_tests(
    code: str,
    test: str,
    entry_point: str,
    seconds: float = 10.0,
    memory: int = 2 << 30,
    sandbox: str | Sequence[str] = NAMESPACES,
) -> bool:
    """Whether ``check(entry_point)``, which ``test`` defines, succeeds after ``code`` has run in a sandbox.

    It may run for ``seconds`` and use ``memory`` bytes of address space.

    Raises:
        ActError: The sandbox does not hold what it promises on this machine, or stopped working.
    """
    opened = open_sandbox(sandbox)
    program = f"{code}\n\n{test}\n\ncheck({entry_point})\n"
    for attempt in range(_ATTEMPTS):
        try:
            return opened.run(program, seconds, memory)
        except SandboxError as error:
            if attempt + 1 == _ATTEMPTS:
                problem = f"stopped working: {error}"
                hint = "Free memory, processes and space for temporary files, and start again."
                raise ActError(ConfigIssue("sandbox", opened.kind, problem, hint)) from error
            time.sleep(1.0)  # the machine may be short of something for a moment
    raise AssertionError


def sandbox_issues(evaluations: Mapping[str, EvaluationData]) -> list[ConfigIssue]:
    """Why the code of evaluation sets cannot be run on this machine as they say."""
    issues = []
    for name, settings in evaluations.items():
        try:
            if settings.kind == "code":
                open_sandbox(settings.sandbox)
        except ActError as error:
            issues += [replace(issue, setting=f"data.evaluations.{name}.sandbox") for issue in error.issues]
    return issues


def open_sandbox(sandbox: str | Sequence[str]) -> Sandbox:
    """A sandbox that has passed its own test on this machine.

    Args:
        sandbox: ``namespaces``, ``process``, or the command of a container that ends in its interpreter.

    Raises:
        ActError: It does not hold what it promises.
    """
    return _open_sandbox(sandbox if isinstance(sandbox, str) else tuple(sandbox))


@cache
def _open_sandbox(sandbox: str | tuple[str, ...]) -> Sandbox:
    if isinstance(sandbox, tuple):
        candidates = [Sandbox("container", sandbox)]
    elif sandbox == PROCESS:
        candidates = [Sandbox(PROCESS, (sys.executable,))]
    else:
        candidates = [Sandbox(NAMESPACES, command) for command in _namespace_commands()]
    reasons = []
    for candidate in candidates:
        try:
            _self_test(candidate)
        except SandboxError as error:
            reasons.append(f"{Path(candidate.command[0]).name}: {error}")
        else:
            return candidate
    reason = "; ".join(reasons) or "neither bwrap nor unshare is there"
    problem = f"must hold what it promises, and does not on this machine ({reason})"
    raise ActError(ConfigIssue("sandbox", sandbox if isinstance(sandbox, str) else [*sandbox], problem, _HINT))


def _namespace_commands() -> list[tuple[str, ...]]:
    """Commands that start an interpreter in user, process, network and mount namespaces.

    Only as root may unshare's child take another user, whose processes the kernel counts.
    """
    unshare, bwrap, is_root = shutil.which("unshare"), shutil.which("bwrap"), os.geteuid() == 0
    commands: list[tuple[str, ...]] = []
    if unshare:
        spaces = ("--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child")
        commands.append((unshare, *(() if is_root else ("--user", "--map-root-user")), *spaces, sys.executable))
    if bwrap:
        prefixes = (sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1]))
        binds = [word for path in (*_SYSTEM, *prefixes) for word in ("--ro-bind-try", path, path)]
        isolation = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
        places = ("--dev", "/dev", "--size", str(1 << 26), "--tmpfs", "/tmp", "--chdir", "/tmp")
        commands.insert(len(commands) if is_root else 0, (bwrap, *isolation, *binds, *places, sys.executable))
    return commands


_PROBE = """\
import os, socket
def probe():
    assert "LOGNAME" not in os.environ and "USER" not in os.environ, "environment"
    def refused(act):
        try:
            act()
        except OSError:
            return True
        return False
    if {closed}:
        assert refused(lambda: socket.create_connection(("127.0.0.1", {port}), 2)), "network"
        assert refused(lambda: open("/etc/passwd").close()), "files"
        assert refused(lambda: open("/usr/act-probe", "w").close()), "writing"
    if {counted}:
        assert refused(lambda: os.fork() or os._exit(0)), "processes"
    open("probe", "w").write("x" * 1000)
    return True
"""


def _self_test(sandbox: Sandbox) -> None:
    """Run code that tries what the sandbox must refuse, a right answer, a wrong one, and one that never ends.

    Raises:
        SandboxError: Naming what does not hold.
    """
    closed = sandbox.kind == NAMESPACES
    counted = closed or (sandbox.kind == PROCESS and os.geteuid() != 0)  # the kernel does not count root's processes
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = _PROBE.format(port=server.getsockname()[1], closed=closed, counted=counted)
        if not sandbox.run(f"{probe}\nassert probe()\n", 20.0, 2 << 30):
            raise SandboxError("it lets code reach files, network or other processes, or runs none at all")
    for program, expected in (("x = 1\n", True), ("raise SystemExit(0)\n", False)):
        if sandbox.run(program, 20.0, 2 << 30) is not expected:
            raise SandboxError(f"{program.strip()!r} is taken for {'wrong' if expected else 'right'}")


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
