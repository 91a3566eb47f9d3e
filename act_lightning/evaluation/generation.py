"""A model's own answers, decoded greedily; or exact answers scored in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode comes back afterwards, also after an exception."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


_ANSWER = "ANSWER"


class Generation(NamedTuple):
    """One output.

    Attributes:
        text: What the model wrote, without special tokens, white space as it came.
        tokens: How many tokens it is long, without the one that ends the turn.
        truncated: Whether it was cut before the model had ended its turn.
    """

    text: str
    tokens: int
    truncated: bool


class Generator(Protocol):
    """Whatever answers prompts greedily."""

    def __call__(
        self, batch: Mapping[str, Tensor], max_new_tokens: int, places: Sequence[str] = ()
    ) -> list[Generation]:
        """One output a row, as :func:`generate_answers` gives it.

        Args:
            batch: ``input_ids`` and ``attention_mask``, int64 ``[rows, positions]``, padded on the left.
            max_new_tokens: Where an answer that does not end is cut.
            places: Where each row stands, for messages.
        """


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
    places: Sequence[str] = (),
) -> list[Generation]:
    """What ``model`` answers to each prompt, the likeliest token at every step.

    Settings of the model's generation config that would change a greedy answer (temperature, repetition penalty, beams)
    play no part. The model's modes and its generation config are as before afterwards.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        batch: ``input_ids`` and ``attention_mask``, int64 ``[rows, positions]``, padded on the left.
        max_new_tokens: Where an answer that does not end is cut.
        places: Where each row stands, for messages; by default its number in the batch.

    Returns:
        One output a row.

    Raises:
        ActError: A row ends in padding, so its answer would not follow its prompt; or the model's logits are NaN.
    """
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    if not bool(mask[:, -1].all()):
        raise ActError(
            ConfigIssue("attention_mask", mask.tolist(), "must be padded on the left", "Set padding_side='left'.")
        )
    config = _greedy(model, tokenizer, max_new_tokens)
    with evaluating(model), _generation_config(model, config):
        sequences = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([_NoNaN(places)]),
        )
    ends = set(end_of_turn_ids(model, tokenizer))
    return [cut_at_end(row, ends, tokenizer) for row in sequences[:, ids.shape[1] :].tolist()]


def cut_at_end(tokens: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase) -> Generation:
    """An output up to the first token that ends a turn; truncated if there is none.

    Args:
        tokens: What was generated.
        ends: Tokens that end a turn.
        tokenizer: The model's.
    """
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    text = tokenizer.decode(tokens[: length + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Generation(str(text), length, truncated=length == len(tokens))


class _NoNaN(LogitsProcessor):
    """Stops a generation whose logits are NaN: their argmax would be some token, and the answer nobody's."""

    def __init__(self, places: Sequence[str]) -> None:
        self.places = places

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool((wrong := scores.isnan().any(dim=-1)).any()):
            raise nan_logits(int(wrong.int().argmax()), self.places)
        return scores


def nan_logits(row: int, places: Sequence[str] = ()) -> ActError:
    """The error of a model whose outputs are no numbers.

    Args:
        row: The first such row of a batch.
        places: Where each row of the batch stands; by default its number.
    """
    problem = f"must give logits that are numbers, and gave NaN for {places[row] if places else f'row {row}'}"
    return ActError(ConfigIssue("model", "logits", problem, "Look at the weights, or evaluate in float32 or bfloat16."))


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token after which an answer is over, sorted.

    They are the end tokens of the model's generation config, the tokenizer's, and the one that the chat template writes
    after an assistant's turn: fine-tuned models often end with a token that their config does not name.
    """
    return end_ids(model.generation_config, tokenizer)


def end_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The same from a generation config.

    Args:
        config: The model's, if it has one.
        tokenizer: The model's.
    """
    named = config.eos_token_id if config else None
    found = set(named) if isinstance(named, list) else {named}
    found |= {tokenizer.eos_token_id, _template_end(tokenizer)}
    return sorted(token for token in found if token is not None)


def _template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first special token that the chat template writes after an answer."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    after = tokenizer.encode(text.rpartition(_ANSWER)[2], add_special_tokens=False)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((token for token in after if token in special), None)


def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    ends = end_of_turn_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    return GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )


@contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Lend ``config`` to the model: ``generate`` fills what it is not given from the model's own."""
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept


def greedy_matches(model: PreTrainedModel, batch: Mapping[str, Tensor], places: Sequence[str] = ()) -> Tensor:
    """Whether greedy decoding would give each row's answer, token for token.

    Greedy decoding gives the reference if and only if every argmax along the reference does: up to the first that
    differs both have read the same tokens. So one teacher-forced pass decides, the token that ends the turn included.
    An answer spelled with other tokens than the tokenizer's own counts as different.

    Args:
        model: A causal language model.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[rows, positions]``, padded on the right;
            labels stand at their own token (not shifted), -100 where nothing is asked.
        places: Where each row stands, for messages; by default its number in the batch.

    Returns:
        bool ``[rows]``.

    Raises:
        ActError: A row asks nothing, or the logits are NaN.
    """
    labels = batch["labels"].to(model.device)[:, 1:]
    asked = labels != IGNORED
    if not bool(asked.any(dim=1).all()):
        row = int(asked.any(dim=1).int().argmin())
        raise ActError(
            ConfigIssue("labels", f"row {row}", "must hold an answer token", "Leave rows without answers out.")
        )
    columns = asked.any(dim=0).nonzero().squeeze(1)
    with evaluating(model):
        logits = cast(Any, model)(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            logits_to_keep=columns,
            use_cache=False,
        ).logits
    asked, labels = asked[:, columns], labels[:, columns]
    if bool((wrong := (logits.isnan().any(dim=-1) & asked).any(dim=1)).any()):
        raise nan_logits(int(wrong.int().argmax()), places)
    return cast(Tensor, ((logits.argmax(-1) == labels) | ~asked).all(dim=1))
