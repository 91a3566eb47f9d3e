"""Code that a model wrote, put together from its output."""

from __future__ import annotations

import ast
import re
from contextlib import suppress

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
