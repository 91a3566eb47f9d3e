"""Abilities and evaluation sets: rows, templates, answer labels, batches, and the LightningDataModule."""

from act_lightning.checkpoints import name_faults
from act_lightning.data.abilities import TokenizedAbility, fingerprint, tokenize_ability
from act_lightning.data.batches import MOST_WASTE, Batch, collate, deal, token_budget_batches, unbatch
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.items import Item, read_items
from act_lightning.data.labels import IGNORED, Encoder, Sample, answer_mask, encode, has_answers
from act_lightning.data.micro_batches import (
    MicroBatch,
    MicroBatchLoader,
    MicroBatchSampler,
    deal_evenly,
)
from act_lightning.data.packing import Packing, pack, packs
from act_lightning.data.prompts import Prompt, collate_prompts, read_prompts
from act_lightning.data.questions import strict_pattern
from act_lightning.data.references import last_answer, read_references
from act_lightning.data.rows import LocatedConversation, iter_conversations, read_rows, rows_fingerprint
from act_lightning.data.settings import AbilityData, EvaluationData, PerGroup
from act_lightning.data.shapes import Conversation, Message
from act_lightning.data.storage import answer_tokens, lengths
from act_lightning.data.templates import ChatTemplate, Rendered, Template, TextTemplate, make_template
from act_lightning.data.training_loader import TrainingLoader

__all__ = [
    "IGNORED",
    "MOST_WASTE",
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
    "Packing",
    "PerGroup",
    "Prompt",
    "Rendered",
    "Sample",
    "Template",
    "TextTemplate",
    "TokenizedAbility",
    "TrainingLoader",
    "answer_mask",
    "answer_tokens",
    "collate",
    "collate_prompts",
    "deal",
    "deal_evenly",
    "encode",
    "fingerprint",
    "has_answers",
    "iter_conversations",
    "last_answer",
    "lengths",
    "make_template",
    "name_faults",
    "pack",
    "packs",
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
