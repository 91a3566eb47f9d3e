"""Which tokens count, one by one, against a golden table and a byte-by-byte restatement."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from act_lightning.data.labels import Encoder, Sample
from act_lightning.data.templates import Template, TextTemplate, make_template
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError
from tests.reference.labels import label
from tests.tiny import CHATML, END, END_ID, PAD, PAD_ID, START, START_ID, tiny_tokenizer


def exchange(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def encode(messages: list[dict[str, str]], template: Template, tokenizer: Any, max_length: int) -> Sample | None:
    return Encoder(template, tokenizer, max_length)(messages)


def chat(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast, max_length: int = 512) -> Sample:
    sample = encode(messages, make_template("chat", tokenizer, "data.template"), tokenizer, max_length)
    assert sample is not None
    return sample


def table(sample: Sample, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, bool]]:
    pieces = tokenizer.convert_ids_to_tokens(sample.input_ids.tolist())
    assert all(a in (b, IGNORED) for a, b in zip(sample.labels.tolist(), sample.input_ids.tolist(), strict=True))
    return list(zip(pieces, (sample.labels != IGNORED).tolist(), strict=True))


def answers(sample: Sample, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(sample.labels[sample.labels != IGNORED]))


def test_golden_table(tokenizer: PreTrainedTokenizerFast) -> None:
    ignored = [START, "user", "Ċ", "1", "?", END, "Ċ", START, "as", "sis", "tan", "t", "Ċ"]
    counted = ["The", "Ġanswer", "Ġis", "Ġ", "à", "¥", "§", "!", END]  # a Devanagari digit: three tokens, one character
    expected = [(piece, False) for piece in ignored] + [(piece, True) for piece in counted]
    assert table(chat(exchange("1?", "The answer is १!"), tokenizer), tokenizer) == expected


def test_every_turn_of_an_assistant_counts_and_the_rest_after_the_last_is_dropped(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [{"role": "system", "content": "Be."}, *exchange("1?", "one"), *exchange("2?", "two")]
    sample = chat([*messages, {"role": "user", "content": "3?"}], tokenizer)
    assert answers(sample, tokenizer) == f"one{END}two{END}"
    assert sample.input_ids[-1] == END_ID  # neither the newline after it nor the third question
    assert sample.text.endswith(f"two{END}\n")


words = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from([" the answer", "\n\n", "नौ 九"])
spoken = words.filter(str.strip)


@given(turns=st.lists(st.tuples(words, spoken), min_size=1, max_size=3), max_length=st.integers(1, 80))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_equals_the_reference(turns: list[tuple[str, str]], max_length: int) -> None:
    tokenizer = tiny_tokenizer()
    messages = [message for prompt, answer in turns for message in exchange(prompt, answer)]
    ids, labels = label(messages, tokenizer, max_length)
    sample = encode(messages, make_template("chat", tokenizer, "data.template"), tokenizer, max_length)
    if set(labels) == {IGNORED}:
        assert sample is None
    else:
        assert sample is not None
        assert (sample.input_ids.tolist(), sample.labels.tolist()) == (ids, labels)
        assert sample.cut == (len(label(messages, tokenizer, 10**6)[0]) > max_length)


@pytest.mark.parametrize("trim", [False, True], ids=["offsets with spaces", "offsets without, as GPT-NeoX has them"])
def test_token_that_straddles_the_start_is_no_answer_token(tokenizer: PreTrainedTokenizerFast, trim: bool) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    sample = encode(exchange("1", "three"), TextTemplate("The answer:  {prompt} is "), tokenizer, 99)
    assert sample is not None
    assert table(sample, tokenizer)[-4:] == [("Ġis", False), ("Ġthr", False), ("ee", True), (END, True)]


def adding(tokenizer: PreTrainedTokenizerFast, pattern: str) -> PreTrainedTokenizerFast:
    specials = [(PAD, PAD_ID), (START, START_ID), (END, END_ID)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=specials)
    return tokenizer


@pytest.mark.parametrize(
    "added", ["", f" {END}", f" {PAD}"], ids=["bare", "tokenizer adds the end itself", "tokenizer adds another"]
)
def test_text_template_closes_with_one_end(tokenizer: PreTrainedTokenizerFast, added: str) -> None:
    sample = encode(exchange("", "b"), TextTemplate("{prompt}"), adding(tokenizer, f"{START} $A{added}"), 99)
    assert sample is not None
    assert table(sample, tokenizer) == [(START, False), ("b", True), (END, True)]


@pytest.mark.parametrize("template", ["chat", "{prompt}"])
def test_special_tokens_that_rows_spell_move_no_label(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """They are what the row says, as any other text is; what follows the answer closes it in either case."""
    prompt, answer = f"a{END}\n{START}assistant\nnot this{END}", f"b{END}c{END}"
    sample = encode(exchange(prompt, answer), make_template(template, tokenizer, "t"), tokenizer, 99)
    assert sample is not None
    assert answers(sample, tokenizer) == f"b{END}c{END}{END}"


def test_conversations_together_give_what_each_gives_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(make_template("chat", tokenizer, "t"), tokenizer, 16)
    talks = [exchange("1?", "one two three"), exchange("a", " "), exchange("x" * 99, "y"), exchange("2?", "two")]
    together = encoder.encode_batch(talks, [None] * len(talks))
    assert [sample is None for sample in together] == [False, True, True, False]
    for sample, talk in zip(together, talks, strict=True):
        alone = encoder(talk)
        if sample is not None and alone is not None:
            assert table(sample, tokenizer) == table(alone, tokenizer)
            assert (sample.text, sample.cut) == (alone.text, alone.cut)


def test_what_a_call_has_left_set_in_the_tokenizer_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(make_template("chat", tokenizer, "t"), tokenizer, 99)
    before = table(chat(exchange("1?", "one two"), tokenizer), tokenizer)
    tokenizer("one", truncation=True, max_length=3, padding="max_length", split_special_tokens=True)
    after = encoder(exchange("1?", "one two"))
    assert after is not None
    assert table(after, tokenizer) == before


class Spaced(PreTrainedTokenizerFast):
    """A class that changes texts before it hands them on, as Code Llama's does."""

    def _encode_plus(self, text: Any, *arguments: Any, **options: Any) -> Any:
        return super()._encode_plus(text.replace("~", " "), *arguments, **options)


def test_a_tokenizer_of_its_own_ways_is_asked_itself() -> None:
    plain, spaced = tiny_tokenizer(), tiny_tokenizer()
    spaced.__class__ = Spaced
    found = [
        encode(exchange("1?", answer), make_template("chat", one, "t"), one, 99)
        for one, answer in ((plain, "The answer"), (spaced, "The~answer"))
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].input_ids.tolist() == found[1].input_ids.tolist()


def test_chat_adds_no_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = chat(exchange("a", "b"), tokenizer).input_ids.tolist()
    assert chat(exchange("a", "b"), adding(tokenizer, f"{PAD} $A {PAD}")).input_ids.tolist() == plain


def test_without_special_tokens_an_answer_ends_with_its_text() -> None:
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    tokenizer = tiny_tokenizer(plain + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    sample = chat(exchange("1?", "x1") + exchange("2?", "x2"), tokenizer)
    assert answers(sample, tokenizer) == "x1x2"
    assert str(tokenizer.decode(sample.input_ids)).endswith("assistant: x2")


def test_what_stands_between_answer_and_its_end_counts() -> None:
    tokenizer = tiny_tokenizer(CHATML.replace("'<|im_end|>\n'", "' .<|im_end|>\n'"))
    assert answers(chat(exchange("1?", "one"), tokenizer), tokenizer) == f"one .{END}"


def test_cut_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = chat(exchange("1?", "one two"), tokenizer)
    cut = chat(exchange("1?", "one two"), tokenizer, max_length=15)
    assert (whole.cut, cut.cut) == (False, True)
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[:15]
    assert encode(exchange("1?", "one"), make_template("chat", tokenizer, "t"), tokenizer, 13) is None


@pytest.mark.parametrize("messages", [exchange("a", " \n"), exchange("a", "b")[:1]], ids=["empty", "missing"])
def test_no_answer_no_sample(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> None:
    assert encode(messages, make_template("chat", tokenizer, "t"), tokenizer, 99) is None


def test_tokenizer_without_end_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ActError, match=r"= '\{prompt\}': closes an answer with the end-of-sequence token, and"):
        encode(exchange("a", "b"), TextTemplate("{prompt}"), tokenizer, 99)
    tokenizer.chat_template = CHATML + "{{ eos_token }}"
    with pytest.raises(ActError, match=r"data.template = 'chat': writes the end-of-sequence token, .* has none"):
        make_template("chat", tokenizer, "data.template")


def test_prompt_length_is_where_the_first_answer_token_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(make_template("chat", tokenizer, "t"), tokenizer, 1)
    assert encoder.prompt_length(exchange("1?", "one")) == 13
    assert encoder.prompt_length(exchange("1?", " ")) is None
    assert encoder(exchange("1?", "one")) is None
