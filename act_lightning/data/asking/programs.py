r"""What runs the code that a model writes: tests of HumanEval's shape, or inputs of EvalPlus's.

A row has ``entry_point``, and either ``test``, a text that defines ``check(candidate)`` (HumanEval,
https://arxiv.org/abs/2107.03374), or ``base_input``, a list of argument lists or its JSON, on which the function must
return what the row's own solution returns (EvalPlus, https://arxiv.org/abs/2305.01210; floats may differ by ``atol``,
or 1e-6 where it is 0).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from act_lightning.data.reading.row_source import Row
from act_lightning.errors import ActError, Fault

_AGAINST_SOLUTION = """\
import copy as _copy, json as _json, math as _math

def _alike(got, wanted, atol):
    if got == wanted:
        return True
    if isinstance(wanted, float):
        return isinstance(got, (int, float)) and _math.isclose(got, wanted, rel_tol=1e-7, abs_tol=atol or 1e-6)
    if isinstance(wanted, (list, tuple)):
        same_shape = type(got) is type(wanted) and len(got) == len(wanted)
        return same_shape and all(_alike(one, other, atol) for one, other in zip(got, wanted))
    return False

def check(candidate):
    own = {{}}
    exec({solution!r}, own)
    for arguments in _json.loads({inputs!r}):
        wanted = own[{entry_point!r}](*_copy.deepcopy(arguments))
        assert _alike(candidate(*_copy.deepcopy(arguments)), wanted, {atol!r})
"""


@dataclass(frozen=True)
class Program:
    """The surroundings of a function to be completed.

    Attributes:
        prompt: The code before it: imports, signature, docstring.
        test: Code that defines ``check(candidate)``.
        entry_point: The function's name.
    """

    prompt: str
    test: str
    entry_point: str


def make_program(prompt: str, solution: str, row: Row, place: str) -> Program:
    """The program of a row.

    Args:
        prompt: The code that the model is shown.
        solution: The code that completes it rightly.
        row: The row as it was read.
        place: Where it stands, for messages.

    Raises:
        ActError: If the row names no function, or has neither tests nor inputs.
    """
    entry_point = row.get("entry_point")
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        raise ActError(Fault(f"{place}, entry_point", entry_point, "must name the function that is tested", _REMEDY))
    test = row.get("test")
    if isinstance(test, str) and test.strip():
        return Program(prompt, test, entry_point)
    inputs = _inputs(row.get("base_input"), place)
    atol = row.get("atol") or 0
    return Program(
        prompt,
        _AGAINST_SOLUTION.format(solution=prompt + solution, inputs=inputs, entry_point=entry_point, atol=atol),
        entry_point,
    )


_REMEDY = "Give each row entry_point, and test or base_input, or leave it out with filter."


def _inputs(value: Any, place: str) -> str:  # noqa: ANN401 - whatever a row holds
    try:
        inputs = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        inputs = None
    if isinstance(inputs, list) and inputs and all(isinstance(arguments, list) for arguments in inputs):
        return json.dumps(inputs)
    raise ActError(Fault(f"{place}, test", value, "must be there, or base_input with lists of arguments", _REMEDY))
