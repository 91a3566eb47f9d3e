"""How long a run will take, from a few passes of one and two layers of the model on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from act_lightning.architecture import DecoderSizes
from act_lightning.checkpoints.models import load_config, resolve_dtype
from act_lightning.planning.forecast import profiles
from act_lightning.planning.run import Run
from act_lightning.planning.training_checks import process_count
from act_lightning.profiling.memory import runs_on_host

_TOKENS, _REPEATS = 256, 3
_VOCABULARY = 2048  # a whole one would take gigabytes; the time of the rest is in proportion


def time_forecast(run: Run, target: Path, verb: str) -> dict[str, float]:
    """Seconds of ``profiling`` and ``training`` on this machine, and the tokens behind them.

    The abilities are read and tokenized. The model's time for a token is that of one layer and a small vocabulary, and
    the rest in proportion: layers from the step to two of them, vocabulary from the step to twice its size. Weights
    are random, for speed does not depend on them, so that none need be there.

    Args:
        run: The run.
        target: Folder of the target; a config is enough.
        verb: What is to be done.

    Raises:
        ActError: The abilities cannot be read.
    """
    tokens = {name: sum(len(one.input_ids) for one in part.samples) for name, part in run.data.tokenized.items()}
    profiled = sum(tokens[name] for source in run.sources for name in source.abilities) if profiles(run, verb) else 0
    epochs = int(run.trainer.get("max_epochs") or 1)
    trained = epochs * sum(tokens[name] for name in run.data.train) if verb == "fit" else 0
    config, processes = load_config(target), process_count(run.trainer) or 1
    device = torch.device("cpu" if runs_on_host(run.trainer) else "cuda")
    compared = resolve_dtype(run.model.weights_dtype, target)
    half = str(run.trainer.get("precision") or "").startswith("bf16") and device.type == "cuda"
    forward = _seconds_a_token(config, compared, device, _forward) if profiled else 0.0
    both = _seconds_a_token(config, torch.bfloat16 if half else torch.float32, device, _backward) if trained else 0.0
    found = {"profiling": 2 * profiled * forward / processes, "training": trained * both / processes}
    return {**found, "profiled_tokens": profiled, "trained_tokens": trained}


def _seconds_a_token(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device, work: Callable[[PreTrainedModel], object]
) -> float:
    def measure(layers: int, vocabulary: int) -> float:
        return _fastest(_reduced(config, layers, vocabulary, dtype).to(device), work) / _TOKENS

    one = measure(1, _VOCABULARY)
    a_layer, words = max(measure(2, _VOCABULARY) - one, 0.0), max(measure(1, 2 * _VOCABULARY) - one, 0.0)
    sizes = DecoderSizes.of(config)
    return one + a_layer * (sizes.layers - 1) + words * max(sizes.vocabulary / _VOCABULARY - 1, 0.0)


def _reduced(config: PretrainedConfig, layers: int, vocabulary: int, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """A random model of the same widths with fewer layers and words."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.vocab_size = layers, vocabulary
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None  # they may lie beyond the words that are left
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.random.fork_rng():
        return AutoModelForCausalLM.from_config(small, dtype=dtype, trust_remote_code=False)


def _fastest(model: PreTrainedModel, work: Callable[[PreTrainedModel], object]) -> float:
    """Seconds of the fastest of a few passes, after one to warm up."""
    found = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        work(model)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _forward(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        model(input_ids=_ids(model), use_cache=False)


def _backward(model: PreTrainedModel) -> None:
    ids = _ids(model)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def _ids(model: PreTrainedModel) -> torch.Tensor:
    return torch.arange(_TOKENS, device=model.device).unsqueeze(0)
