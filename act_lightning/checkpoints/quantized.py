"""A model of a folder in 8 or 4 bits, frozen, for measuring only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from act_lightning.checkpoints.models import LOCAL, load_config, quiet, unloadable
from act_lightning.checkpoints.shards import require_weights
from act_lightning.errors import ActError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTIZATIONS = ("8bit", "4bit")


def load_quantized(folder: Path, dtype: torch.dtype, device: torch.device, quantization: str) -> PreTrainedModel:
    """The causal language model of ``folder`` with the matrices of its layers quantized, in evaluation mode.

    By bitsandbytes: LLM.int8() (https://arxiv.org/abs/2208.07339), or 4-bit NormalFloat
    (https://arxiv.org/abs/2305.14314). Embedding, norms and head stay as they are.

    Args:
        folder: A Hugging Face folder with safetensors weights, not quantized.
        dtype: The dtype of what is not quantized, and of activations.
        device: Where to put it.
        quantization: ``8bit`` or ``4bit``.

    Raises:
        ActError: Files are missing, or it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = load_config(folder)
    require_weights(folder, str(folder))
    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    try:
        with quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                quantization_config=BitsAndBytesConfig(**settings),
                device_map={"": device},
                use_safetensors=True,
                **LOCAL,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ActError(unloadable(folder, f"must load in {quantization}", error)) from error
    model.train(False)
    return model
