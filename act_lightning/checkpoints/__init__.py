"""Models on disk: found, described, read lazily, compared, and written whole."""

from act_lightning.checkpoints.atomic import (
    check_writable,
    remove_leftovers,
    replacing_file,
    replacing_folder,
    save_tensors,
    write_file,
)
from act_lightning.checkpoints.export import export_model, output_faults
from act_lightning.checkpoints.finite import check_finite
from act_lightning.checkpoints.identity import Identity, identify, identify_module
from act_lightning.checkpoints.locate import locate
from act_lightning.checkpoints.models import (
    load_config,
    load_model,
    load_tokenizer,
    meta_model,
    resolve_dtype,
    stored_dtype,
)
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.shards import is_weightless, require_weights
from act_lightning.checkpoints.siblings import ConfigDifference, config_differences, sibling_faults, tokenizer_faults
from act_lightning.checkpoints.stream import merge_checkpoint

__all__ = [
    "CheckpointReader",
    "ConfigDifference",
    "Identity",
    "check_finite",
    "check_writable",
    "config_differences",
    "export_model",
    "identify",
    "identify_module",
    "is_weightless",
    "load_config",
    "load_model",
    "load_tokenizer",
    "locate",
    "merge_checkpoint",
    "meta_model",
    "output_faults",
    "remove_leftovers",
    "replacing_file",
    "replacing_folder",
    "require_weights",
    "resolve_dtype",
    "save_tensors",
    "sibling_faults",
    "stored_dtype",
    "tokenizer_faults",
    "write_file",
]
