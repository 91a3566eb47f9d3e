"""Model cards: the README of an exported model, for the hub, for readers, and for making the run again."""

from act_lightning.cards.card import Card, recipe_and_record
from act_lightning.cards.licenses import CARD, common_license, license_text, read_license
from act_lightning.cards.markdown import front_matter, table
from act_lightning.cards.names import is_hub_id, short
from act_lightning.cards.portable import portable, settled
from act_lightning.cards.record import data_fingerprints, model_identities, result_hashes, run_record, versions
from act_lightning.cards.writing import (
    card_again,
    complete_card,
    exported_folders,
    first_card,
    read_card,
    read_transfer,
)

__all__ = [
    "CARD",
    "Card",
    "card_again",
    "common_license",
    "complete_card",
    "data_fingerprints",
    "exported_folders",
    "first_card",
    "front_matter",
    "is_hub_id",
    "license_text",
    "model_identities",
    "portable",
    "read_card",
    "read_license",
    "read_transfer",
    "recipe_and_record",
    "result_hashes",
    "run_record",
    "settled",
    "short",
    "table",
    "versions",
]
