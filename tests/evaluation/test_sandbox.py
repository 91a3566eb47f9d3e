"""Code that is put together and run: what passes, what fails, and what cannot do harm."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from act_lightning.evaluation.grading import grade_code
from act_lightning.evaluation.sandbox import assemble_program, network_isolation, passes_tests

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
    monkeypatch.setattr(passes_tests, "__defaults__", (2.0, 1 << 30))
    result = grade_code(output, PROMPT, TEST, "double")
    assert (result.answered, result.correct, result.flexible_correct) == (answered, right, right)


def test_without_the_function_there_is_no_answer() -> None:
    assert not grade_code("```python\nx = 1\n```", "# nothing\n", TEST, "double").answered


def test_lines_that_are_no_python_are_dropped_from_the_end_only() -> None:
    assert assemble_program("", "a = 1\nb = (\n", "a") == "a = 1"
    assert assemble_program("", "a = (\nb = 1\n", "a") == ""


def harmful(body: str) -> str:
    return f"def act():\n    {body}\n    return True\n"


CHECK = "def check(candidate):\n    assert candidate()\n"


def test_time_is_over(tmp_path: Path) -> None:
    started = time.monotonic()
    assert not passes_tests(harmful("import time; time.sleep(60)"), CHECK, "act", seconds=1.0)
    assert time.monotonic() - started < 20
    assert passes_tests(harmful("pass"), CHECK, "act")


@pytest.mark.parametrize(
    "body",
    [
        "bytearray(3 << 30)",
        "open('big', 'wb').write(bytes(2 << 20))",
        "raise SystemExit",
        "[open(f'f{n}', 'w').write('') and 0 for n in range(3)]; files = [open(f'g{n}', 'w') for n in range(100)]",
    ],
)
def test_limits_of_the_kernel(body: str) -> None:
    assert not passes_tests(harmful(body), CHECK, "act")


def test_nothing_is_seen_or_left_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    monkeypatch.chdir(tmp_path)
    assert passes_tests(
        harmful("import os; assert 'SECRET' not in os.environ; open('here', 'w').close()"), CHECK, "act"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not network_isolation(), reason="this machine permits no user namespaces")
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not passes_tests(
            harmful(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"), CHECK, "act"
        )


def test_what_is_printed_is_not_taken_for_a_success() -> None:
    assert not passes_tests(harmful("print('passed'); raise ValueError"), CHECK, "act")
    assert passes_tests(harmful("print('x' * (3 << 20))"), CHECK, "act"), "nor does it count against the limit of files"
