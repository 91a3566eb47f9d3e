from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config

from act_lightning.lab.abilities import ABILITIES, rows
from act_lightning.lab.training import build_tokenizer


@pytest.fixture(scope="module")
def learned() -> PreTrainedTokenizerBase:
    return build_tokenizer((row[key] for row in rows("words") for key in ("prompt", "answer")), 400)


@pytest.mark.parametrize("text", ["dreihundertsiebenundvierzig", " 12 + 35 =", "नौ, 九!\n\tx", "<|end|><|user|>"])
def test_any_text_comes_back(learned: PreTrainedTokenizerBase, text: str) -> None:
    assert learned.decode(learned(text).input_ids) == text


def test_one_token_a_digit(learned: PreTrainedTokenizerBase) -> None:
    assert learned.tokenize("4711")[-4:] == ["4", "7", "1", "1"]
    assert max(len(learned(row["answer"]).input_ids) for row in rows("words", "test")) <= 14


@pytest.mark.parametrize("name", ABILITIES)
def test_conversation_is_question_and_answer_joined(learned: PreTrainedTokenizerBase, name: str) -> None:
    """No token reaches over the border, so labels by offsets are labels by counting."""
    for row in rows(name, "validation"):
        user, reply = {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}
        question = learned.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
        whole = learned.apply_chat_template([user, reply])["input_ids"]
        assert whole == question + learned(row["answer"] + "<|end|>").input_ids


def test_learned_alike_each_time_and_loaded_alike(learned: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    again = build_tokenizer((row[key] for row in rows("words") for key in ("prompt", "answer")), 400)
    assert again.get_vocab() == learned.get_vocab()
    learned.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)  # AutoTokenizer goes by the model's type
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for name in ABILITIES for row in rows(name, "validation") for text in row.values()]
    assert loaded(texts).input_ids == learned(texts).input_ids
    assert (loaded.eos_token, loaded.pad_token) == ("<|end|>", "<|endoftext|>")
    assert loaded.chat_template == learned.chat_template
