"""What a channel is: the slice of parameters that an output dimension of a module owns.

A channel is one output dimension of one module that owns parameters (paper §3.1, https://arxiv.org/abs/2601.09398).

================ ======================= =============================
module           channel ``i`` is        parameters that move with it
================ ======================= =============================
``nn.Linear``    output feature ``i``    ``weight[i, :]``, ``bias[i]``
norm             feature ``i``           ``weight[i]``, ``bias[i]``
``nn.Embedding`` embedding feature ``i`` ``weight[:, i]``
``Conv1D``       output feature ``i``    ``weight[:, i]``, ``bias[i]``
================ ======================= =============================

A language model's head is a ``Linear`` whose channels are the entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from act_lightning.errors import ActError, ConfigIssue

_MOST_NAMES = 5
_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # the 8-bit floats are quantized weights
_PACKED_DTYPES = (torch.int32, torch.uint8, torch.int8)
_WRAPPED = ("base_layer", "original_module")  # the child in which PEFT's wrappers keep the layer that they adapt


@dataclass(frozen=True)
class OwnedParameter:
    """A parameter whose slices belong to the channels of one module.

    Attributes:
        name: Full name of the parameter; of a tied parameter, the first of its names.
        dim: The dimension that counts channels: 0 where channel ``i`` owns a row, 1 where it owns a column.
    """

    name: str
    dim: int


@dataclass(frozen=True)
class ModuleChannels:
    """The channels of one module.

    Attributes:
        name: Full name of the module, as in ``model.named_modules()``.
        count: Number of channels.
        owned: The parameters that are sliced by these channels.
    """

    name: str
    count: int
    owned: tuple[OwnedParameter, ...]


@dataclass(frozen=True)
class ElementSelection:
    """The elements of one parameter that a mask selects: those in a selected row or in a selected column.

    Attributes:
        rows: Bool ``[shape[0]]``, or ``None`` where no module slices this parameter by rows.
        columns: Bool ``[shape[1]]``, or ``None`` where no module slices it by columns.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None

    def count(self, shape: torch.Size) -> int:
        """Number of distinct elements selected in a parameter of ``shape``; an overlap counts once."""
        rows = 0 if self.rows is None else int(self.rows.sum())
        columns = 0 if self.columns is None else int(self.columns.sum())
        height, width = shape[0], shape[1:].numel()
        return rows * width + columns * height - rows * columns

    def expand(self, shape: torch.Size) -> Tensor:
        """The selection as a bool tensor of ``shape``."""
        full = torch.zeros(shape, dtype=torch.bool)
        if self.rows is not None:
            full[self.rows] = True
        if self.columns is not None:
            full[:, self.columns] = True
        return full

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


@dataclass(frozen=True)
class ChannelInventory:
    """All channels of a model, numbered in the order of ``model.named_modules()``.

    Attributes:
        modules: The modules that own channels, in order.
        shapes: Shape of every parameter that channels own, by its first name.
        aliases: First name of every parameter, by each of its names (tied parameters have several).
    """

    modules: tuple[ModuleChannels, ...]
    shapes: Mapping[str, torch.Size]
    aliases: Mapping[str, str]

    @cached_property
    def total(self) -> int:
        """Number of channels."""
        return sum(module.count for module in self.modules)

    @cached_property
    def parameters(self) -> int:
        """Number of distinct parameter elements."""
        return sum(shape.numel() for shape in self.shapes.values())

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

    def elements(self, mask: Tensor) -> dict[str, ElementSelection]:
        """The elements that move when the channels of ``mask`` move.

        Args:
            mask: Bool ``[total]``.

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
                selection = ElementSelection(rows=part) if parameter.dim == 0 else ElementSelection(columns=part)
                selections[parameter.name] = selections.get(parameter.name, ElementSelection()).union(selection)
        return selections

    def count_elements(self, mask: Tensor) -> int:
        """Number of distinct parameter elements that ``mask`` (bool ``[total]``) selects."""
        return sum(selection.count(self.shapes[name]) for name, selection in self.elements(mask).items())


def inventory(model: nn.Module) -> ChannelInventory:
    """List the channels of a decoder; a model on the meta device is enough.

    Args:
        model: A causal language model whose parameters live in Linear, Conv1D, Embedding and norm modules.

    Returns:
        Its channels, in the order of ``model.named_modules()``.

    Raises:
        ActError: If a parameter is owned by no channel (mixture-of-experts tensors, adapters, quantized weights).

    >>> net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 6), nn.LayerNorm(6))
    >>> inventory(net).total
    16
    """
    first_names: dict[int, str] = {}
    aliases = {
        name: first_names.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    modules, unowned = [], _foreign_weights(model)
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if not parameters:
            continue
        full_names = {leaf: f"{name}.{leaf}" if name else leaf for leaf in parameters}
        dim = _channel_dim(module, parameters)
        if dim is None or not all(parameter.dtype in _WEIGHT_DTYPES for parameter in parameters.values()):
            unowned += full_names.values()
            continue
        owned = (
            OwnedParameter(aliases[full_names[leaf]], dim if parameter.ndim == 2 else 0)
            for leaf, parameter in parameters.items()
        )
        modules.append(ModuleChannels(name, parameters["weight"].shape[dim], tuple(owned)))
    if unowned:
        names = list(dict.fromkeys(unowned))
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        problem = (
            "must keep every weight in a floating-point Linear, Conv1D, Embedding or norm module, unlike "
            f"{', '.join(names[:_MOST_NAMES])}{more}"
        )
        hint = "Merge adapters into the weights, load the model without quantization, or choose a dense decoder."
        raise ActError(ConfigIssue("model", type(model).__name__, problem, hint))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return ChannelInventory(tuple(modules), shapes, aliases)


def _channel_dim(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> int | None:
    """The dimension of ``weight`` that counts output channels, or ``None`` for a module of another kind."""
    dimensions = {leaf: parameter.ndim for leaf, parameter in parameters.items()}
    is_matrix = dimensions in ({"weight": 2}, {"weight": 2, "bias": 1})
    if isinstance(module, nn.Linear) and is_matrix:
        return 0
    if (isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D") and is_matrix:
        return 1
    if "norm" in type(module).__name__.lower() and dimensions in ({"weight": 1}, {"weight": 1, "bias": 1}):
        return 0
    return None


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
