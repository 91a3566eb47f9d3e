"""Batches of samples: composed, padded, packed where the model allows it; and where answer tokens are in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Batch = dict[str, Tensor]
Packing = bool | Literal["auto"]
MAX_PADDING = 0.02
"""The share of a batch that may be padding, where samples can be grouped by length."""


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """One batch, padded on the right with ``pad_id``.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (−100 at padding), int64 ``[rows, length]``.
    """
    rows = [sample.input_ids for sample in samples]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence([sample.labels for sample in samples], batch_first=True, padding_value=IGNORED),
    }


def pack(samples: Sequence[Sample]) -> Batch:
    """One row that holds samples one after the other; positions restart where the next one begins.

    There is no attention mask: without one, transformers keeps the attention of a row whose positions restart inside
    each run of positions, by a block-diagonal mask or flash attention's lengths of sequences
    (https://huggingface.co/docs/transformers/attention_interface).

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, int64 ``[1, tokens]``.

    >>> pack([Sample(torch.tensor([5, 6, 7]), torch.tensor([-100, 6, 7]))] * 2)["position_ids"]
    tensor([[0, 1, 2, 0, 1, 2]])
    """
    return {
        "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
        "position_ids": torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])[None],
        "labels": torch.cat([sample.labels for sample in samples])[None],
    }


def unbatch(batch: Mapping[str, Tensor]) -> list[Sample]:
    """The samples in a batch: padding on either side removed, packed rows split.

    Args:
        batch: ``input_ids`` and ``labels`` ``[rows, length]``; ``attention_mask`` of the same shape where there is
            padding; ``position_ids`` of the same shape, which restart where the next sample of a packed row begins.

    Returns:
        Samples on the CPU, without text.

    Raises:
        ActError: If ids or labels are missing.
    """
    if missing := {"input_ids", "labels"} - set(batch):
        hint = "Let the loader return both, with labels of -100 everywhere but at answer tokens."
        raise ActError(ConfigIssue("batch", list(batch), f"must hold {' and '.join(sorted(missing))}", hint))
    ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
    mask = batch.get("attention_mask", torch.ones_like(ids)).cpu().bool()
    positions = batch.get("position_ids", torch.arange(ids.shape[1]).expand_as(ids)).cpu().expand_as(ids)
    samples = []
    for row_ids, row_labels, row_mask, row_positions in zip(ids, labels, mask, positions, strict=True):
        row_ids, row_labels, row_positions = row_ids[row_mask], row_labels[row_mask], row_positions[row_mask]
        restarts = 1 + (row_positions[1:] <= row_positions[:-1]).nonzero().flatten()
        for start, end in pairwise([0, *restarts.tolist(), len(row_positions)]):
            samples.append(Sample(row_ids[start:end].clone(), row_labels[start:end].clone()))
    return samples


def token_budget_batches(
    lengths: Sequence[int], budget: int, max_padding: float = 1.0, packed: bool = False
) -> list[list[int]]:
    """Group samples of similar length so that each group's tokens, padding included, stay within a budget.

    The longest come first, so that a batch that does not fit into memory fails at once.

    Args:
        lengths: Tokens of each sample.
        budget: Bound on rows × longest, or for packed rows on the sum of lengths; a single longer sample is a batch of
            its own.
        max_padding: Bound on the share of a batch that is padding.
        packed: Whether the samples of a batch are packed into one row, without padding.

    Returns:
        Indices of the samples in each batch; every sample in exactly one.

    >>> token_budget_batches([3, 9, 4, 4], budget=8)
    [[1], [2, 3], [0]]
    >>> token_budget_batches([3, 5, 4, 4], budget=12, packed=True)
    [[1, 2], [3, 0]]
    """
    batches: list[list[int]] = []
    longest, tokens = 0, 0  # of the last batch
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        total = tokens + lengths[index]
        size = total if packed else (len(batches[-1]) + 1) * longest if batches else 0
        if batches and size <= budget and total >= size * (1 - max_padding):
            batches[-1].append(index)
            tokens = total
        else:
            batches.append([index])
            longest = tokens = lengths[index]
    return batches


_MIN_BLOCK = 1 << 24  # bytes
_ALIGNMENT = 64  # bytes, a cache line


class BufferPool:
    """Memory for copies that are needed until :meth:`clear`, and then reused.

    On a CPU, freed memory returns to the kernel and comes back page by page, zeroed and faulted in, which takes a tenth
    of the time of reading a batch. The allocators of accelerators keep freed memory, so nothing is pooled there.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._block = self._used = 0

    def clear(self) -> None:
        """Invalidate all copies, whose memory is reused."""
        self._block = self._used = 0

    def select(self, values: Tensor, index: Tensor) -> Tensor:
        """A copy ``[count, …]`` of rows of ``values``, valid until :meth:`clear`.

        Args:
            values: ``[rows, …]``, without gradients.
            index: Row numbers, int64 ``[count]``.
        """
        if values.device.type != "cpu":
            return values.index_select(0, index)
        shape = (len(index), *values.shape[1:])
        size = prod(shape) * values.element_size()
        while self._block < len(self._blocks) and self._used + size > len(self._blocks[self._block]):
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(torch.empty(max(size, _MIN_BLOCK), dtype=torch.uint8))
        buffer = self._blocks[self._block][self._used : self._used + size]
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return torch.index_select(values, 0, index, out=buffer.view(values.dtype).view(shape))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The same on a device. The host does not wait for the copy; a GPU makes it from pinned memory, when it is due."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def to_host(values: Tensor) -> Tensor:
    """A copy in the host's memory, which only :func:`to_device` may read: the host does not wait until it is there."""
    return values.to("cpu", non_blocking=values.device.type == "cuda")


class AnswerPositions:
    """Where some tokens of a batch are, such as its answer tokens.

    Attributes:
        shape: The batch's: rows and length.
        index: Positions in the flattened batch, int64 ``[tokens]``.
        tokens: Their number.
    """

    def __init__(self, shape: torch.Size, index: Tensor) -> None:
        self.shape = shape
        self.index = index
        self.tokens = len(index)

    @classmethod
    def of(cls, mask: Tensor) -> AnswerPositions:
        """The positions in a bool mask ``[rows, length]``; finding them on a device waits for all that it has to do."""
        return cls(mask.shape, mask.flatten().nonzero().squeeze(1))

    def to(self, device: torch.device) -> AnswerPositions:
        """The same on a device."""
        return AnswerPositions(self.shape, to_device(self.index, device))

    def fits(self, output: Tensor) -> bool:
        """Whether a module's output has the positions of the batch's tokens, in one of the shapes of :meth:`take`."""
        rows, length = self.shape
        if output.ndim == 2:
            return len(output) > 0 and len(output) % (rows * length) == 0
        return output.shape[0] in (1, rows) and length in output.shape[1 : output.ndim - 1]

    def take(self, output: Tensor, buffers: BufferPool | None = None) -> Tensor:
        """The part of a module's output that belongs to answer tokens.

        Args:
            output: ``[rows, length, channels]``; with heads ``[rows, length, heads, channels]`` or
                ``[rows, heads, length, channels]``; flattened ``[rows · length, channels]`` or
                ``[rows · length · heads, channels]``; rows may be 1 where all rows share it (position embeddings).
            buffers: Memory for the copy.

        Returns:
            ``[tokens, channels]`` or ``[tokens, heads, channels]``; without ``buffers`` a view where every token is an
            answer token, else a copy.
        """
        rows, length = self.shape
        if output.ndim == 2:
            heads = max(1, len(output) // (rows * length))
            output = output.reshape(-1, length, heads, output.shape[-1]).squeeze(2)
        if output.ndim == 4 and output.shape[1] != length:
            output = output.transpose(1, 2)
        tokens = output.expand(rows, *output.shape[1:]).flatten(0, 1)
        if buffers is not None:
            return buffers.select(tokens, self.index)
        return tokens if self.tokens == self.shape.numel() else tokens.index_select(0, self.index)

    def take_from_input(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook for the language model's head: it computes logits ``[1, tokens, vocabulary]`` only."""
        return (self.take(args[0]).unsqueeze(0), *args[1:])


def predicting_positions(batch: Mapping[str, Any]) -> AnswerPositions:
    """Where answer tokens are predicted: each at the token before it, unless that is another sample's."""
    if "layout" in batch:
        return cast(Layout, batch["layout"]).predicting
    is_answer = batch["labels"][:, 1:] != IGNORED
    if "position_ids" in batch:
        is_answer &= batch["position_ids"][:, 1:] != 0
    return AnswerPositions.of(nn.functional.pad(is_answer, (0, 1)))


def sample_lengths(batch: Mapping[str, Any]) -> Tensor:
    """Tokens of each sample of a batch, padded or packed, int64 ``[samples]``.

    >>> sample_lengths({"input_ids": torch.ones(1, 5), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}).tolist()
    [3, 2]
    """
    if "layout" in batch:
        return cast(Layout, batch["layout"]).lengths
    if "position_ids" in batch:
        starts = (batch["position_ids"].flatten() == 0).nonzero().flatten()
        return torch.diff(starts, append=starts.new_tensor([batch["position_ids"].numel()]))
    mask: Tensor = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return mask.sum(1)


class Layout:
    """What the host must know of a batch that is on a device, which it would have to wait for to ask.

    Attributes:
        predicting: Where answer tokens are predicted, on the device.
        lengths: Tokens of each sample, int64 ``[samples]``, on the host.
    """

    def __init__(self, predicting: AnswerPositions, lengths: Tensor) -> None:
        self.predicting = predicting
        self.lengths = lengths

    def to(self, device: torch.device) -> Layout:
        """The same for a batch on a device."""
        return Layout(self.predicting.to(device), self.lengths)


def drop_implied(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without an ``attention_mask`` that hides nothing, and without ``position_ids`` that restart nowhere."""
    kept, mask, positions = dict(batch), batch.get("attention_mask"), batch.get("position_ids")
    if mask is not None and bool(mask.all()):
        del kept["attention_mask"]
    if positions is not None and bool((positions == torch.arange(positions.shape[-1], device=positions.device)).all()):
        del kept["position_ids"]
    return kept


def batch_to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A labeled batch of the host on a device, without what is implied, and with its :class:`Layout` as ``layout``."""
    kept = drop_implied(batch)
    kept["layout"] = Layout(predicting_positions(kept), sample_lengths(kept)).to(device)
    return {name: to_device(value, device) if isinstance(value, Tensor) else value for name, value in kept.items()}


@contextmanager
def known_masks(batch: Mapping[str, object]) -> Iterator[None]:
    """Have models build the same attention masks of a batch without asking the device, for which the host would wait.

    transformers asks in every forward pass whether the mask hides anything, and whether positions restart. In a batch
    that :func:`drop_implied` has seen, they do if they are there.
    """
    from transformers import masking_utils  # takes seconds

    def hides_nothing(padding_mask: Tensor | None, *args: Any, **kwargs: Any) -> bool:
        return padding_mask is None and before["_ignore_causal_mask_sdpa"](padding_mask, *args, **kwargs)

    def sample_numbers(positions: Tensor) -> Tensor | None:
        if "position_ids" not in batch:
            return None
        return (torch.diff(positions, prepend=positions[:, :1] - 1) != 1).cumsum(-1)

    known = {"_ignore_causal_mask_sdpa": hides_nothing, "find_packed_sequence_indices": sample_numbers}
    before: dict[str, Any] = {name: getattr(masking_utils, name) for name in known if hasattr(masking_utils, name)}
    try:
        for name in before:  # without one of them, as another version may be, its question is asked
            setattr(masking_utils, name, known[name])
        yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)


def normalize_batch(batch: Mapping[str, Tensor], config: object) -> Mapping[str, Tensor]:
    """Pad a batch whose length equals a number of heads by one column.

    Otherwise ``[rows, heads, length, channels]`` could be taken for ``[rows, length, heads, channels]``.

    Args:
        batch: ``input_ids``, ``labels`` and so on, ``[rows, length]``.
        config: The config of the model.
    """
    heads = {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    while batch["input_ids"].shape[1] in heads:
        # Zeros are padding, and in packed rows a sample of its own.
        fill = {"labels": IGNORED}
        batch = {name: nn.functional.pad(values, (0, 1), value=fill.get(name, 0)) for name, values in batch.items()}
    return batch


_VOCABULARY = 64
_MAX_LAYERS = 8  # of a config that does not list its types of layers
_HEADS = 2
_WIDTH = 64
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_MAX_PARAMETERS = 2**26
_LENGTHS = (11, 7, 1, 5)
_TOLERANCE = 1.0e-3  # of the largest logit; rounding makes 1e-6 of it, another sample's tokens 1e-1


def should_pack(packing: Packing, config: PretrainedConfig, by_length: bool) -> bool:
    """Whether rows of several samples are packed rather than padded; ``auto`` packs where that saves work.

    Where batches hold samples of similar length (``by_length``), padding is less work than the attention of a packed
    row, which without flash attention is computed between samples, too, and masked.

    Raises:
        ActError: If packing is required of a model that does not keep samples apart.
    """
    has_flash_attention = "flash" in str(config._attn_implementation)
    if packing is False or (packing == "auto" and by_length and not has_flash_attention):
        return False
    obstacle = packing_obstacle(config)
    if obstacle is None:
        return True
    if packing is True:
        hint = "Write auto, which pads the rows of such a model."
        raise ActError(ConfigIssue("data.packing", True, f"must be left to a model that can: {obstacle}", hint))
    rank_zero_info(f"rows are padded, not packed: {obstacle}")
    return False


def packing_obstacle(config: PretrainedConfig) -> str | None:
    """Why a model must not read packed rows, or ``None`` if it keeps their samples apart.

    Most models of transformers mask attention between samples when positions restart. Some have no positions to restart
    (ALiBi in MPT and Bloom), number tokens themselves (OPT), or carry a state from token to token (Mamba). Only a trial
    can tell: a few layers of the architecture with random weights read samples packed and alone, on the CPU and in
    float32. Flash attention, which needs a GPU, is computed by :func:`_flash_attention` then. The global random state
    is restored.
    """
    name, attention = config.model_type, str(config._attn_implementation)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = _small_model(_small_config(config))
            if "flash" in attention:
                name += f" with {attention}"
                with _flash_attention_on_cpu(model, attention):
                    difference = _packing_difference(model)
            else:
                difference = _packing_difference(model)
    except Exception as error:  # whatever a model's code raises at sizes it was not made for
        return f"{name} could not be tried in small ({type(error).__name__}: {str(error).splitlines()[:1]})"
    if difference > _TOLERANCE:
        return f"{name} does not keep the samples of a packed row apart"
    return None


def _small_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture with two heads of the same size, and one layer of each type."""
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    layer_types = list(dict.fromkeys(getattr(config, "layer_types", None) or []))
    sizes = {
        "vocab_size": _VOCABULARY,
        "layer_types": layer_types,
        "num_hidden_layers": len(layer_types) or min(_MAX_LAYERS, config.num_hidden_layers),
        "hidden_size": _HEADS * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        "num_attention_heads": _HEADS,
        "num_key_value_heads": max(1, _HEADS * key_value_heads // heads),
        **dict.fromkeys(_WIDTHS, _WIDTH),
        **dict.fromkeys(_TOKEN_IDS, 0),
    }
    small = copy.deepcopy(config)
    small._attn_implementation = None if "flash" in str(config._attn_implementation) else config._attn_implementation
    for name, value in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(small, name, value)
    return small


def _small_model(config: PretrainedConfig) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM  # takes seconds

    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if sum(parameter.numel() for parameter in shapes.parameters()) > _MAX_PARAMETERS:
        raise ValueError("still too large")
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.eval().parameters():  # keep activations near 1, so that attention looks at every token
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model


@contextmanager
def _flash_attention_on_cpu(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Have a model take :func:`_flash_attention` for the attention of that name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # takes seconds

    model.config._attn_implementation = attention
    ALL_ATTENTION_FUNCTIONS[attention] = _flash_attention  # of this mapping only, before transformers' own
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[attention]


def _flash_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, Tensor | None]:
    """What transformers' flash attention may look at; windows, caps and sinks, which only narrow it, are left out.

    A token sees those before it, in its own sample if the model has passed on where samples begin: by ``position_ids``
    or ``cu_seq_lens_q``, and without ``attention_mask``, which transformers prefers to both.

    Args:
        module: The attention's module.
        query: ``[1, heads, tokens, features]``; so are ``key`` and ``value``, of a divisor of the heads.
        key: See ``query``.
        value: See ``query``.
        attention_mask: Tokens that are no padding, bool ``[1, tokens]``.
        scaling: Factor of the scores.
        position_ids: Positions of tokens, int64 ``[1, tokens]``.
        cu_seq_lens_q: Where samples begin, and the number of tokens, int ``[samples + 1]``.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tokens = query.shape[2]
    begins = torch.zeros(tokens, dtype=torch.int64)
    if attention_mask is None and cu_seq_lens_q is not None:
        begins[cu_seq_lens_q[:-1].long()] = 1
    elif attention_mask is None and position_ids is not None and position_ids.numel() == tokens:
        begins = (position_ids.flatten() == 0).long()
    sample = begins.cumsum(0)
    visible = (sample[:, None] == sample[None]).tril()[None, None]
    output: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, visible, scaling=scaling, is_causal=False
    )
    return output


def _packing_difference(model: PreTrainedModel) -> float:
    """The largest difference between logits of samples packed and alone, as a share of the largest logit."""

    def logits(ids: Tensor, **inputs: Tensor) -> Tensor:
        values: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
        return values

    generator = torch.Generator().manual_seed(1)
    samples = [torch.randint(1, _VOCABULARY, (1, length), generator=generator) for length in _LENGTHS]
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None]
    with torch.no_grad():
        alone = torch.cat([logits(sample) for sample in samples], 1)
        packed = logits(torch.cat(samples, 1), position_ids=positions)
    return float((packed - alone).abs().max() / alone.abs().max())
