"""Evaluation items as a model reads them: prompts to be answered, or references to be scored in one pass."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.labels import Encoder, Sample
from act_lightning.data.micro_batches import MicroBatch
from act_lightning.data.tasks import Item, read_items
from act_lightning.data.templates import Template, make_template
from act_lightning.data.tokens import OffsetTokenizer
from act_lightning.defaults import IGNORED
from act_lightning.errors import located


@dataclass(frozen=True, eq=False)
class Prompt:
    """One item of an evaluation set, as the model reads it.

    Attributes:
        input_ids: int64 ``[tokens]``, up to where the model goes on.
        text: The text they were made from.
        item: What is asked, and what the output is compared with.
    """

    input_ids: Tensor
    text: str
    item: Item

    @property
    def reference(self) -> str:
        """The answer that is wanted."""
        return self.item.reference


def read_prompts(
    name: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, default_template: str
) -> list[Prompt]:
    """The items of an evaluation set, in the order of its rows.

    Args:
        name: Name of the set.
        settings: Where its rows come from; the last turn of each holds the reference.
        tokenizer: The target's tokenizer.
        default_template: Template where the set has none of its own.

    Raises:
        ActError: If its rows cannot be read or rendered, or one of them has no reference, or none that can be matched.
    """
    where = f"data.evaluations.{name}"
    template, tokenize = evaluation_template(where, settings, tokenizer, default_template), OffsetTokenizer(tokenizer)
    return [_prompt(item, template, tokenize) for item in read_items(settings, where)]


def evaluation_template(
    where: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, default_template: str
) -> Template:
    """The template of an evaluation set: its own, or the data module's."""
    setting = "data.template" if settings.template is None else f"{where}.template"
    return make_template(settings.template or default_template, tokenizer, setting)


def _prompt(item: Item, template: Template, tokenize: OffsetTokenizer) -> Prompt:
    rendered = template.render_prompt(item.messages, item.place)
    with located(item.place):
        tokens = tokenize(rendered.text, rendered.add_special_tokens)
    end = len(rendered.text)
    ids = [token for token, start in zip(tokens.ids, tokens.starts, strict=True) if start < end]
    return Prompt(torch.tensor(ids), rendered.text, item)


def collate_prompts(prompts: Sequence[Prompt], pad_id: int, chosen: MicroBatch) -> dict[str, Any]:
    """One batch for generation, padded on the left.

    Args:
        prompts: What the indices in ``chosen`` point at.
        pad_id: Token id that fills up ``input_ids``.
        chosen: The batch; if it does not count, it only keeps this process in step with the others.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``[rows, length]``; ``rows``, their numbers in the set, ``prompts``
        and ``references``, lists that are empty if the batch does not count.
    """
    rows = [prompts[row].input_ids for row in chosen.rows]
    masks = [torch.ones_like(row) for row in rows]
    wanted = [prompts[row] for row in chosen.rows if chosen.counts]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
        "rows": list(chosen.rows) if chosen.counts else [],
        "prompts": [prompt.text for prompt in wanted],
        "references": [prompt.reference for prompt in wanted],
    }


def read_references(
    name: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, default_template: str
) -> list[Sample]:
    """The items of an evaluation set, in the order of its rows; only the last answer of each is labeled.

    Args:
        name: Name of the set.
        settings: Where its rows come from.
        tokenizer: The target's tokenizer.
        default_template: Template where the set has none of its own.

    Raises:
        ActError: If its rows cannot be read or rendered, or one of them has no reference.
    """
    where = f"data.evaluations.{name}"
    encode = Encoder(evaluation_template(where, settings, tokenizer, default_template), tokenizer, sys.maxsize)
    found = []
    for item in read_items(settings, where):
        sample = encode(item.messages, item.place)
        assert sample is not None, "an item has an answer"
        found.append(replace(sample, labels=last_answer(sample.labels)))
    return found


def last_answer(labels: Tensor) -> Tensor:
    """``labels`` with all answers ignored but the last.

    Args:
        labels: int64 ``[tokens]``, at least one of them not ignored.

    >>> last_answer(torch.tensor([-100, 5, -100, 7, 8])).tolist()
    [-100, -100, -100, 7, 8]
    """
    answered = (labels != IGNORED).nonzero().squeeze(1)
    ignored = (labels[: answered[-1]] == IGNORED).nonzero().squeeze(1)
    start = int(ignored[-1]) + 1 if len(ignored) else 0
    return torch.cat([torch.full((start,), IGNORED), labels[start:]])
