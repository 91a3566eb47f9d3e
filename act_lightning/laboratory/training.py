"""A plain training loop, small enough to check by reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act_lightning.laboratory.recipe import Stage

_IGNORED = -100
_WARM_UP = 0.05


@dataclass(frozen=True)
class Samples:
    """Encoded conversations, padded to the longest.

    Attributes:
        ids: int64 ``[samples, positions]``.
        labels: The same ids where the loss is taken, -100 elsewhere.
        lengths: int64 ``[samples]``.
        weights: float32 ``[samples]``: how often each is drawn.
    """

    ids: Tensor
    labels: Tensor
    lengths: Tensor
    weights: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` samples by their weights, no wider than the longest of them."""
        chosen = torch.multinomial(self.weights, count, replacement=True)
        width = int(self.lengths[chosen].max())
        return self.ids[chosen, :width], self.labels[chosen, :width]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, str]],
    weights: Sequence[float],
    whole_text: bool,
) -> Samples:
    """Each row as a conversation, learned whole or only in its answer and the token that ends it."""
    turns = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    questions = tokenizer(cast(list[str], asked)).input_ids
    answers = tokenizer([row["answer"] + str(tokenizer.eos_token) for row in rows]).input_ids
    ids, labels = [], []
    for question, answer in zip(questions, answers, strict=True):
        ids.append(torch.tensor(question + answer))
        labels.append(torch.tensor((question if whole_text else [_IGNORED] * len(question)) + answer))
    return Samples(
        ids=pad_sequence(ids, batch_first=True, padding_value=int(tokenizer.pad_token_id or 0)),
        labels=pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
        lengths=torch.tensor([len(sample) for sample in ids]),
        weights=torch.tensor(weights),
    )


def train(model: PreTrainedModel, samples: Samples, stage: Stage, name: str) -> None:
    """Minimize the mean cross-entropy over labeled tokens with AdamW, in place; draws come from torch's generator."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    model.train()
    for step in tqdm(range(stage.steps), desc=f"training lab:{name}", unit="step"):
        ids, labels = samples.draw(stage.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * schedule(step, stage.steps)
        loss = _loss(model, ids, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def _loss(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Padding stands on the right, where no labeled token can see it."""
    logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: a short linear rise, then half a cosine down to zero."""
    rise = max(1, round(_WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
