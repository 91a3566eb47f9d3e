"""One pass over the reference says whether generation would give it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from act_lightning.errors import ActError
from act_lightning.evaluation.evaluator import greedy_matches
from act_lightning.evaluation.generation import generate_answers
from tests.tiny import END_ID, PAD_ID, tiny_model

PROMPTS = ["What is one?", "The sum of one and two is", "नौ, 九!", "question " * 9, "I"]
ANSWERS = ["one", "three", "The answer is nine.", "no", "am"]


def labeled(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    batch = {
        "input_ids": torch.full((len(prompts), width), PAD_ID),
        "attention_mask": torch.zeros(len(prompts), width, dtype=torch.int64),
        "labels": torch.full((len(prompts), width), -100),
    }
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        batch["input_ids"][row, :end] = torch.tensor(prompt + answer)
        batch["attention_mask"][row, :end] = 1
        batch["labels"][row, len(prompt) : end] = torch.tensor(answer)
    return batch


@torch.no_grad()
def slow_greedy(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    answer: list[int] = []
    for _ in range(tokens):
        answer.append(int(model(torch.tensor([prompt + answer])).logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_random_models(architecture: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model's own greedy tokens match, and no longer once any one of them is changed."""
    model = tiny_model(architecture)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    own = [slow_greedy(model, prompt, 3 + row) for row, prompt in enumerate(prompts)]
    assert greedy_matches(model, labeled(prompts, own)).tolist() == [True] * len(prompts)
    changed = [
        [(token + 1) % 300 if place == row % len(answer) else token for place, token in enumerate(answer)]
        for row, answer in enumerate(own)
    ]
    assert greedy_matches(model, labeled(prompts, changed)).tolist() == [False] * len(prompts)


def half_trained(batch: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A model that learned the first three rows."""
    model = tiny_model("llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = {key: value[:3] for key, value in batch.items()}
    for _ in range(40):
        logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), rows["labels"][:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_agrees_with_generation_on_a_trained_model(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    batch = labeled(prompts, [[*tokenizer(answer).input_ids, END_ID] for answer in ANSWERS])
    model = half_trained(batch)
    matches = greedy_matches(model, batch)
    assert matches.dtype == torch.bool
    assert matches.tolist() == [True, True, True, False, False]
    assert model.training
    left = dict(tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left"))
    answers = generate_answers(model, tokenizer, left, 24)
    assert [answer.text == reference for answer, reference in zip(answers, ANSWERS, strict=True)] == matches.tolist()


def test_the_end_of_the_turn_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS[:3]]
    answers = [[*tokenizer(answer).input_ids, END_ID] for answer in ANSWERS[:3]]
    model = half_trained(labeled(prompts, answers))
    unended = [[*answer[:-1], PAD_ID] for answer in answers]
    assert not greedy_matches(model, labeled(prompts, unended)).any()
    assert greedy_matches(model, labeled(prompts, [answer[:-1] for answer in answers])).all()


def test_a_row_without_answer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = labeled([tokenizer(prompt).input_ids for prompt in PROMPTS[:3]], [[5], [6], [7]])
    batch["labels"][1] = -100
    with pytest.raises(ActError, match="row 1"):
        greedy_matches(tiny_model(), batch)


def test_the_row_whose_logits_are_no_numbers_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    batch = labeled(prompts, [[*tokenizer(answer).input_ids, END_ID] for answer in ANSWERS])
    model = tiny_model()
    model.model.embed_tokens.weight.data[tokenizer("नौ").input_ids[-1]] = float("nan")
    with pytest.raises(ActError, match="gave NaN for row 2"):
        greedy_matches(model, batch)
    with pytest.raises(ActError, match=r"gave NaN for set\.jsonl:3"):
        greedy_matches(model, batch, [f"set.jsonl:{number}" for number in range(1, 6)])
