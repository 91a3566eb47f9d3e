"""A stand-in for vLLM's door: its names and shapes, and behind them a small model of transformers.

As in vLLM 0.33 (vllm/entrypoints/llm.py, sampling_params.py, outputs.py): an output holds all token ids, the one that
stops it included; ``finish_reason`` is ``stop`` or ``length``; with ``logprobs=0`` the log probabilities of the chosen
tokens are summed. The tokenizer's end token stops as well, since nothing asks to ignore it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class SamplingParams:
    """Those that are asked for; vLLM's own defaults."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    logprobs: int | None = None
    detokenize: bool = True
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class CompletionOutput:
    """One continuation."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None
    finish_reason: str


@dataclass(frozen=True)
class RequestOutput:
    """The continuations of one prompt."""

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class LLM:
    """Reads a folder, and continues prompts one at a time."""

    def __init__(
        self, model: str, *, tokenizer: str, dtype: str = "auto", generation_config: str = "auto", **settings: Any
    ) -> None:
        unknown = settings.keys() - {"tensor_parallel_size", "gpu_memory_utilization", "max_model_len"}
        if unknown:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {min(unknown)!r}")
        assert generation_config == "vllm", "else the model's own temperature and penalties are applied"
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.end = AutoTokenizer.from_pretrained(tokenizer).eos_token_id
        self.longest = settings.get("max_model_len", self.model.config.max_position_embeddings)

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: SamplingParams, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        for prompt in prompts:
            if len(prompt["prompt_token_ids"]) >= self.longest:
                raise ValueError(f"The decoder prompt is longer than the maximum model length of {self.longest}.")
        return [self._answer(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    @torch.no_grad()
    def _answer(self, prompt: list[int], asked: SamplingParams) -> RequestOutput:
        assert asked.temperature == 0.0
        assert asked.logprobs == 0
        assert asked.max_tokens is not None
        stops, tokens, total = {self.end, *(asked.stop_token_ids or ())}, list[int](), 0.0
        while len(tokens) < asked.max_tokens and len(prompt) + len(tokens) < self.longest:
            logprobs = self.model(torch.tensor([prompt + tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(logprobs.nan_to_num(-1e9).argmax()))
            total += float(logprobs[tokens[-1]])
            if tokens[-1] in stops:
                break
        reason = "stop" if tokens[-1] in stops else "length"
        return RequestOutput(prompt, [CompletionOutput(0, "", tuple(tokens), total, reason)])


def stand_in() -> ModuleType:
    """The module ``vllm``, for ``sys.modules``."""
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    module.__spec__ = object()  # what importlib.util.find_spec looks at
    return module  # type: ignore[no-any-return]
