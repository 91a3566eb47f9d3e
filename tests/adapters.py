"""Adapters that PEFT makes and merges."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def save_adapter(base: Path, adapter: Path, seed: int = 5, **settings: Any) -> PreTrainedModel:
    """Save a random LoRA adapter of ``base``, and return the model that PEFT merges from both."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    arguments = {"r": 4, "lora_alpha": 10, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # 2026-11-28: peft 0.21 reads deprecated attributes of transformers 5.23's models
        return _save_adapter(peft, base, adapter, arguments)


def _save_adapter(peft: Any, base: Path, adapter: Path, arguments: dict[str, Any]) -> PreTrainedModel:
    config = peft.LoraConfig(task_type="CAUSAL_LM", **arguments)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save")):
                parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
    model.save_pretrained(adapter)
    trained = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged: PreTrainedModel = trained.merge_and_unload()
    return merged
