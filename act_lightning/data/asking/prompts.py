"""Evaluation sets: what the model reads, and the reference that its output is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from act_lightning.data.asking.items import Item, read_items
from act_lightning.data.batching.micro_batches import MicroBatch
from act_lightning.data.labeling.templates import Template, make_template
from act_lightning.data.labeling.tokens import OffsetTokenizer
from act_lightning.data.settings import EvaluationData
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
