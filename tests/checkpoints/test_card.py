"""A card that the hub's own reader understands."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from act_lightning.checkpoints import model_card

TRANSFER: dict[str, Any] = {
    "channels": 1000,
    "sources": {
        "instruct": {
            "abilities": {"science-ar": {"selected": 10, "tokens": 1234}},
            "parameter_share": 0.0473,
            "scale": 0.4,
            "ratio": 0.01,
        }
    },
    "selection": "activation",
    "method": "task_arithmetic",
    "seed": 42,
}
RECIPE = "model:\n  target: org/base  # ```\n"


def test_card_of_a_transfer() -> None:
    text = model_card("org/base", ["org/source", "/home/me/secret/other"], RECIPE, TRANSFER)
    data = ModelCard(text).data
    assert data.base_model == ["org/base", "org/source"]
    assert data.library_name == "transformers"
    assert data.tags == ["merge", "act-lightning"]
    assert "secret" not in text
    assert "| science-ar | 10 | 1234 |" in text
    assert "4.73% of all parameters" in text
    assert f"````yaml\n{RECIPE}````" in text


def test_card_of_plain_fine_tuning() -> None:
    card = ModelCard(model_card("runs/deep/base", [], "seed: 1", {}))
    assert card.data.base_model is None
    assert card.data.tags == ["act-lightning"]
    assert "without a transfer" in card.text
