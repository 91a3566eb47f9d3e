"""Who answers: the model in memory through transformers, or an engine of vLLM's own that reads it from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from act_lightning.checkpoints.models import load_config
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.generation import Generation, cut_at_end, end_ids, generate_answers, nan_logits

TRANSFORMERS, VLLM = "transformers", "vllm"
_OURS = ("model", "tokenizer", "generation_config", "trust_remote_code")


def generator_issues(generator: str, arguments: Mapping[str, Any]) -> list[ConfigIssue]:
    """What is wrong with the settings that choose who answers.

    Args:
        generator: ``transformers`` or ``vllm``.
        arguments: Of ``vllm.LLM``.
    """
    found, setting = [], "model.generator"
    if generator not in (TRANSFORMERS, VLLM):
        problem = f"must be one of {TRANSFORMERS}, {VLLM}"
        found.append(ConfigIssue(setting, generator, problem, "Choose one."))
    if generator == VLLM and find_spec(VLLM) is None:
        hint = "Write pip install 'act-lightning[vllm]', on Linux with a GPU, or choose transformers."
        found.append(ConfigIssue(setting, generator, "must be installed", hint))
    if arguments and generator != VLLM:
        problem = f"has no meaning where model.generator is {generator}"
        found.append(
            ConfigIssue(f"{setting}_args", dict(arguments), problem, "Leave it out, or set model.generator to vllm.")
        )
    for name in _OURS:
        if name in arguments:
            problem, hint = f"must not hold {name}, which is set for it", "Leave it out; model.target names the model."
            found.append(ConfigIssue(f"{setting}_args", arguments[name], problem, hint))
    return found


@dataclass(frozen=True)
class TransformersGenerator:
    """Answers with a model in memory.

    Attributes:
        model: A causal language model.
        tokenizer: Its tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __call__(
        self, batch: Mapping[str, Tensor], max_new_tokens: int, places: Sequence[str] = ()
    ) -> list[Generation]:
        """As :func:`~act_lightning.evaluation.generation.generate_answers`."""
        return generate_answers(self.model, self.tokenizer, batch, max_new_tokens, places)


class VLLMGenerator:
    """Answers with vLLM (https://docs.vllm.ai, its offline ``LLM``): greedily, with the same ends, from token ids.

    The model's own generation config is not read by the engine, so that sampling and penalties play no part; which
    tokens end a turn is looked up as for transformers. Outputs come back as token ids and are decoded here.

    Args:
        folder: A Hugging Face folder.
        tokenizer: The tokenizer that the prompts were made with.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        arguments: Of ``vllm.LLM``, such as ``{"tensor_parallel_size": 8}``.
        progress: Whether the engine shows its progress bar.

    Raises:
        ActError: The engine refuses the model or the arguments.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        dtype: str = "auto",
        arguments: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        from vllm import (
            LLM,
            SamplingParams,  # here, because it is an extra
        )

        self.tokenizer, self.progress, self._parameters = tokenizer, progress, SamplingParams
        self.ends = end_ids(stored_generation_config(folder), tokenizer)
        settings = {"dtype": dtype, **(arguments or {})}
        try:
            self.engine = LLM(model=str(folder), tokenizer=str(folder), generation_config=VLLM, **settings)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise _refused(f"must take this model and these arguments ({error})") from error

    def __call__(
        self, batch: Mapping[str, Tensor], max_new_tokens: int, places: Sequence[str] = ()
    ) -> list[Generation]:
        """One output a row.

        Raises:
            ActError: The engine refuses a prompt, such as one longer than its context; or the logits are NaN.
        """
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        prompts = [{"prompt_token_ids": ids[mask.bool()].tolist()} for ids, mask in rows]
        greedy = self._parameters(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=self.ends,
            logprobs=0,  # of the chosen token alone: NaN where the logits are
            detokenize=False,
        )
        try:
            answers = self.engine.generate(prompts, greedy, use_tqdm=self.progress)
        except ValueError as error:
            raise _refused(f"must take these prompts ({error})") from error
        return [self._generated(row, answer.outputs[0], places) for row, answer in enumerate(answers)]

    def _generated(self, row: int, output: Any, places: Sequence[str]) -> Generation:  # noqa: ANN401 - vLLM's
        if math.isnan(output.cumulative_logprob):
            raise nan_logits(row, places)
        found = cut_at_end(list(output.token_ids), set(self.ends), self.tokenizer)
        return found._replace(truncated=output.finish_reason == "length")


def stored_generation_config(folder: Path) -> GenerationConfig:
    """The generation config in a Hugging Face folder, or what its config says of generation."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(load_config(folder))


def _refused(problem: str) -> ActError:
    hint = "Correct model.generator_args, or set model.generator to transformers."
    return ActError(ConfigIssue("model.generator", VLLM, problem, hint))
