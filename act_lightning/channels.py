"""What a channel is: the slice of parameters that an output dimension of a module owns.

A channel is one output dimension of one module that owns parameters (paper §3.1, https://arxiv.org/abs/2601.09398).

==================== =============================== =========================================
module               channel ``i`` is                parameters that move with it
==================== =============================== =========================================
``nn.Linear``        output feature ``i``            ``weight[i, :]``, ``bias[i]``
norm                 feature ``i``                   ``weight[i]``, ``bias[i]``
norm of each head    feature ``j`` of head ``h``     ``weight[h, j]``
``nn.Embedding``     embedding feature ``i``         ``weight[:, i]``
``Conv1D``           output feature ``i``            ``weight[:, i]``, ``bias[i]``
convolution          output channel ``i``            ``weight[i]``, ``bias[i]``
router               expert ``i``'s logit            ``weight[i, :]``, biases ``[i]``
packed experts       output feature ``j`` of expert  ``[e, j, :]``, or ``[e, :, j]`` where inputs
                     ``e``, number ``e · out + j``   come first; of a bias ``[e, j]``
==================== =============================== =========================================

A language model's head is a ``Linear`` whose channels are the entries of the vocabulary. Packed experts are parameters
with an expert's matrix at each index; each such parameter counts as a module of its name. Parameters that are no
module's output (scalars of attention sinks and recurrent layers, the towers of other modalities) have no channel.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from act_lightning.errors import ActError, ConfigIssue, summarize_names

_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # the 8-bit floats are quantized weights
_PACKED_DTYPES = (torch.int32, torch.uint8, torch.int8)
_WRAPPED = ("base_layer", "original_module")  # the child in which PEFT's wrappers keep the layer that they adapt
_INPUTS_FIRST = {
    "Llama4TextExperts": True,
    "LongcatFlashExperts": False,
    "JetMoeParallelExperts": False,
    "InklingSharedExperts": False,
}
"""Whether matrices of packed experts are ``[in, out]``, of those classes that do not say so themselves."""
_TOWERS = ("embed_tokens_extend", "image_encoder", "visual_projection")  # of other modalities, inside a text's model


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """A parameter's shape as a matrix: all dimensions but the last are rows; a vector has one column.

    >>> matrix_shape(torch.Size([8, 6, 4])), matrix_shape(torch.Size([5]))
    ((48, 4), (5, 1))
    """
    return (shape[:-1].numel(), shape[-1]) if len(shape) > 1 else (shape.numel(), 1)


def as_matrix(values: Tensor) -> Tensor:
    """A view of a parameter, or of some of its first dimension, as :func:`matrix_shape` says; vectors stay vectors."""
    return values.view(matrix_shape(values.shape)) if values.ndim > 1 else values.view(-1)


@dataclass(frozen=True)
class OwnedParameter:
    """A parameter whose slices belong to the channels of one module, seen as a matrix (:func:`matrix_shape`).

    Attributes:
        name: Full name of the parameter; of a tied parameter, the first of its names.
        dim: The dimension that counts channels: 0 where a channel owns a row, or several that follow one another; 1
            where it owns a column.
        groups: Where a channel owns part of a column: the number of groups of consecutive rows, each with channels of
            its own, those of the first group first. Packed experts ``[expert, in, out]`` have a group for each expert.
    """

    name: str
    dim: int
    groups: int = 1


@dataclass(frozen=True)
class ModuleChannels:
    """The channels of one module.

    Attributes:
        name: Full name of the module, as in ``model.named_modules()``; of packed experts, that of the parameter.
        count: Number of channels.
        owned: The parameters that are sliced by these channels.
        experts: Number of experts that are packed in the parameter, each with as many of the channels; else 0.
    """

    name: str
    count: int
    owned: tuple[OwnedParameter, ...]
    experts: int = 0


@dataclass(frozen=True)
class ElementSelection:
    """The elements of one parameter that a mask selects: those in a selected row or in a selected column.

    The parameter is seen as a matrix ``[height, width]`` (:func:`matrix_shape`).

    Attributes:
        rows: Bool ``[height]``, or ``None`` where no module slices this parameter by rows.
        columns: Bool ``[groups, width]``, the columns of each group of ``height / groups`` consecutive rows, or
            ``None`` where no module slices it by columns.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None

    def count(self, shape: torch.Size) -> int:
        """Number of distinct elements selected in a parameter of ``shape``; an overlap counts once."""
        height, width = matrix_shape(shape)
        groups = 1 if self.columns is None else len(self.columns)
        rows = torch.zeros(groups, dtype=torch.int64) if self.rows is None else self.rows.view(groups, -1).sum(1)
        columns = torch.zeros(groups, dtype=torch.int64) if self.columns is None else self.columns.sum(1)
        return int((rows * width + columns * (height // groups) - rows * columns).sum())

    def expand(self, shape: torch.Size) -> Tensor:
        """The selection as a bool tensor of ``shape``."""
        height, width = matrix_shape(shape)
        full = torch.zeros(height, width, dtype=torch.bool)
        if self.rows is not None:
            full[self.rows] = True
        if self.columns is not None:
            full |= self.columns.repeat_interleave(height // len(self.columns), 0)
        return full.view(shape)

    def touched_rows(self, height: int) -> Tensor:
        """Numbers of the rows of which at least one element is selected, ascending int64."""
        touched = torch.zeros(height, dtype=torch.bool) if self.rows is None else self.rows
        if self.columns is not None:
            touched = touched | self.columns.any(1).repeat_interleave(height // len(self.columns))
        return touched.nonzero().squeeze(1)

    def union(self, other: ElementSelection) -> ElementSelection:
        """The elements that either selects."""
        rows = [part for part in (self.rows, other.rows) if part is not None]
        columns = [part for part in (self.columns, other.columns) if part is not None]
        return ElementSelection(
            torch.stack(rows).any(0) if rows else None, torch.stack(columns).any(0) if columns else None
        )

    def __bool__(self) -> bool:
        """Whether anything is selected."""
        return any(part is not None and bool(part.any()) for part in (self.rows, self.columns))


def add_to_channels(sums: Tensor, owned: OwnedParameter, shape: torch.Size, first_row: int, values: Tensor) -> None:
    """Add a value for each element of consecutive rows of a parameter to the sums of the channels that own them.

    Args:
        sums: float64 ``[channels]`` of one module, changed in place.
        owned: The parameter.
        shape: Its shape.
        first_row: The number of the first of these rows, of the parameter seen as a matrix.
        values: ``[rows, width]``, any floating dtype and device; of a vector ``[rows]``.
    """
    height, values = matrix_shape(shape)[0], values.reshape(len(values), -1)
    if owned.dim == 0:
        totals, per_channel = values.sum(1, dtype=torch.float64).to(sums.device), height // len(sums)
        if per_channel == 1:
            sums[first_row : first_row + len(values)] += totals
        else:
            rows = torch.arange(first_row, first_row + len(values), device=sums.device)
            sums.index_add_(0, rows // per_channel, totals)
        return
    table, per_group = sums.view(owned.groups, -1), height // owned.groups
    for group in range(first_row // per_group, (first_row + len(values) - 1) // per_group + 1):
        part = values[max(0, group * per_group - first_row) : (group + 1) * per_group - first_row]
        table[group] += part.sum(0, dtype=torch.float64).to(sums.device)


@dataclass(frozen=True)
class ChannelInventory:
    """All channels of a model, numbered in the order of ``model.named_modules()``.

    Attributes:
        modules: The modules that own channels, in order.
        shapes: Shape of every parameter, by its first name.
        aliases: First name of every parameter, by each of its names (tied parameters have several).
        unowned: First names of the parameters without a channel, in order: they move only with ``selection: all``.
    """

    modules: tuple[ModuleChannels, ...]
    shapes: Mapping[str, torch.Size]
    aliases: Mapping[str, str]
    unowned: tuple[str, ...] = ()

    @cached_property
    def total(self) -> int:
        """Number of channels."""
        return sum(module.count for module in self.modules)

    @cached_property
    def parameters(self) -> int:
        """Number of distinct parameter elements."""
        return sum(shape.numel() for shape in self.shapes.values())

    def unowned_by_kind(self) -> dict[str, int]:
        """Number of elements of the parameters without a channel, by name with ``*`` for numbers of layers.

        >>> shapes = {"h.0.D": torch.Size([3]), "h.1.D": torch.Size([3])}
        >>> ChannelInventory((), shapes, {}, ("h.0.D", "h.1.D")).unowned_by_kind()
        {'h.*.D': 6}
        """
        kinds: Counter[str] = Counter()
        for name in self.unowned:
            kinds[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)] += self.shapes[name].numel()
        return dict(kinds)

    def spans(self) -> Iterator[tuple[ModuleChannels, slice]]:
        """Each module with the slice of its channel numbers."""
        start = 0
        for module in self.modules:
            yield module, slice(start, start + module.count)
            start += module.count

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """One value per channel, ``[total]``, as a tensor ``[count]`` per module name."""
        return {module.name: flat[span] for module, span in self.spans()}

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """A tensor ``[count]`` per module name as one value per channel, ``[total]``: the inverse of ``split``."""
        return torch.cat([values[module.name].reshape(module.count) for module in self.modules])

    def sizes(self) -> Tensor:
        """Number of parameter elements that each channel owns, int64 ``[total]``."""
        per_module = [sum(self.shapes[p.name].numel() // module.count for p in module.owned) for module in self.modules]
        counts = torch.tensor([module.count for module in self.modules])
        return torch.repeat_interleave(torch.tensor(per_module), counts)

    def elements(self, mask: Tensor, whole: Collection[str] = ()) -> dict[str, ElementSelection]:
        """The elements that move when the channels of ``mask`` move.

        Args:
            mask: Bool ``[total]``.
            whole: First names of parameters without a channel that move as well, as a whole.

        Returns:
            A selection for each parameter (by first name) of which at least one element is selected. Of a tied
            matrix, rows come from the head and columns from the embedding.
        """
        selections: dict[str, ElementSelection] = {}
        for module, span in self.spans():
            part = mask[span]
            if not part.any():
                continue
            for parameter in module.owned:
                height, width = matrix_shape(self.shapes[parameter.name])
                if parameter.dim == 0:
                    selection = ElementSelection(rows=part.repeat_interleave(height // module.count))
                else:
                    selection = ElementSelection(columns=part.view(parameter.groups, width))
                selections[parameter.name] = selections.get(parameter.name, ElementSelection()).union(selection)
        for name in whole:
            selections[name] = ElementSelection(rows=torch.ones(matrix_shape(self.shapes[name])[0], dtype=torch.bool))
        return selections

    def count_elements(self, mask: Tensor, whole: Collection[str] = ()) -> int:
        """Number of distinct parameter elements that move, with arguments as of :meth:`elements`."""
        return sum(selection.count(self.shapes[name]) for name, selection in self.elements(mask, whole).items())


def inventory(model: nn.Module) -> ChannelInventory:
    """List the channels of a decoder; a model on the meta device is enough.

    Args:
        model: A causal language model. Modules that are not the text's, such as a tower for images, have no channels.

    Returns:
        Its channels, in the order of ``model.named_modules()``.

    Raises:
        ActError: If weights are not the model's own floating-point parameters (adapters, quantized weights), or it
            packs experts in a way that is not known.

    >>> net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 6), nn.LayerNorm(6))
    >>> inventory(net).total
    16
    """
    first_names: dict[int, str] = {}
    aliases = {
        name: first_names.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    modules: list[ModuleChannels] = []
    foreign, unknown = _foreign_weights(model), list[str]()
    others = other_modalities(model)
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        full_names = {leaf: f"{name}.{leaf}" if name else leaf for leaf in parameters}
        foreign += [full_names[leaf] for leaf, values in parameters.items() if values.dtype not in _WEIGHT_DTYPES]
        if not parameters or f"{name}.".startswith(others):
            continue
        if packed := _packed_experts(module, parameters):
            unknown += [] if _inputs_first(module) is not None else [full_names[leaf] for leaf in packed]
            modules += [_expert_channels(module, full_names, leaf, parameters) for leaf in packed]
        elif owned := _owned(module, parameters):
            named = (OwnedParameter(aliases[full_names[leaf]], *place) for leaf, place in owned.items())
            modules.append(ModuleChannels(name, _channel_count(module, parameters), tuple(named)))
    if foreign:
        raise ActError(_weights_issue(model, foreign, "must keep its own weights in floating-point parameters, unlike"))
    if unknown:
        raise ActError(_weights_issue(model, unknown, "must pack experts in a layout that is known, unlike"))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    with_channel = {owned.name for module in modules for owned in module.owned}
    return ChannelInventory(tuple(modules), shapes, aliases, tuple(name for name in shapes if name not in with_channel))


def _weights_issue(model: nn.Module, weights: list[str], problem: str) -> ConfigIssue:
    names = summarize_names(list(dict.fromkeys(weights)))
    hint = "Merge adapters into the weights, load the model without quantization, or choose another decoder."
    return ConfigIssue("model", type(model).__name__, f"{problem} {names}", hint)


def _owned(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[int, int]]:
    """``dim`` and ``groups`` of those parameters of a module that its channels own; empty if it has no channels."""
    weight, kind = parameters.get("weight"), type(module).__name__.lower()
    if weight is None:
        return {}
    biases = {leaf: values for leaf, values in parameters.items() if leaf == "bias" or leaf.endswith("correction_bias")}
    by_columns = isinstance(module, nn.Embedding) or (kind == "conv1d" and not isinstance(module, nn.Conv1d))
    by_rows = (
        isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        or ("norm" in kind and weight.ndim == 1)
        or ("router" in kind and weight.ndim == 2)
    )
    if by_columns and weight.ndim == 2:
        owned = {"weight": (1, 1)}
    elif by_rows and weight.ndim:
        owned = {"weight": (0, 1)}
    elif "norm" in kind and weight.ndim == 2:  # of each head
        owned = {"weight": (1, len(weight))}
    else:
        return {}
    count = _channel_count(module, parameters)
    return owned | {leaf: (0, 1) for leaf, values in biases.items() if values.shape == (count,)}


def _channel_count(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> int:
    """The number of channels of a module that is not packed experts."""
    weight = parameters["weight"]
    if isinstance(module, nn.Embedding) or (type(module).__name__ == "Conv1D"):
        return weight.shape[1]
    return weight.numel() if "norm" in type(module).__name__.lower() else len(weight)


def _packed_experts(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Those parameters of a module that hold a matrix for each expert; none of modules that are not experts."""
    kind = type(module).__name__.lower()
    if "expert" not in kind or isinstance(module, nn.Linear):
        return []
    flattened = "experts" not in kind  # all experts' matrices in one, of which nothing says where they end
    return [leaf for leaf, values in parameters.items() if values.ndim == 3 or (flattened and values.ndim == 2)]


def _inputs_first(module: nn.Module) -> bool | None:
    """Whether the matrices of packed experts are ``[in, out]``; ``None`` if nothing says so."""
    said: bool | None = getattr(module, "is_transposed", _INPUTS_FIRST.get(type(module).__name__))
    return said


def _expert_channels(
    module: nn.Module, full_names: Mapping[str, str], leaf: str, parameters: Mapping[str, nn.Parameter]
) -> ModuleChannels:
    """The channels of one parameter of packed experts, which has a bias of its name, if any."""
    experts, *matrix = parameters[leaf].shape
    inputs_first, bias = _inputs_first(module), f"{leaf}_bias"
    outputs = matrix[1 if inputs_first else 0]
    owned = [OwnedParameter(full_names[leaf], 1, experts) if inputs_first else OwnedParameter(full_names[leaf], 0)]
    if bias in parameters:
        owned.append(OwnedParameter(full_names[bias], 1, experts))
    return ModuleChannels(full_names[leaf], experts * outputs, tuple(owned), experts)


def other_modalities(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of all modules of a multimodal model that do not compute with text alone."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return ()
    text: Any = model
    towers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in _TOWERS]
    if config.get_text_config() is not config:
        kept = {id(text.get_decoder()), id(text.get_output_embeddings())}
        inside = {name for name, module in model.named_modules() if id(module) in kept}
        if "" not in inside:
            leads_to = {name[:end] for name in inside for end in range(len(name)) if name[end] == "."}
            towers += [
                name
                for name, _ in model.named_modules()
                if name and name not in leads_to and not f"{name}.".startswith(tuple(f"{part}." for part in inside))
            ]
    return tuple(f"{name}." for name in towers)


def _foreign_weights(model: nn.Module) -> list[str]:
    """Weights beside the model's own: adapters' parameters, and quantized matrices in integer buffers.

    An adapter's Linear modules would pass for the model's; modules of GPTQ, AWQ and BitNet have no parameters at all.
    """
    names = []
    for module_name, module in model.named_modules():
        if any(child in _WRAPPED for child, _ in module.named_children()):
            prefix = f"{module_name}." if module_name else ""
            names += [f"{prefix}{leaf}" for leaf, _ in module.named_parameters() if leaf.split(".")[0] not in _WRAPPED]
    packed = (buffer for buffer in model.named_buffers() if buffer[1].ndim == 2 and buffer[1].dtype in _PACKED_DTYPES)
    return [*names, *(name for name, _ in packed)]
