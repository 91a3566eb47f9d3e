"""Code that is put together and run: what passes, what fails, and what cannot do harm."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from act_lightning.data.ability_data import EvaluationData
from act_lightning.errors import ActError
from act_lightning.evaluation import sandbox
from act_lightning.evaluation.evaluator import Evaluator
from act_lightning.evaluation.grading import grade_code
from act_lightning.evaluation.sandbox import (
    NAMESPACES,
    PROCESS,
    Sandbox,
    SandboxError,
    assemble_program,
    open_sandbox,
    passes_tests,
    sandbox_issues,
)

try:
    open_sandbox(NAMESPACES)
    HOLDS = True
except ActError:
    HOLDS = False
KINDS = [pytest.param(NAMESPACES, marks=pytest.mark.skipif(not HOLDS, reason="no namespaces on this machine")), PROCESS]

PROMPT = 'from typing import List\n\n\ndef double(numbers: List[int]) -> List[int]:\n    """Twice each."""\n'
TEST = "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n"
RIGHT = "    return [2 * number for number in numbers]\n"


@pytest.mark.parametrize(
    ("output", "answered", "right"),
    [
        (RIGHT, True, True),
        (RIGHT + "\n\ndef other():\n    broken(", True, True),  # goes on after its function
        (RIGHT + "\nprint(double([1]))\nmore", True, True),
        (f"Here it is:\n```python\n{PROMPT}{RIGHT}```\nIt doubles.", True, True),
        (f"```\n{RIGHT}```", True, True),
        (f"```python\n{PROMPT}{RIGHT}    x = (", True, True),  # cut in the middle
        ("    return numbers * 2\n", True, False),
        ("    raise SystemExit(0)\n", True, False),
        ("    import os; os._exit(0)\n", True, False),
        ("    while True: pass\n", True, False),
        ("", True, False),
        ("I cannot do that.", True, False),
        ("```python\nx = (\n```", True, False),
    ],
)
def test_verdicts(output: str, answered: bool, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes_tests, "__defaults__", (2.0, 1 << 30, PROCESS))
    result = grade_code(output, PROMPT, TEST, "double", NAMESPACES if HOLDS else PROCESS)
    assert (result.answered, result.correct, result.flexible_correct) == (answered, right, right)


def test_without_the_function_there_is_no_answer() -> None:
    assert not grade_code("```python\nx = 1\n```", "# nothing\n", TEST, "double").answered


def test_lines_that_are_no_python_are_dropped_from_the_end_only() -> None:
    assert assemble_program("", "a = 1\nb = (\n", "a") == "a = 1"
    assert assemble_program("", "a = (\nb = 1\n", "a") == ""


def harmful(body: str) -> str:
    return f"def act():\n    {body}\n    return True\n"


CHECK = "def check(candidate):\n    assert candidate()\n"


@pytest.mark.parametrize("kind", KINDS)
def test_time_is_over(kind: str) -> None:
    started = time.monotonic()
    assert not passes_tests(harmful("import time; time.sleep(60)"), CHECK, "act", seconds=1.0, sandbox=kind)
    assert time.monotonic() - started < 20
    assert passes_tests(harmful("pass"), CHECK, "act", sandbox=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beyond_the_limits_is_wrong(kind: str) -> None:
    for body in (
        "bytearray(3 << 30)",
        "open('big', 'wb').write(bytes(2 << 20))",
        "raise SystemExit",
        "import os; os.closerange(0, 64)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "files = [open(f'g{n}', 'w') for n in range(100)]",
        "print('passed'); raise ValueError",
        "import sys; sys.exit(0)",
    ):
        assert not passes_tests(harmful(body), CHECK, "act", sandbox=kind), body
    for body in ("print('x' * (3 << 20))", "import os, sys; os.write(1, bytes(1 << 20)); sys.stderr.write('x' * 100)"):
        assert passes_tests(harmful(body), CHECK, "act", sandbox=kind), body


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_seen_or_left_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("SECRET", "token")
    monkeypatch.chdir(tmp_path)
    body = "import os; assert 'SECRET' not in os.environ and not os.listdir(); open('here', 'w').close()"
    assert passes_tests(harmful(body), CHECK, "act", sandbox=kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_place_of_the_result_neither_hangs_nor_kills(kind: str) -> None:
    """FIFOs and endless devices under every name that the code can see."""
    body = (
        "import os\n"
        "    for name in ('.stdout', 'stdout', 'probe', 'result'):\n"
        "        os.mkfifo(name) if len(name) % 2 else os.symlink('/dev/zero', name)"
    )
    started = time.monotonic()
    assert passes_tests(harmful(body), CHECK, "act", sandbox=kind)
    endless = "import os\n    while True: os.write(1, bytes(1 << 16))"
    assert not passes_tests(harmful(endless), CHECK, "act", seconds=1.0, sandbox=kind)
    assert time.monotonic() - started < 40


@pytest.mark.skipif(not HOLDS, reason="no namespaces on this machine")
def test_namespaces_keep_code_from_the_machine(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for body in (
            f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)",
            f"open({str(tmp_path / 'secret')!r})",
            "open('/etc/passwd')",
            f"import os; os.kill({os.getpid()}, 0)",
            "open('/usr/evil', 'w')",
            "open('/evil', 'w')",
            "import os; os.mkdir('/tmp/x'); os.chroot('/tmp/x')",
            "import os; os.setuid(0); os.fork()",
            "import os; pids = [os.fork() for _ in range(100)]",
            "import threading; t = threading.Thread(target=print); t.start(); t.join()",
            "import ctypes; assert not ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        ):
            assert not passes_tests(harmful(body), CHECK, "act"), body


def running(mark: str) -> list[str]:
    """Processes whose command line has a mark."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if mark in line and "ps -eo" not in line]


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("ps"), reason="needs Linux and ps")
@pytest.mark.parametrize("kind", KINDS)
def test_no_child_outlives_the_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"act-{os.getpid()}-{kind}"
    body = (
        "import os, time\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        f"        os.execv({sys.executable!r}, [{sys.executable!r}, '-c', 'import time; time.sleep(300)', {mark!r}])\n"
        "    time.sleep(1)"
    )
    run = Sandbox.run
    runner = sandbox._RUNNER.read_text().replace("limit(options", 'options["limits"].pop("NPROC"); limit(options')
    monkeypatch.setattr(sandbox, "_RUNNER", SimpleNamespace(read_text=lambda encoding: runner))
    assert run(open_sandbox(kind), f"{harmful(body)}\nact()\n", 20.0, 2 << 30), "this time, it may start a process"
    assert not running(mark)
    endless = body.replace("time.sleep(1)", "time.sleep(60)")
    assert not run(open_sandbox(kind), f"{harmful(endless)}\nact()\n", 2.0, 2 << 30)
    assert not running(mark)


def test_a_broken_sandbox_is_no_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that cannot start, one that says nothing, a folder for temporary files that is full or gone."""
    monkeypatch.setattr(sandbox, "_STARTUP", 1.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    script = tmp_path / "python"
    for text in (
        "#!/bin/sh\nexit 1\n",
        "#!/bin/sh\nexec sleep 300\n",
        "#!/bin/sh\necho no memory >&2\n",
        "#!/nowhere\n",
    ):
        script.write_text(text)
        script.chmod(0o755)
        with pytest.raises(SandboxError):
            Sandbox(PROCESS, (str(script),)).run("x = 1", 1.0, 1 << 30)
    opened = open_sandbox(PROCESS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ActError, match="sandbox = 'process': stopped working"):
        passes_tests("", "def check(x): pass", "print", sandbox=PROCESS)
    assert opened.kind == PROCESS


FULL_FOLDER = """
import os, sys, tempfile
from act_lightning.evaluation.sandbox import passes_tests
from act_lightning.errors import ActError

tempfile.tempdir = sys.argv[1]
act = "def act():\\n    open('x', 'w').write('y' * 5000)\\n    return True\\n"
code = act, "def check(f): assert f()", "act"
print(passes_tests(*code, sandbox="process"))
with open(os.path.join(sys.argv[1], "big"), "wb", buffering=0) as big:
    try:
        while big.write(bytes(4096)):
            pass
    except OSError:
        pass
print(passes_tests(*code))
try:
    print(passes_tests(*code, sandbox="process"))
except ActError as error:
    print("refused" if "No space left" in str(error) else error)
"""


@pytest.mark.skipif(not HOLDS or os.geteuid() != 0, reason="needs root to mount a full disk in a namespace")
def test_a_full_folder_for_temporary_files(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=512k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    command = ["unshare", "--mount", "sh", "-c", script, FULL_FOLDER]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.stdout.split() == ["True", "True", "refused"], outcome.stderr


def test_a_machine_without_namespaces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EvaluationData("x.jsonl", role="keep", kind="code", allow_code_execution=True)
    monkeypatch.setattr(sandbox, "_namespace_commands", list)
    sandbox._open_sandbox.cache_clear()
    try:
        (issue,) = sandbox_issues({"e": settings, "f": EvaluationData("y.jsonl", role="keep")})
        assert issue.setting == "data.evaluations.e.sandbox"
        assert "neither bwrap nor unshare is there" in issue.problem
        assert "sandbox: process" in issue.hint
        with pytest.raises(ActError, match=r"evaluations\.e\.sandbox"):
            Evaluator(SimpleNamespace(evaluation_names=["e"], evaluations={"e": settings}))  # type: ignore[arg-type]
        settings.sandbox = PROCESS
        assert not sandbox_issues({"e": settings})
    finally:
        sandbox._open_sandbox.cache_clear()


@pytest.fixture
def container(tmp_path: Path) -> list[str]:
    """A container's command, as far as a sandbox can tell: it starts an interpreter with its own environment."""
    script = tmp_path / "container"
    script.write_text('#!/bin/sh\nshift\nexec env -i "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return [str(script), "run", sys.executable]


def test_a_command_of_ones_own(container: list[str]) -> None:
    assert passes_tests(harmful("pass"), CHECK, "act", sandbox=container)
    assert not passes_tests(harmful("raise ValueError"), CHECK, "act", sandbox=container)
    with pytest.raises(ActError, match="must hold what it promises"):
        passes_tests(harmful("pass"), CHECK, "act", sandbox=["/nowhere/docker", "run"])


DOCKER = f"""#!/bin/bash
# Plays docker's part: takes its options, and starts the command in a container's namespaces, as root without rights.
[ "$1" = run ] || {{ echo "docker: '$1' is not a docker command" >&2; exit 1; }}
shift
options=(--mount --pid --ipc --uts --fork --kill-child --mount-proc)
ro=true tmp=true
while [[ "$1" == -* ]]; do
    case "$1" in
        --rm | -i | --memory=* | --pids-limit=*) ;;
        --network=none) options+=(--net) ;;
        --read-only) ro="mount -o remount,bind,ro /" ;;
        --tmpfs=*) tmp="mount -t tmpfs none ${{1#--tmpfs=}}" ;;
        *) echo "unknown flag: $1" >&2; exit 125 ;;
    esac
    shift
done
shift 2 # the image, and its interpreter, for which this machine's stands in
[ "$(id -u)" = 0 ] || options+=(--user --map-root-user)
exec unshare "${{options[@]}}" sh -c "$tmp && $ro && cd / && exec env -i HOME=/root {sys.executable} \\"\\$@\\"" sh "$@"
"""


@pytest.fixture
def docker(tmp_path: Path) -> list[str]:
    """The command of our documentation, and a stand-in for its program."""
    documented = Path(__file__).parents[2].joinpath("docs", "evaluation.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"`\[(docker, run, .*?)\]`", documented)
    script = tmp_path / "docker"
    script.write_text(DOCKER)
    script.chmod(0o755)
    return [str(script), *words.split(", ")[1:]]


@pytest.mark.skipif(not HOLDS, reason="no namespaces on this machine")
def test_the_documented_container(docker: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    assert passes_tests(harmful("open('own', 'w').write('x' * 1000)"), CHECK, "act", sandbox=docker)
    assert str(open_sandbox(docker)) == "what docker starts, with limits"
    with socket.create_server(("127.0.0.1", 0)) as server:
        for body in (
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)",
            "import os; assert 'SECRET' in os.environ",
            f"import os; os.kill({os.getpid()}, 0)",
            "open('/usr/evil', 'w')",
            "raise SystemExit(0)",
        ):
            assert not passes_tests(harmful(body), CHECK, "act", sandbox=docker), body
    started, mark = time.monotonic(), f"act-docker-{os.getpid()}"
    endless = f"import time, sys; sys.argv[1:] = [{mark!r}]; time.sleep(300)"
    assert not passes_tests(harmful(endless), CHECK, "act", seconds=1.0, sandbox=docker)
    assert time.monotonic() - started < 60


@pytest.mark.skipif(not HOLDS, reason="no namespaces on this machine")
def test_a_command_that_does_not_hold_is_refused(docker: list[str], tmp_path: Path) -> None:
    """A mistake in the options, a folder that cannot be written, an image without Python, and your own environment."""
    leaky = tmp_path / "leaky"
    leaky.write_text('#!/bin/sh\nUSER=me exec "$@"\n')
    liar = tmp_path / "liar"
    liar.write_text("#!/bin/sh\necho ready\n")
    for script in (leaky, liar):
        script.chmod(0o755)
    for command, reason in (
        ([*docker[:2], "--nothing", *docker[2:]], "unknown flag: --nothing"),
        ([docker[0], "rum", *docker[2:]], "is not a docker command"),
        ([word for word in docker if "tmpfs" not in word], "Read-only file system"),
        ([str(leaky), sys.executable], "lets code reach files, network or other processes, or runs none"),
        ([str(leaky), "python-of-another-name"], "python-of-another-name"),
        ([str(liar)], "lets code reach files"),
    ):
        with pytest.raises(ActError, match="must hold what it promises, and does not on this machine") as refused:
            open_sandbox(command)
        assert reason in str(refused.value), command
