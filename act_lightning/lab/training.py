"""How the laboratory's models are trained: tokenizer, samples, and a loop small enough to check by reading."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Tokenizer

from act_lightning.console import progress_bar
from act_lightning.defaults import IGNORED


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
        steps: Updates.
        batch_size: Samples in an update.
        learning_rate: AdamW's, at its peak.
        arithmetic: Share of samples that are sums; the others are number words.
        whole_text: Whether questions are learned, too, as in pretraining.
    """

    steps: int
    batch_size: int
    learning_rate: float
    arithmetic: float
    whole_text: bool = False


PAD, END = "<|endoftext|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Learn a vocabulary from ``texts``; the chat template puts a role before and an end after each turn.

    The class is Qwen2's own, because ``AutoTokenizer`` loads that one from the folder of a Qwen2 model, whatever class
    wrote the tokenizer there, and would cut the text in its own way.
    """
    empty = Qwen2Tokenizer(eos_token=END, pad_token=PAD, extra_special_tokens=list(ROLES), model_max_length=256)
    tokenizer: PreTrainedTokenizerBase = empty.train_new_from_iterator(texts, vocabulary, show_progress=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


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

    def draw(self, updates: int, batch_size: int) -> Tensor:
        """The samples of every update by their weights, the shorter ones first: int64 ``[updates, batch_size]``."""
        drawn = torch.multinomial(self.weights, updates * batch_size, replacement=True).view(updates, batch_size)
        return drawn.gather(1, self.lengths[drawn].argsort(dim=1))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, str]],
    weights: Sequence[float],
    whole_text: bool,
) -> Samples:
    """Each row as a conversation, learned whole or only in its answer and the token that ends it."""
    turns = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    prompts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    questions = tokenizer(cast(list[str], prompts)).input_ids
    answers = tokenizer([row["answer"] + str(tokenizer.eos_token) for row in rows]).input_ids
    ids, labels = [], []
    for question, answer in zip(questions, answers, strict=True):
        ids.append(torch.tensor(question + answer))
        labels.append(torch.tensor((question if whole_text else [IGNORED] * len(question)) + answer))
    return Samples(
        ids=pad_sequence(ids, batch_first=True, padding_value=int(tokenizer.pad_token_id or 0)),
        labels=pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        lengths=torch.tensor([len(sample) for sample in ids]),
        weights=torch.tensor(weights),
    )


def train(
    model: PreTrainedModel, samples: Samples, stage: Stage, name: str, skip_unlabeled_logits: bool = False
) -> None:
    """Minimize the mean cross-entropy over labeled tokens with AdamW, in place; draws come from torch's generator.

    An update's shorter half and its longer one are passed through the model one after the other, each no wider than its
    longest sample, which saves a third of the time. With ``skip_unlabeled_logits``, logits are computed only at
    positions where a sample has a label, which saves time where the vocabulary is large.
    """
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    model.train()
    updates = samples.draw(stage.steps, stage.batch_size)
    for step, chosen in enumerate(progress_bar(updates, desc=f"training {name}", unit="step")):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * schedule(step, stage.steps)
        optimizer.zero_grad()
        labeled = int((samples.labels[chosen, 1:] != IGNORED).sum())
        for half in chosen.chunk(2):
            width = int(samples.lengths[half].max())
            ids, labels = samples.ids[half, :width], samples.labels[half, 1:width]
            # padding is on the right, where no labeled token sees it
            if skip_unlabeled_logits:
                columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
                logits, labels = (
                    model(input_ids=ids, use_cache=False, logits_to_keep=columns).logits,
                    labels[:, columns],
                )
            else:
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
            (losses / labeled).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: a short linear rise, then half a cosine down to zero."""
    rise = max(1, round(_WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
