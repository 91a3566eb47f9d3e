"""Which part of a model each process holds: loading by parts (FSDP2), writing to them, and putting them together."""

from act_lightning.sharding.averaging import averaging_faults
from act_lightning.sharding.layout import Layout, LocalRows, local_rows
from act_lightning.sharding.loading import load_by_units, load_sharded

__all__ = ["Layout", "LocalRows", "averaging_faults", "load_by_units", "load_sharded", "local_rows"]
