"""Greedy answers, compared with a loop that reads one prompt at a time and takes the likeliest token."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from act_lightning.errors import ActError
from act_lightning.evaluation import generation
from act_lightning.evaluation.generation import Generation, end_of_turn_ids, generate_answers
from tests.model_types import tiny_type_config
from tests.tiny import END_ID, PAD_ID, START_ID, perturb, tiny_model

PROMPTS = ["One", "What is the sum of two and two?", "नौ, 九!", "a " * 20]
MANY = [*PROMPTS, *(f"What is the sum of {number} and {'two ' * (number % 5)}?" for number in range(20))]


def left_padded(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left"))


@torch.no_grad()
def slow_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int, ends: set[int]
) -> Generation:
    ids = tokenizer(prompt).input_ids
    answer: list[int] = []
    while len(answer) < tokens and not (answer and answer[-1] in ends):
        answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
    ended = answer[-1] in ends
    return Generation(tokenizer.decode(answer, skip_special_tokens=True), len(answer) - ended, not ended)


def answering(seed: int = 0, architecture: str = "llama") -> PreTrainedModel:
    """A random model that ends some of its answers early."""
    model = tiny_model(architecture, seed=seed, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[END_ID] *= 2.5
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2"])
def test_equals_one_prompt_at_a_time(architecture: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = answering(architecture=architecture)
    answers = generate_answers(model, tokenizer, left_padded(tokenizer, PROMPTS), 12)
    assert answers == [slow_answer(model, tokenizer, prompt, 12, {END_ID}) for prompt in PROMPTS]


@pytest.fixture
def no_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values take what ``tokens_per_batch`` allows, however little that is."""
    monkeypatch.setattr(generation, "_KEYS_AND_VALUES", 0)


@pytest.mark.usefixtures("no_free_memory")
@pytest.mark.parametrize(
    ("dtype", "budget"),
    [
        *((torch.float32, budget) for budget in (1, 200, 600)),
        (torch.bfloat16, 1),  # row by row: several together are rounded in another way
    ],
    ids=str,
)
def test_equals_transformers_where_rows_leave_and_others_come(
    dtype: torch.dtype, budget: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = answering().to(dtype)
    answers = generate_answers(model, tokenizer, left_padded(tokenizer, MANY), 12, tokens_per_batch=budget)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=END_ID, pad_token_id=PAD_ID)
    for prompt, answer in zip(MANY, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        tokens = model.generate(ids, generation_config=greedy)[0, ids.shape[1] :].tolist()  # type: ignore[operator]
        length = len(tokens) - (tokens[-1] == END_ID)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer == Generation(text, length, truncated=length == 12)
    assert {answer.truncated for answer in answers} == {True, False}


ARCHITECTURES = {  # and what is special about them
    "qwen2": {},
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {},  # absolute positions
    "deepseek_v3": {},  # keys and values of different widths; experts
    "phi3": {},  # prepares its inputs itself
    "gemma3n_text": {},  # layers that share keys and values
    "qwen3_next": {},  # recurrent layers
    "mamba": {},
}


@pytest.mark.usefixtures("no_free_memory")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_cache(architecture: str, tokenizer: PreTrainedTokenizerFast) -> None:
    config = tiny_type_config(architecture, **ARCHITECTURES[architecture])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    perturb(model, 0, 0.1)
    prompts = MANY[:8]
    answers = generate_answers(model, tokenizer, left_padded(tokenizer, prompts), 8, tokens_per_batch=150)
    ends = {*end_of_turn_ids(model.generation_config, tokenizer)}
    assert answers == [slow_answer(model, tokenizer, prompt, 8, ends) for prompt in prompts]


@pytest.mark.usefixtures("no_free_memory")
def test_memory_is_bounded_and_rows_that_have_ended_are_not_read(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, budget = answering(), 300
    sizes, rows = [], []

    def look(module: torch.nn.Module, args: tuple[object, ...], inputs: dict[str, Any]) -> None:
        new, past = inputs["input_ids"].shape, inputs["past_key_values"].get_seq_length()
        sizes.append(new[0] * (past + new[1]))
        rows.append(new[0])

    model.register_forward_pre_hook(look, with_kwargs=True)
    batch = left_padded(tokenizer, MANY)
    answers = generate_answers(model, tokenizer, batch, 12, tokens_per_batch=budget)
    assert max(sizes) <= budget < batch["input_ids"].numel()
    needed = sum(answer.tokens + (not answer.truncated) for answer in answers)
    assert needed <= sum(rows) <= 1.2 * needed

    monkeypatch.undo()
    rows.clear()
    assert generate_answers(model, tokenizer, batch, 12, tokens_per_batch=budget) == answers
    assert max(rows) > 2 * budget // batch["input_ids"].shape[1]  # these keys and values are small
    assert needed <= sum(rows) <= 1.2 * needed


def test_some_answers_end_early(tokenizer: PreTrainedTokenizerFast) -> None:
    """So that the comparison above says something about stopping."""
    model = answering()
    assert {slow_answer(model, tokenizer, prompt, 12, {END_ID}).truncated for prompt in PROMPTS} == {True, False}


def test_settings_for_sampling_play_no_part(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = answering()
    plain = generate_answers(model, tokenizer, left_padded(tokenizer, PROMPTS), 12)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, top_p=0.5, repetition_penalty=3.0, num_beams=3, max_length=4
    )
    before = copy.deepcopy(model.generation_config)
    assert generate_answers(model, tokenizer, left_padded(tokenizer, PROMPTS), 12) == plain
    assert model.generation_config == before
    assert not caplog.records


def test_modes_come_back(tokenizer: PreTrainedTokenizerFast) -> None:
    model = answering().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    generate_answers(model, tokenizer, left_padded(tokenizer, PROMPTS), 2)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError):
        generate_answers(
            model, tokenizer, {key: value + 1000 for key, value in left_padded(tokenizer, PROMPTS).items()}, 2
        )
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_ends_come_from_config_tokenizer_and_template(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [7, 9]
    tokenizer.eos_token = "<|im_start|>"
    assert end_of_turn_ids(model.generation_config, tokenizer) == [START_ID, END_ID, 7, 9]
    tokenizer.chat_template = None
    model.generation_config.eos_token_id = 5
    assert end_of_turn_ids(model.generation_config, tokenizer) == [START_ID, 5]
    model.generation_config.eos_token_id = None
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    assert end_of_turn_ids(model.generation_config, tokenizer) == [START_ID]


def test_no_end_and_no_padding_token(tokenizer: PreTrainedTokenizerFast) -> None:
    model = answering()
    batch = left_padded(tokenizer, PROMPTS)
    model.generation_config = GenerationConfig()
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.chat_template = None
    assert end_of_turn_ids(model.generation_config, tokenizer) == []
    expected = [slow_answer(model, tokenizer, prompt, 6, set()) for prompt in PROMPTS]
    assert generate_answers(model, tokenizer, batch, 6) == expected


def test_padding_on_the_right_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = dict(tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="right"))
    assert (batch["input_ids"] == PAD_ID).any()
    with pytest.raises(ActError, match="padded on the left"):
        generate_answers(tiny_model(), tokenizer, batch, 2)


def test_logits_that_are_no_numbers_are_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ActError, match="gave NaN for row 0"):
        generate_answers(model, tokenizer, left_padded(tokenizer, PROMPTS), 2)


def test_the_row_whose_logits_are_no_numbers_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    rare = tokenizer("नौ").input_ids[-1]
    model.model.embed_tokens.weight.data[rare] = float("nan")
    locations = [f"set.jsonl:{number}" for number in (4, 7, 1, 2)]
    with pytest.raises(ActError, match=r"gave NaN for set\.jsonl:1"):
        generate_answers(model, tokenizer, left_padded(tokenizer, PROMPTS), 2, locations)
