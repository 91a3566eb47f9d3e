"""A model's own answers, decoded greedily: by transformers from a model in memory, or by vLLM from a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from act_lightning.architecture import evaluating
from act_lightning.checkpoints.models import load_generation_config
from act_lightning.data.templates import make_template
from act_lightning.defaults import VLLM
from act_lightning.errors import ActError, ConfigIssue


class Generation(NamedTuple):
    """One output: text without special tokens, tokens before the end of the turn, whether it was cut before that."""

    text: str
    tokens: int
    truncated: bool


class Generator(Protocol):
    """Anything that answers prompts greedily."""

    def __call__(
        self, batch: Mapping[str, Tensor], max_new_tokens: int, locations: Sequence[str] = ()
    ) -> list[Generation]:
        """One output per row.

        ``batch`` holds ``input_ids`` and ``attention_mask``, int64 ``[rows, positions]``, padded on the left;
        ``locations`` say where each row comes from, for messages; by default its index in the batch.
        """


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
    locations: Sequence[str] = (),
) -> list[Generation]:
    """The answers of ``model`` to prompts, with the most likely token at every step.

    Settings of the model's generation config that would change a greedy answer (temperature, repetition penalty, beams)
    are ignored. The modes of the model's modules and its generation config are restored afterwards.
    Apart from model and tokenizer, arguments and result are those of a :class:`Generator`.

    Raises:
        ActError: A row ends in padding, so its answer would not follow its prompt; or the model's logits are NaN.
    """
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    if not bool(mask[:, -1].all()):
        raise ActError(
            ConfigIssue("attention_mask", mask.tolist(), "must be padded on the left", "Set padding_side='left'.")
        )
    ends = end_of_turn_ids(model.generation_config, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )
    original = model.generation_config
    model.generation_config = greedy  # ``generate`` takes what its argument leaves open from the model's own config
    try:
        with evaluating(model):
            sequences = cast(Any, model).generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=greedy,
                logits_processor=LogitsProcessorList([_RefuseNaN(locations)]),
            )
    finally:
        model.generation_config = original
    return [decode_turn(row, ends, tokenizer) for row in sequences[:, ids.shape[1] :].tolist()]


class _RefuseNaN(LogitsProcessor):
    """Stops a generation whose logits are NaN: their argmax would be an arbitrary token."""

    def __init__(self, locations: Sequence[str]) -> None:
        self.locations = locations

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_nan = scores.isnan().any(dim=-1)
        if bool(is_nan.any()):
            raise nan_error(int(is_nan.int().argmax()), self.locations)
        return scores


def nan_error(row: int, locations: Sequence[str] = ()) -> ActError:
    """The error of a model whose logits are NaN for a row of a batch."""
    problem = f"must give logits that are numbers, and gave NaN for {locations[row] if locations else f'row {row}'}"
    return ActError(ConfigIssue("model", "logits", problem, "Look at the weights, or evaluate in float32 or bfloat16."))


def decode_turn(tokens: Sequence[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Generation:
    """An output up to the first of the ``ends``, the tokens that end a turn; truncated if it has none of them."""
    length = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    text = tokenizer.decode(list(tokens[: length + 1]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Generation(str(text), length, truncated=length == len(tokens))


def end_of_turn_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer, sorted.

    These are the end tokens of the model's generation config, the tokenizer's, and the first special token that the
    chat template writes after an assistant's turn: fine-tuned models often end with a token that their config lacks.
    """
    configured = config.eos_token_id if config else None
    ids = {*configured} if isinstance(configured, list) else {configured}
    ids.add(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
        rendered = make_template("chat", tokenizer, "data.template").render(turns)
        after_answer = rendered.text[rendered.answers[-1][1] :]
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        tokens = tokenizer.encode(after_answer, add_special_tokens=False)
        ids.add(next((token for token in tokens if token in special), None))
    return sorted(token for token in ids if token is not None)


class VLLMGenerator:
    """Answers with vLLM (https://docs.vllm.ai, its offline ``LLM``): greedily, from token ids, with the same ends.

    The engine does not read the model's generation config, so sampling and penalties have no effect; the tokens that
    end a turn are found as for transformers. Outputs come back as token ids and are decoded here.

    Args:
        arguments: Arguments of ``vllm.LLM``, such as ``{"tensor_parallel_size": 8}``.

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
        from vllm import LLM, SamplingParams  # an optional dependency

        self.tokenizer, self.progress, self._sampling_params = tokenizer, progress, SamplingParams
        self.ends = end_of_turn_ids(load_generation_config(folder), tokenizer)
        settings = {"dtype": dtype, **(arguments or {})}
        try:
            self.engine = LLM(model=str(folder), tokenizer=str(folder), generation_config=VLLM, **settings)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise _vllm_error(f"must take this model and these arguments ({error})") from error

    def __call__(
        self, batch: Mapping[str, Tensor], max_new_tokens: int, locations: Sequence[str] = ()
    ) -> list[Generation]:
        """One output per row.

        Raises:
            ActError: The engine refuses a prompt, such as one longer than its context; or the logits are NaN.
        """
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        prompts = [{"prompt_token_ids": ids[mask.bool()].tolist()} for ids, mask in rows]
        greedy = self._sampling_params(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=self.ends,
            logprobs=0,  # of the chosen token only: NaN where the logits are
            detokenize=False,
        )
        try:
            requests = self.engine.generate(prompts, greedy, use_tqdm=self.progress)
        except ValueError as error:
            raise _vllm_error(f"must take these prompts ({error})") from error
        generations = []
        for row, request in enumerate(requests):
            output = request.outputs[0]
            if math.isnan(output.cumulative_logprob):
                raise nan_error(row, locations)
            generation = decode_turn(output.token_ids, self.ends, self.tokenizer)
            generations.append(generation._replace(truncated=output.finish_reason == "length"))
        return generations


def _vllm_error(problem: str) -> ActError:
    hint = "Correct model.generator_args, or set model.generator to transformers."
    return ActError(ConfigIssue("model.generator", VLLM, problem, hint))
