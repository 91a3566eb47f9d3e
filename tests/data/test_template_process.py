"""Chat templates that a stranger wrote: limits of time and memory, one process, and the texts of transformers."""

from __future__ import annotations

import os
import pickle
from time import perf_counter

import pytest

from act_lightning.data import template_process
from act_lightning.data.templates import TEMPLATE_NAMES, ChatTemplate, make_template
from act_lightning.errors import ActError
from tests.tiny import CHATML, tiny_tokenizer

TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def chat(source: str) -> ChatTemplate:
    return ChatTemplate(source, "data.template", tiny_tokenizer())


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        ("{{ 'a' * 10**10 }}", "more than 1 GiB of memory"),
        ("{{ 'a'.center(10**10) }}", "more than 1 GiB of memory"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "1 GiB of memory",
        ),
        ("{{ 'a' * 3 * 10**7 }}", "more than 16,777,216 characters"),
        (LOOP, "more than 3 seconds"),
        ("{{ 10 ** (10**10) }}", "more than 3 seconds"),
        ("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}", "calls itself without end"),
        ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}", "3 seconds"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('not this one') }}", "not this one"),
    ],
)
def test_bombs_are_refused_and_the_next_row_is_rendered(
    bomb: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 3.0)
    template, start = chat("{% if messages[0].content == 'bomb' %}" + bomb + "{% endif %}" + CHATML), perf_counter()
    turns = [{"role": "user", "content": "bomb"}, TURNS[1]]
    for _ in range(2 if reason.endswith("zero") else 1):
        with pytest.raises(ActError, match=rf"can render \(.*{reason}.*Correct the row, or use another template"):
            template.render(turns)
    if bomb not in ("{% if %}", "{{ 10 ** (10**10) }}"):  # these fail when the template is compiled
        assert "1 + 1?" in template.render(TURNS).text
    assert perf_counter() - start < 30


@pytest.mark.parametrize("name", [*TEMPLATE_NAMES, "chat"])
def test_texts_are_those_of_transformers(name: str) -> None:
    tokenizer = tiny_tokenizer()
    template = chat(CHATML) if name in ("chat", "chatml", "llama3") else make_template(name, tokenizer, "data.template")
    assert isinstance(template, ChatTemplate)
    rendered, prompt = template.render(TURNS), template.render_prompt(TURNS)
    options = {"chat_template": template.source, "tokenize": False}
    assert rendered.text == tokenizer.apply_chat_template(TURNS, **options)
    assert prompt.text == tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, **options)


def test_a_template_has_one_process_which_goes_with_it() -> None:
    template = chat(CHATML)
    template.render(TURNS)
    process = template._process
    assert process is not None
    template.render(TURNS)
    assert template._process is process
    copy = pickle.loads(pickle.dumps(template))
    assert copy.render(TURNS) == template.render(TURNS)
    child = process._stop.peek()[2][1]  # type: ignore[attr-defined]
    os.kill(child, 0)
    process._stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_texts_read_ahead_are_those_of_each_row() -> None:
    rows = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": str(i)}] for i in range(5)]
    ahead, alone = chat(CHATML), chat(CHATML)
    ahead.read_ahead(rows[:4])
    assert [ahead.render(row) for row in rows] == [alone.render(row) for row in rows]
    failing = chat("{% if messages[0].content == '3?' %}{{ raise_exception('three') }}{% endif %}" + CHATML)
    failing.read_ahead(rows)
    assert failing.render(rows[0]) == alone.render(rows[0])
    with pytest.raises(ActError, match="three"):
        failing.render(rows[3])
