"""A model's own answers, decoded greedily: with transformers from a model in memory, or by vLLM from a folder."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from act_lightning.architecture import evaluating
from act_lightning.checkpoints.models import load_generation_config
from act_lightning.data.batches import token_budget_batches
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
    tokens_per_batch: int | None = None,
) -> list[Generation]:
    """The answers of ``model`` to prompts, with the most likely token at every step.

    Settings of the model's generation config that would change a greedy answer (temperature, repetition penalty, beams)
    are ignored. The modes of the model's modules and its generation config are restored afterwards.
    Apart from model, tokenizer and ``tokens_per_batch``, arguments and result are those of a :class:`Generator`.

    Args:
        model: Decoder-only. One whose cache holds nothing but keys and values decodes all rows of the batch together,
            and others take the places of rows that have ended; any other, and one that is sharded, leaves a part of the
            batch at a time to transformers, until the last row has ended.
        tokenizer: The model's.
        batch: See :class:`Generator`.
        max_new_tokens: See :class:`Generator`.
        locations: See :class:`Generator`.
        tokens_per_batch: Bound on rows × length of what the model reads at once; also of the keys and values of all
            tokens, those to be generated with them, unless these take less than 256 MiB. By default there is none.

    Raises:
        ActError: A row ends in padding, so its answer would not follow its prompt; or the model's logits are NaN.
    """
    mask = batch["attention_mask"].cpu().bool()
    if not bool(mask[:, -1].all()):
        raise ActError(
            ConfigIssue("attention_mask", mask.tolist(), "must be padded on the left", "Set padding_side='left'.")
        )
    ends = end_of_turn_ids(model.generation_config, tokenizer)
    prompts = [ids[of_prompt] for ids, of_prompt in zip(batch["input_ids"].cpu(), mask, strict=True)]
    budget = sys.maxsize if tokens_per_batch is None else tokens_per_batch
    with evaluating(model):
        if _has_plain_cache(model) and not is_sharded(model):
            answers = _Decoder(model, prompts, max_new_tokens, ends, budget, locations).run()
        else:
            answers = _generate(model, prompts, max_new_tokens, ends, tokenizer.pad_token_id, budget, locations)
    return [decode_turn(answer, ends, tokenizer) for answer in answers]


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether all processes must call the model equally often, because each holds only a part of it."""
    managed = getattr(model, "_is_fsdp_managed_module", False) or is_deepspeed_zero3_enabled()
    return bool(managed) or any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether the cache is transformers' own and holds keys and values only, so that rows can come and go."""
    cls = type(model)
    as_usual = cls.prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation  # type: ignore[attr-defined]
    if not as_usual or not cls.__module__.startswith("transformers.") or model.config.is_encoder_decoder:
        return False
    parameters = inspect.signature(model.forward).parameters
    if not {"attention_mask", "past_key_values", "position_ids", "logits_to_keep"} <= {*parameters}:
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    ends: Sequence[int],
    pad: int | None,
    tokens_per_batch: int,
    locations: Sequence[str],
) -> list[list[int]]:
    """The answers as transformers generates them, as token ids, each followed by whatever fills its row."""
    if pad is None:
        pad = ends[0] if ends else 0
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=list(ends) or None, pad_token_id=pad
    )
    answers: list[list[int]] = [[] for _ in prompts]
    original = model.generation_config
    model.generation_config = greedy  # ``generate`` takes what its argument leaves open from the model's own config
    try:
        for rows in token_budget_batches([len(prompt) + max_new_tokens for prompt in prompts], tokens_per_batch):
            ids, mask = _padded([prompts[row] for row in rows], pad)
            sequences = cast(Any, model).generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=greedy,
                logits_processor=LogitsProcessorList([_RefuseNaN(rows, locations)]),
            )
            for row, answer in zip(rows, sequences[:, ids.shape[1] :].tolist(), strict=True):
                answers[row] = answer
    finally:
        model.generation_config = original
    return answers


def _padded(prompts: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 ``[rows, columns]``, padded on the left."""
    ids = pad_sequence(list(prompts), batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True, padding_side="left")
    return ids, mask


class _RefuseNaN(LogitsProcessor):
    """Stops a generation whose logits are NaN: their argmax would be an arbitrary token."""

    def __init__(self, rows: Sequence[int], locations: Sequence[str]) -> None:
        self.rows = rows
        self.locations = locations

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_nan = scores.isnan().any(dim=-1)
        if bool(is_nan.any()):
            raise nan_error(self.rows[int(is_nan.int().argmax())], self.locations)
        return scores


_ROOM = 32  # columns
_KEYS_AND_VALUES = 1 << 28  # bytes that they may always take
_STEPS = 8  # tokens between two looks at an accelerator, which would wait for each; those after an end are dropped


class _Layer(DynamicLayer):
    """Keys and values of a layer, in memory with room for more tokens; transformers' own are copied for every token.

    Layers whose attention is local keep all of them, too; their masks say what they see.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Masks are then made without looking for padding, for which the host would wait.
        self.is_compileable = device.type != "cpu"
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values ``[rows, heads, columns, features]``, those of new tokens added."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        start, new = self.keys.shape[2], key_states.shape[2]
        if not self._buffers or start + new > self._buffers[0].shape[2]:
            self._buffers = [_aligned([states], start, new + _ROOM) for states in (self.keys, self.values)]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : start + new] = states
        self.keys, self.values = (buffer[:, :, : start + new] for buffer in self._buffers)
        return self.keys, self.values

    def select(self, rows: Tensor, first_column: int) -> None:
        """Keep some rows, from a column on."""
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows, :, first_column:], self.values[rows, :, first_column:]
        self._buffers = []

    def append(self, other: _Layer, columns: int) -> None:
        """Add the rows of another cache; all then end in the last of ``columns``."""
        pairs = ((self.keys, other.keys), (self.values, other.values))
        self._buffers = [_aligned(pair, columns, _ROOM) for pair in pairs]
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)


def _aligned(parts: Sequence[Tensor], columns: int, room: int) -> Tensor:
    """The rows of ``[rows, heads, any, features]`` below each other, all ending in the last column before ``room``."""
    _, heads, _, features = parts[0].shape
    buffer = parts[0].new_empty(sum(map(len, parts)), heads, columns + room, features)
    for part, rows in zip(parts, buffer.split([len(part) for part in parts]), strict=True):
        rows[:, :, : columns - part.shape[2]] = 0  # no token sees them, but zero times NaN is NaN
        rows[:, :, columns - part.shape[2] : columns] = part
    return buffer


class _Rows:
    """Rows that the model is answering.

    Attributes:
        numbers: Which of all rows they are.
        mask: Columns of the cache that a row sees, and that of its last token, int64 ``[rows, columns + 1]``.
        tokens: The last token of each, which the model has not read, int64 ``[rows, 1]``.
    """

    def __init__(self, model: PreTrainedModel, numbers: Sequence[int], prompts: Sequence[Tensor]) -> None:
        ids, mask = (values.to(model.device) for values in _padded(prompts, 0))
        self.numbers = list(numbers)
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self.layers = [_Layer(model.device) for _ in self._cache.layers]
        self._cache.layers[:] = self.layers
        self.mask, self.tokens = mask, ids
        self._positions = (mask.cumsum(1) - 1).clamp(min=0)
        self._is_padded = len({*map(len, prompts)}) > 1

    @property
    def columns(self) -> int:
        """How many columns the keys and values of earlier tokens take."""
        return self.mask.shape[1] - 1

    @property
    def bytes_per_token(self) -> int:
        """Size of the keys and values of a token in all layers."""
        size = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
        return size // (len(self.mask) * self.columns)

    def step(self) -> Tensor:
        """The next token of each row, −1 where the logits are NaN, int64 ``[rows]``."""
        output = cast(Any, self._model)(
            input_ids=self.tokens,
            attention_mask=self.mask if self._is_padded else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        self.tokens = logits.argmax(-1, keepdim=True)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        is_nan = logits.gather(1, self.tokens).isnan()  # which argmax takes for the largest
        return self.tokens.masked_fill(is_nan, -1).squeeze(1)

    def select(self, numbers: Sequence[int], columns: int) -> None:
        """Keep some rows, and the last columns."""
        places = {number: place for place, number in enumerate(self.numbers)}
        rows = torch.tensor([places[number] for number in numbers], device=self.tokens.device)
        first = self.columns - columns
        for layer in self.layers:
            layer.select(rows, first)
        self.numbers, self.mask, self.tokens = list(numbers), self.mask[rows, first:], self.tokens[rows]
        self._positions = self._positions[rows]

    def append(self, other: _Rows) -> None:
        """Add other rows."""
        columns = max(self.columns, other.columns)
        for layer, of_other in zip(self.layers, other.layers, strict=True):
            layer.append(of_other, columns)
        masks = [F.pad(rows.mask, (columns - rows.columns, 0)) for rows in (self, other)]
        self.numbers, self.mask, self._is_padded = self.numbers + other.numbers, torch.cat(masks), True
        self.tokens = torch.cat([self.tokens, other.tokens])
        self._positions = torch.cat([self._positions, other._positions])


class _Decoder:
    """Greedy decoding of many rows, of which as many are in memory as ``tokens_per_batch`` allows.

    Rows that have ended leave, and when half of the places are free, others take them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Tensor],
        max_new_tokens: int,
        ends: Sequence[int],
        tokens_per_batch: int,
        locations: Sequence[str],
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.max_new_tokens = max_new_tokens
        self.ends = {*ends}
        self.tokens_per_batch = self.tokens_in_memory = tokens_per_batch
        self.locations = locations
        self.steps = 1 if model.device.type == "cpu" else _STEPS

    def run(self) -> list[list[int]]:
        """The answers as token ids, each up to its end."""
        waiting = sorted(range(len(self.prompts)), key=lambda row: -len(self.prompts[row]))
        rows: _Rows | None = None
        while waiting or rows is not None:
            rows = self._admit(waiting, rows)
            if rows is not None:
                left = self.max_new_tokens - max(len(self.answers[row]) for row in self._unfinished(rows))
                self._read(rows, [rows.step() for _ in range(min(self.steps, left))])
                rows = self._drop_ended(rows)
        return self.answers

    def _admit(self, waiting: list[int], rows: _Rows | None) -> _Rows | None:
        """Let the model read prompts that are waiting, once at least half of the places are free."""
        if not waiting:
            return rows
        if rows is not None and 2 * len(self._unfinished(rows)) > self._places([*rows.numbers, waiting[0]]):
            return rows
        rows = None if rows is None else self._drop_ended(rows, all_of_them=True)
        while waiting:
            numbers = [] if rows is None else rows.numbers
            free = self._places([*numbers, waiting[0]]) - len(numbers)
            if free <= 0:
                break
            count = max(1, min(free, self.tokens_per_batch // len(self.prompts[waiting[0]])))
            numbers, waiting[:count] = waiting[:count], []
            started = _Rows(self.model, numbers, [self.prompts[number] for number in numbers])
            self._read(started, [started.step()])
            self.tokens_in_memory = max(self.tokens_per_batch, _KEYS_AND_VALUES // started.bytes_per_token)
            new = self._drop_ended(started, all_of_them=True)
            if rows is not None and new is not None:
                rows.append(new)
            rows = rows or new
        return rows

    def _places(self, rows: Sequence[int]) -> int:
        """How many rows like these may be in memory."""
        return max(1, self.tokens_in_memory // self._most_columns(rows))

    def _most_columns(self, rows: Sequence[int]) -> int:
        return max(len(self.prompts[row]) for row in rows) + self.max_new_tokens

    def _read(self, rows: _Rows, steps: Sequence[Tensor]) -> None:
        """Add tokens to answers that have not ended."""
        bad = []
        for row, tokens in zip(rows.numbers, torch.stack(list(steps), dim=1).tolist(), strict=True):
            for token in tokens:
                if self._has_ended(row):
                    break
                bad += [row] if token < 0 else []
                self.answers[row].append(token)
        if bad:
            raise nan_error(min(bad), self.locations)

    def _has_ended(self, row: int) -> bool:
        answer = self.answers[row]
        return bool(answer) and (answer[-1] in self.ends or len(answer) == self.max_new_tokens)

    def _unfinished(self, rows: _Rows) -> list[int]:
        return [row for row in rows.numbers if not self._has_ended(row)]

    def _drop_ended(self, rows: _Rows, all_of_them: bool = False) -> _Rows | None:
        """The rows that go on; a few that have ended may stay with them, because leaving copies those that stay."""
        unfinished = self._unfinished(rows)
        ended = len(rows.numbers) - len(unfinished)
        if not unfinished:
            return None
        wide = rows.columns >= self._most_columns(rows.numbers)
        if ended and (all_of_them or wide or 8 * ended >= len(rows.numbers)):
            rows.select(unfinished, max(len(self.prompts[row]) + len(self.answers[row]) - 1 for row in unfinished))
        return rows


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
