"""Abilities and evaluation sets: rows, templates, answer labels, batches, and the LightningDataModule."""

from act_lightning.checkpoints import name_faults
from act_lightning.data.abilities import TokenizedAbility, fingerprint, tokenize_ability
from act_lightning.data.batches import Batch, collate, deal, token_budget_batches, unbatch
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.items import Item, read_items
from act_lightning.data.labels import IGNORED, Encoder, Sample, answer_mask, encode, has_answers
from act_lightning.data.micro_batches import (
    MicroBatch,
    MicroBatchLoader,
    MicroBatchSampler,
    TrainingLoader,
    deal_evenly,
)
from act_lightning.data.prompts import Prompt, collate_prompts, read_prompts
from act_lightning.data.questions import strict_pattern
from act_lightning.data.references import last_answer, read_references
from act_lightning.data.rows import LocatedConversation, iter_conversations, read_rows, rows_fingerprint
from act_lightning.data.settings import AbilityData, EvaluationData, PerGroup
from act_lightning.data.shapes import Conversation, Message
from act_lightning.data.templates import ChatTemplate, Rendered, Template, TextTemplate, make_template

__all__ = [
    "IGNORED",
    "AbilityData",
    "AbilityDataModule",
    "Batch",
    "ChatTemplate",
    "Conversation",
    "Encoder",
    "EvaluationData",
    "Item",
    "LocatedConversation",
    "Message",
    "MicroBatch",
    "MicroBatchLoader",
    "MicroBatchSampler",
    "PerGroup",
    "Prompt",
    "Rendered",
    "Sample",
    "Template",
    "TextTemplate",
    "TokenizedAbility",
    "TrainingLoader",
    "answer_mask",
    "collate",
    "collate_prompts",
    "deal",
    "deal_evenly",
    "encode",
    "fingerprint",
    "has_answers",
    "iter_conversations",
    "last_answer",
    "make_template",
    "name_faults",
    "read_items",
    "read_prompts",
    "read_references",
    "read_rows",
    "rows_fingerprint",
    "strict_pattern",
    "token_budget_batches",
    "tokenize_ability",
    "unbatch",
]
