"""Prompt, answer and ignored tokens one by one, for each family in use and each template that is shipped."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from act_lightning.data.conversations import Conversation
from act_lightning.data.labels import Encoder, OffsetTokenizer
from act_lightning.data.templates import TEMPLATE_NAMES, make_template
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError
from tests.families import FAMILIES, chatml, llama2, mistral, qwen
from tests.tiny import CHATML

TALK = [
    {"role": "user", "content": "What is two?"},
    {"role": "assistant", "content": "The sum is é."},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "२"},
]
SYSTEM = {"role": "system", "content": "Be."}


def marked(messages: Conversation, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """All tokens in a line, a star before each answer token."""
    sample = Encoder(make_template(template, tokenizer, "data.template"), tokenizer, 999)(messages)
    assert sample is not None
    pieces = tokenizer.convert_ids_to_tokens(sample.input_ids.tolist())
    return " ".join(
        "*" * (label != IGNORED) + piece for piece, label in zip(pieces, sample.labels.tolist(), strict=True)
    )


# In Llama 2 and Mistral the template writes a space before an answer, and its first token, "▁Th", begins with that
# space: it straddles the answer's start and does not count. The space that Llama 2 writes after an answer does.
GOLDEN = {
    "qwen2.5": (
        "<|im_start|> system Ċ Y o u Ġ a r e Ġ Q w e n . <|im_end|> Ċ "
        "<|im_start|> user Ċ What Ġis Ġtwo ? <|im_end|> Ċ "
        "<|im_start|> as sistan t Ċ *Th *e *Ġsu *m *Ġis *Ġ *Ã *© *. *<|im_end|> Ċ "
        "<|im_start|> user Ċ 1 + 1 <|im_end|> Ċ <|im_start|> as sistan t Ċ *à *¥ *¨ *<|im_end|>"
    ),
    "llama2": (
        "<s> ▁[INST] ▁What ▁is ▁tw o? ▁[/INST] ▁Th *e *▁sum *▁is *▁ *<0xC3> *<0xA9> *. *▁ *</s> "
        "<s> ▁[INST] ▁ <0x31> <0x2B> <0x31> ▁[/INST] ▁ *<0xE0> *<0xA5> *<0xA8> *▁ *</s>"
    ),
    "llama3": (
        "<|begin_of_text|> <|start_header_id|> user <|end_header_id|> Ċ Ċ What Ġis Ġtwo ? <|eot_id|> "
        "<|start_header_id|> as sistan t <|end_header_id|> Ċ Ċ *Th *e *Ġsu *m *Ġis *Ġ *Ã *© *. *<|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> Ċ Ċ 1 + 1 <|eot_id|> "
        "<|start_header_id|> as sistan t <|end_header_id|> Ċ Ċ *à *¥ *¨ *<|eot_id|>"
    ),
    "chatml": (
        "<|im_start|> user Ċ What Ġis Ġtwo ? <|im_end|> Ċ "
        "<|im_start|> as sistan t Ċ *Th *e *Ġsu *m *Ġis *Ġ *Ã *© *. *<|im_end|> Ċ "
        "<|im_start|> user Ċ 1 + 1 <|im_end|> Ċ <|im_start|> as sistan t Ċ *à *¥ *¨ *<|im_end|>"
    ),
    "mistral": (
        "<s> [INST] ▁What ▁is ▁tw o? [/INST] ▁Th *e *▁sum *▁is *▁ *<0xC3> *<0xA9> *. *</s> "
        "[INST] ▁ <0x31> <0x2B> <0x31> [/INST] ▁ *<0xE0> *<0xA5> *<0xA8> *</s>"
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_a_conversation(family: str) -> None:
    build, template = FAMILIES[family]
    assert marked(TALK, build(), template) == GOLDEN[family]


ASKED = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ANSWERED = "*Th *e *▁sum *▁is *▁ *<0xC3> *<0xA9> *. *</s>"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SHIPPED = {
    "wizardmath": (2, f"<s>{ASKED}### Instruction:\nWhat is two?\n\n### Response:The sum is é.</s>", ANSWERED),
    "alpaca": (2, f"<s>{ASKED}### Instruction:\nWhat is two?\n\n### Response:The sum is é.</s>", ANSWERED),
    "wizardlm": (
        4,
        f"<s>{VICUNA} USER: What is two? ASSISTANT: The sum is é.</s>USER: 1+1 ASSISTANT: २</s>",
        "AN T: ▁ *<0xE0> *<0xA5> *<0xA8> *</s>",
    ),
    "tulu": (
        4,
        "<s><|user|>\nWhat is two?\n<|assistant|>\nThe sum is é.</s>\n<|user|>\n1+1\n<|assistant|>\n२</s>\n",
        "as sis tan t <0x7C> <0x3E> <0x0A> *<0xE0> *<0xA5> *<0xA8> *</s>",
    ),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_texts_of_the_tunes_of_llama_2(name: str) -> None:
    turns, text, last = SHIPPED[name]
    template = make_template(name, llama2(), "data.template")
    assert template.render(TALK[:turns]).text == text
    prompt = template.render_prompt(TALK[:turns]).text
    assert text.startswith(prompt)
    assert prompt.endswith(("### Response:", "ASSISTANT:", "<|assistant|>\n"))
    assert marked(TALK[:turns], llama2(), name).endswith(last)


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("wizardlm", "<s>Be. USER: What is two? ASSISTANT: The"),
        ("tulu", "<s><|system|>\nBe.\n<|user|>\nWhat is two?\n<|assistant|>\nThe"),
        ("llama2", "<s>[INST] <<SYS>>\nBe.\n<</SYS>>\n\nWhat is two? [/INST] The"),
    ],
)
def test_system_turns(name: str, begins: str) -> None:
    assert make_template(name, llama2(), "t").render([SYSTEM, *TALK]).text.startswith(begins)


@pytest.mark.parametrize("name", ["wizardmath", "alpaca"])
def test_more_than_one_question_is_refused_with_its_place(name: str) -> None:
    tokenizer = llama2()
    encode = Encoder(make_template(name, tokenizer, "data.template"), tokenizer, 999)
    for messages in (TALK, [SYSTEM, *TALK[:2]]):
        with pytest.raises(ActError, match=rf"x.jsonl:7, data.template = .*{name} has room for one question"):
            encode(messages, "x.jsonl:7")
    with pytest.raises(ActError, match="llama2 has room for users and assistants in turn"):
        make_template("llama2", llama2(), "data.template").render([TALK[0], *TALK])


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_shipped_template_needs_the_tokens_that_it_writes(name: str) -> None:
    tokenizer = llama2()
    tokenizer.eos_token = None
    with pytest.raises(ActError, match=r"data.template = .*(has none|does not have as special tokens)"):
        make_template(name, tokenizer, "data.template")
    tokenizer = chatml()
    if name not in ("chatml", "llama3"):  # a tokenizer without BOS begins with the text
        whole = make_template(name, tokenizer, "data.template").render(TALK[:2]).text
        assert whole.replace("<|im_end|>", "</s>") == make_template(name, llama2(), "t").render(TALK[:2]).text[3:]


words = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd▁"), max_size=9) | st.sampled_from(
    [" two", "\n\n "]
)


@pytest.mark.parametrize("family", FAMILIES)
@given(turns=st.lists(st.tuples(words, words.filter(str.strip)), min_size=1, max_size=2))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_offsets_and_spelling_give_the_same_labels(family: str, turns: list[tuple[str, str]]) -> None:
    build, template = FAMILIES[family]
    tokenizer = _CACHE.setdefault(family, build())
    pairs = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in turns]
    messages = [message for pair in pairs for message in pair]
    encode = Encoder(make_template(template, tokenizer, "data.template"), tokenizer, 999)
    by_offsets = encode(messages)
    encode.tokenize = OffsetTokenizer(tokenizer, by_decoding=True)
    by_spelling = encode(messages)
    assert by_offsets is not None
    assert by_spelling is not None
    assert by_offsets.input_ids.tolist() == by_spelling.input_ids.tolist()
    assert by_offsets.labels.tolist() == by_spelling.labels.tolist()


_CACHE: dict[str, PreTrainedTokenizerBase] = {}


@pytest.mark.parametrize("build", [llama2, mistral, qwen])
@pytest.mark.parametrize("text", ["one two", " one  two", "é two</s>one", "१\n"])
def test_added_tokens_are_placed_alike(build: type, text: str) -> None:
    tokenizer = build()
    offsets, spelled = OffsetTokenizer(tokenizer)(text, True), OffsetTokenizer(tokenizer, by_decoding=True)(text, True)
    assert offsets == spelled


def test_tokenizer_that_has_no_offsets() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHATML
    assert not tokenizer.is_fast
    expected = "".join(f"*{byte}" for byte in ["Ã ", "© "]) + "*</s>"
    assert marked([TALK[0], {"role": "assistant", "content": "é"}], tokenizer, "{prompt} ").endswith(f"?   {expected}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert marked(TALK, tokenizer, "chat").endswith("t \n *à *¥ *¨ *<|im_end|>")


def test_tokenizer_without_offsets_that_changes_the_text() -> None:
    tokenizer = qwen()  # it composes letters and their accents
    encode = Encoder(make_template("{prompt} ", tokenizer, "t"), tokenizer, 99)
    encode.tokenize = OffsetTokenizer(tokenizer, by_decoding=True)
    with pytest.raises(ActError, match=r"x.jsonl:2, model.target, .*must decode to the text"):
        encode([TALK[0], {"role": "assistant", "content": "e\u0301"}], "x.jsonl:2")
