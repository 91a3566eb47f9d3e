"""The rows of each parameter that this process may write, and the whole of it: plain, sharded by FSDP2, or by FSDP1."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._common_utils import clean_tensor_name
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from act_lightning.errors import ActError, Fault


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
        rule = f"must be whole or sharded by rows, and is {parameter.placements}"
        raise ActError(Fault(name, tuple(parameter.shape), rule, "Set tensor_parallel_size: 1."))
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
