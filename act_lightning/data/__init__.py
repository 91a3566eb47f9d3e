"""Abilities and evaluation sets: rows, templates, answer labels, batches, and the LightningDataModule."""

from act_lightning.checkpoints import name_faults
from act_lightning.data.asking.items import Item, read_items
from act_lightning.data.asking.prompts import Prompt, collate_prompts, read_prompts
from act_lightning.data.asking.questions import strict_pattern
from act_lightning.data.asking.references import last_answer, read_references
from act_lightning.data.batching.batches import MOST_WASTE, Batch, collate, deal, token_budget_batches, unbatch
from act_lightning.data.batching.micro_batches import (
    MicroBatch,
    MicroBatchLoader,
    MicroBatchSampler,
    deal_evenly,
)
from act_lightning.data.batching.packing import Packing, pack, packs
from act_lightning.data.batching.training_loader import TrainingLoader
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.keeping.abilities import TokenizedAbility, fingerprint, tokenize_ability
from act_lightning.data.keeping.storage import answer_tokens, lengths
from act_lightning.data.labeling.labels import IGNORED, Encoder, Sample, answer_mask, encode, has_answers
from act_lightning.data.labeling.templates import ChatTemplate, Rendered, Template, TextTemplate, make_template
from act_lightning.data.reading.rows import LocatedConversation, iter_conversations, read_rows, rows_fingerprint
from act_lightning.data.reading.shapes import Conversation, Message
from act_lightning.data.settings import AbilityData, EvaluationData, PerGroup

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
