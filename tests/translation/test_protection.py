"""What leaves a text before it is translated, and comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from act_lightning.translation.verification import FinalAnswer, protect

PIECES = [
    "$x$",
    "$5 and $10",
    "\\boxed{",
    "}",
    "```",
    "`a`",
    "\n",
    "The answer is: 3",
    "<k1/>",
    "2x + 3 = 7",
    "$$",
    "é",
]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Solve $x^2 = 4$ now", ["$x^2 = 4$"]),
        ("$$\\sum_i a_i$$ and \\(b\\), \\[c\nd\\]", ["$$\\sum_i a_i$$", "\\(b\\)", "\\[c\nd\\]"]),
        ("She paid $5 and $10, or $15.", []),  # money, no formula
        ("Pays $5. What is $y$?", ["$y$"]),
        ("so \\boxed{\\frac{a_{1}}{b^{2}}} it is", ["\\boxed{\\frac{a_{1}}{b^{2}}}"]),
        ("\\begin{align*}\na &= b\n\\end{align*} holds", ["\\begin{align*}\na &= b\n\\end{align*}"]),
        ("Run:\n```python\nprint('hi')\n```\nand `x = 1`.", ["```python\nprint('hi')\n```", "`x = 1`"]),
        ("an open block\n```\nnever closed", ["```\nnever closed"]),
        ("He has 3 + 4 = 7 apples for $2 * 3 = $6 in all", ["3 + 4 = 7", "$2 * 3 = $6"]),
        ("Let 2x - 5 = y be a line, well-known and/or not", ["2x - 5 = y"]),
        ("See https://example.org/a?b=1 there", ["https://example.org/a?b=1"]),
        ("Sum up.\n#### 42\nend", ["#### 42"]),
        ("#### A heading of words", []),
        ("It has <k7/> of its own", ["<k7/>"]),
    ],
)
def test_what_is_kept(text: str, kept: list[str]) -> None:
    hidden = protect(text)
    assert list(hidden.kept) == kept
    assert not any(part in hidden.text for part in kept if not part.startswith("<k"))
    assert hidden.restore(hidden.text) == text


@pytest.mark.parametrize(
    ("last", "value"),
    [
        ("The answer is: 42", "42"),
        ("**Final Answer:** $\\boxed{4}$. I hope it is correct.", "$\\boxed{4}$. I hope it is correct."),
        ("Therefore, the answer is B.", "B."),
        ("answer: (C)", "(C)"),
        ("The answer is: photosynthesis", None),  # a word of the language
        ("Answer in 3 words", None),
        ("The answer is that " + "because 1 " * 20, None),  # a sentence
    ],
)
def test_final_answers(last: str, value: str | None) -> None:
    wanted: tuple[tuple[FinalAnswer, str | None], ...] = (("line", last), ("value", value))
    for kind, kept in wanted:
        hidden = protect(f"A thought.\n{last}\n", kind)
        assert hidden.final is (value is not None)
        assert value is None or hidden.kept[-1] == kept
        assert hidden.restore(hidden.text) == f"A thought.\n{last}\n"
    assert not protect(last).final  # in a prompt it is an instruction


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map(" ".join), st.sampled_from(["line", "value", None]))
def test_nothing_is_lost(text: str, final: FinalAnswer | None) -> None:
    hidden = protect(text, final)
    assert hidden.restore(hidden.text) == text


def test_marks_come_back_however_they_are_written() -> None:
    hidden = protect("$a$ or $b$")
    assert hidden.restore("<K2 /> vagy < k1>") == "$b$ vagy $a$"
