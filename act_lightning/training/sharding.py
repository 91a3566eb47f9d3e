"""Which part of a model each process holds: load it by parts (FSDP2, FSDP1), write to it, and put it together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._common_utils import clean_tensor_name
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from act_lightning.architecture import decoder_layers, parameter_names
from act_lightning.checkpoints.models import make_buffers, meta_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError, ConfigIssue


@dataclass(frozen=True)
class LocalRows:
    """Consecutive rows of a parameter, writable in place.

    Attributes:
        values: The rows held here, maybe none; the whole parameter where nothing is sharded.
        first_row: Number of the first of them in the whole parameter.
    """

    values: Tensor
    first_row: int


class Layout:
    """How the parameters of a model are spread over processes.

    All processes must go through it in step, for some strategies gather.

    Args:
        model: A model, or what a strategy has made of it.
        root: What the strategy has wrapped, if that is more than the model: the LightningModule under FSDP1.
    """

    def __init__(self, model: nn.Module, root: nn.Module | None = None) -> None:
        self._modules = {clean_tensor_name(name): module for name, module in model.named_modules()}
        self._units = _units(model if root is None else root)

    def parts(self, names: Collection[str]) -> Iterator[tuple[str, LocalRows]]:
        """What this process may write of each parameter, to be written before the next is asked for.

        FSDP1 gathers one unit (a decoder layer, say) at a time, in whole, on every process; each keeps its own share.

        Args:
            names: Names that the parameters have in a model that no strategy has touched.
        """
        by_unit: dict[FullyShardedDataParallel | None, list[str]] = {}
        for name in names:
            by_unit.setdefault(self._unit(name), []).append(name)
        for unit, members in by_unit.items():
            if unit is None:
                yield from ((name, local_rows(name, self._parameter(name))) for name in members)
                continue
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=True):
                yield from ((name, LocalRows(self._parameter(name).data, 0)) for name in members)

    def whole(self, name: str) -> Tensor:
        """The whole of a parameter, without gradient."""
        unit = self._unit(name)
        if unit is not None:
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                return self._parameter(name).detach().clone()
        parameter = self._parameter(name).detach()
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    def _unit(self, name: str) -> FullyShardedDataParallel | None:
        return self._units.get(self._modules[name.rpartition(".")[0]])

    def _parameter(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        parameter: Tensor = getattr(self._modules[owner], leaf)
        return parameter


def local_rows(name: str, parameter: Tensor) -> LocalRows:
    """The rows of ``parameter`` that this process holds: all of them, unless FSDP2 has sharded it.

    Args:
        name: Its name, for messages.
        parameter: A parameter, or a DTensor.

    Raises:
        ActError: It is sharded by columns, as tensor parallelism may do.
    """
    if not isinstance(parameter, DTensor):
        return LocalRows(parameter.data, 0)
    if any(isinstance(placement, Shard) and placement.dim != 0 for placement in parameter.placements):
        problem = f"must be whole or sharded by rows, and is {parameter.placements}"
        raise ActError(ConfigIssue(name, tuple(parameter.shape), problem, "Set tensor_parallel_size: 1."))
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    with torch.no_grad():
        return LocalRows(parameter.to_local(), offset[0] if offset else 0)


def _units(root: nn.Module) -> dict[nn.Module, FullyShardedDataParallel]:
    """The FSDP1 unit that flattens the parameters of each module; empty without FSDP1."""
    found: dict[nn.Module, FullyShardedDataParallel] = {}

    def visit(module: nn.Module, unit: FullyShardedDataParallel | None) -> None:
        if isinstance(module, FullyShardedDataParallel):
            if unit is None:
                module.check_is_root()  # or the first unit that is gathered would take itself for the root
            unit = module
        if unit is not None:
            found[module] = unit
        for child in module.children():
            visit(child, unit)

    visit(root, None)
    return found


_KEEPS_STEP = "_is_fsdp_managed_module"  # makes transformers' generation wait for other processes' longer answers
_BYTES_AT_ONCE = 1 << 26  # 64 MiB of host memory beside what the process keeps


def load_sharded(
    folder: Path, dtype: torch.dtype, mesh: DeviceMesh, device: torch.device, policy: MixedPrecisionPolicy | None = None
) -> PreTrainedModel:
    """The causal language model of ``folder``, each decoder layer and the rest sharded by rows over ``mesh``.

    Built without weights, sharded (``fully_shard``, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html),
    then filled: a process reads only its own rows, 64 MiB at a time.

    Args:
        folder: A Hugging Face folder with safetensors weights.
        dtype: The dtype of all parameters.
        mesh: One dimension: the processes that share the parameters.
        device: Where this process keeps its part.
        policy: Precision of the gathered parameters and of the reduction of gradients; by default ``dtype``.

    Raises:
        ActError: As :class:`~act_lightning.checkpoints.reader.CheckpointReader`; NaN or infinity in the rows read here.
    """
    with CheckpointReader(folder) as reader:
        model = _without_weights(folder, dtype, device)
        _shard(model, mesh, policy or MixedPrecisionPolicy())
        for parameter, names in parameter_names(model).items():
            _place(model, names, _filled(names[0], parameter, reader, device))
    setattr(model, _KEEPS_STEP, True)
    model.train(False)
    return model


def load_by_units(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Callable[[nn.Module], None]]:
    """The causal language model of ``folder`` without weights, and what reads those of a module, for FSDP1.

    FSDP1 calls its ``param_init_fn`` with every module of a unit (a decoder layer, say), then shards the unit, before
    it comes to the next one (https://docs.pytorch.org/docs/stable/fsdp.html). So a process holds one unit beside its
    own part.

    Args:
        folder: A Hugging Face folder with safetensors weights.
        dtype: The dtype of all parameters.
        device: Where a unit is before it is sharded.

    Returns:
        The model, parameters on the meta device, and the ``param_init_fn``, which raises an ActError as
        :class:`~act_lightning.checkpoints.reader.CheckpointReader` does, and for NaN or infinity.
    """
    model = _without_weights(folder, dtype, device)
    names, tied = parameter_names(model), dict[nn.Parameter, nn.Parameter]()
    missing = Counter({empty: len(its) for empty, its in names.items()})

    def fill(module: nn.Module) -> None:
        for leaf, empty in list(module.named_parameters(recurse=False)):
            filled = tied.get(empty)
            if filled is None:
                with CheckpointReader(folder) as reader:
                    values = _read(names[empty][0], 0, torch.empty_like(empty, device=device), reader)
                filled = nn.Parameter(values, requires_grad=empty.requires_grad)
            setattr(module, leaf, filled)
            missing[empty] -= 1
            if missing[empty]:
                tied[empty] = filled
            else:  # nothing is kept that is sharded soon
                tied.pop(empty, None)

    model.train(False)
    return model, fill


def _shard(model: PreTrainedModel, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Shard every decoder layer for itself, so that one at a time is gathered, then everything else."""
    for layer in decoder_layers(model).values():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _without_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model whose parameters are on the meta device, and whose buffers are not."""
    model = meta_model(folder, dtype)
    model.name_or_path = str(folder)
    make_buffers(model, device)
    return model


def _filled(name: str, parameter: nn.Parameter, reader: CheckpointReader, device: torch.device) -> nn.Parameter:
    """A parameter like ``parameter``, with this process's rows of the checkpoint."""
    empty: Any = parameter  # a DTensor without memory
    part = local_rows(name, empty)
    room = torch.empty(part.values.shape, dtype=parameter.dtype, device=device)
    values = _read(name, part.first_row, room, reader)
    filled = DTensor.from_local(
        values, empty.device_mesh, empty.placements, run_check=False, shape=empty.shape, stride=empty.stride()
    )
    return nn.Parameter(filled, requires_grad=parameter.requires_grad)


def _read(name: str, first_row: int, values: Tensor, reader: CheckpointReader) -> Tensor:
    """``values``, filled with the rows from ``first_row`` on, some at a time."""
    at_once = max(1, _BYTES_AT_ONCE // max(1, values[:1].nbytes))
    for start in range(0, len(values), at_once):
        stop = min(start + at_once, len(values))
        values[start:stop] = reader.rows(name, torch.arange(first_row + start, first_row + stop)).to(values.dtype)
    return values


def _place(model: nn.Module, names: list[str], parameter: nn.Parameter) -> None:
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, parameter)
