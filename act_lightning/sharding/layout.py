"""The rows of a parameter that this process holds, and the whole of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
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
    return LocalRows(parameter.to_local().data, offset[0] if offset else 0)


def whole(parameter: Tensor) -> Tensor:
    """The whole of ``parameter``, without gradient; where it is sharded, all processes must ask for it together."""
    return parameter.detach().full_tensor() if isinstance(parameter, DTensor) else parameter.data
