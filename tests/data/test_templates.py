"""Where answers stand in rendered text, for templates of the families in use, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.conversations import Conversation
from act_lightning.data.labels import Encoder
from act_lightning.data.tasks import read_prompts
from act_lightning.data.templates import TextTemplate, make_template
from act_lightning.errors import ActError
from tests.tiny import CHATML, tiny_tokenizer, write_jsonl

USER = {"role": "user", "content": "1 + 1?"}
TALK = [USER, {"role": "assistant", "content": " two "}, USER, {"role": "assistant", "content": "2"}]
BRACKETS = (  # as Llama 2 has it: no generation prompt, a space, stripped content
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' <|im_end|>' }}{% endif %}{% endfor %}"
)
THOUGHTS = (  # as Qwen3 has it: an empty block of thoughts before the last answer only
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = CHATML.replace("{% for message in messages %}", "{% for message in messages[-2:] %}")
SHOUTING = CHATML.replace("message['content']", "message['content'] | upper")
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML


def said(template: str, messages: Conversation) -> list[str]:
    rendered = make_template("chat", tiny_tokenizer(template), "data.template").render(messages)
    assert not rendered.add_special_tokens
    assert not rendered.close_with_eos
    return [rendered.text[start:end] for start, end in rendered.answers]


def test_content_as_it_is() -> None:
    assert said(CHATML, TALK) == [" two ", "2"]


def test_content_stripped_after_a_space() -> None:
    assert said(BRACKETS, TALK) == ["two", "2"]


@pytest.mark.parametrize("answer", ["2", "think", "<", "\n", "<think>"])
def test_block_before_the_answer_is_no_part_of_it(answer: str) -> None:
    messages = [*TALK[:3], {"role": "assistant", "content": answer}]
    rendered = make_template("chat", tiny_tokenizer(THOUGHTS), "data.template").render(messages)
    assert [rendered.text[start:] for start, _ in rendered.answers[1:]] == [answer + "<|im_end|>\n"]


def test_template_file(tmp_path: Path) -> None:
    file = tmp_path / "brackets.jinja"
    file.write_text(BRACKETS)
    template = make_template(str(file), tiny_tokenizer(None), "data.template")
    assert template.render(TALK[:2]).text == "[INST] 1 + 1? [/INST] two <|im_end|>"


def test_prompts() -> None:
    prompt = make_template("chat", tiny_tokenizer(THOUGHTS), "data.template").render_prompt(TALK[:2])
    assert prompt.text == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    prompt = TextTemplate("Q: {prompt} {x}\nA:").render_prompt([{**USER, "content": "{prompt}"}, TALK[1]])
    assert (prompt.text, prompt.add_special_tokens, prompt.close_with_eos) == ("Q: {prompt} {x}\nA:", True, False)


def test_text_template_leaves_other_braces_alone() -> None:
    rendered = make_template("{{a}} {prompt} {b}{", tiny_tokenizer(None), "t").render(TALK[:2])
    assert rendered.text == "{{a}} 1 + 1? {b}{ two "
    assert rendered.answers == [(17, 22)]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (FORGETFUL, TALK, "earlier turns the chat template leaves unchanged"),
        (SHOUTING, TALK, "must write an assistant's content as it is"),
        (REFUSING, [{"role": "system", "content": "x"}, *TALK], "no system turn"),
        (CHATML, TALK[1:], "must begin with a user's or a system's turn"),
    ],
    ids=["changes earlier turns", "changes content", "raises", "assistant first"],
)
def test_conversations_that_a_chat_template_cannot_tell(template: str, messages: Conversation, message: str) -> None:
    with pytest.raises(ActError, match=message):
        said(template, messages)


def test_conversations_that_a_text_template_cannot_tell() -> None:
    with pytest.raises(ActError, match=r"one user turn and one assistant turn, .* has user, assistant, user, assist"):
        TextTemplate("{prompt}").render(TALK)


def test_location_of_a_conversation_that_cannot_be_rendered(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(FORGETFUL)
    with pytest.raises(
        ActError, match=r"x.jsonl:3, data.template = .*earlier turns the chat template leaves unchanged"
    ):
        Encoder(make_template("chat", tokenizer, "data.template"), tokenizer, 99)(TALK, "x.jsonl:3")
    settings = EvaluationData(str(write_jsonl(tmp_path / "x.jsonl", [{"messages": TALK}])), role="keep")
    with pytest.raises(ActError, match=r"x.jsonl:1, data.template = "):
        read_prompts("x", settings, tokenizer, "{prompt}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chat", "the target's has none. Name one of alpaca, chatml"),
        ("tulip", "tulu, wizardlm, wizardmath, a file that ends in .jinja, or text that contains {prompt}"),
        ("missing.jinja", "must be an existing file"),
    ],
)
def test_templates_that_do_not_exist(template: str, message: str) -> None:
    with pytest.raises(ActError) as caught:
        make_template(template, tiny_tokenizer(None), "data.template")
    assert message in str(caught.value)
    assert caught.value.issues[0].setting == "data.template"


def test_templates_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_bytes(b"\xff")
    several = tiny_tokenizer()
    several.chat_template = {"tool_use": CHATML, "rag": CHATML}
    for template in (str(tmp_path / "x.jinja"), "chat"):
        with pytest.raises(ActError, match=r"data.template = .*: cannot be read"):
            make_template(template, several, "data.template")


def test_tokenizer_fixture_has_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    assert make_template("chat", tokenizer, "data.template").render(TALK[:2]).answers
