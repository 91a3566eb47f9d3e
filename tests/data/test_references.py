"""References as labels, against prompts and answers tokenized apart."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.tasks import read_prompts, read_references
from act_lightning.errors import ActError
from tests.tiny import END_ID, write_jsonl


def test_only_the_last_answer_is_labeled(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    turns = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "it is 2")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    settings = EvaluationData(str(write_jsonl(tmp_path / "set.jsonl", rows)), role="keep")
    (sample,) = read_references("set", settings, tokenizer, "chat")
    (prompt,) = read_prompts("set", settings, tokenizer, "chat")
    answer = [*tokenizer("it is 2", add_special_tokens=False)["input_ids"], END_ID]
    assert sample.input_ids.tolist() == prompt.input_ids.tolist() + answer
    assert sample.labels.tolist() == [-100] * len(prompt.input_ids) + answer


def test_long_items_are_not_cut(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    settings = EvaluationData(
        str(write_jsonl(tmp_path / "set.jsonl", [{"prompt": "p", "answer": "a " * 4000}])), role="keep"
    )
    (sample,) = read_references("set", settings, tokenizer, "{prompt}")
    assert torch.count_nonzero(sample.labels != -100) > 2048


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_item_without_reference_is_refused(answer: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "set.jsonl", [{"prompt": "p", "answer": answer}])
    with pytest.raises(ActError, match=r"data\.evaluations\.set.*reference answer"):
        read_references("set", EvaluationData(str(path), role="keep"), tokenizer, "chat")
