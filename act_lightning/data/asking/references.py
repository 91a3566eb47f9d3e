"""Evaluation items with their references as labels, to be scored by one teacher-forced pass."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from act_lightning.data.asking.items import read_items
from act_lightning.data.asking.prompts import evaluation_template
from act_lightning.data.labeling.labels import IGNORED, Encoder, Sample
from act_lightning.data.settings import EvaluationData


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
