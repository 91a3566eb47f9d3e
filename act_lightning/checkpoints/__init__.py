"""Models on disk: found, described, read lazily, compared, and written whole."""

from act_lightning.checkpoints.atomic import (
    check_writable,
    remove_leftovers,
    replacing_file,
    replacing_folder,
    save_tensors,
    write_file,
)
from act_lightning.checkpoints.changes import ModelRows, Rows, channel_sums, row_changes
from act_lightning.checkpoints.described import Described, describe, describe_model
from act_lightning.checkpoints.export import export_model, output_faults
from act_lightning.checkpoints.file_names import name_faults
from act_lightning.checkpoints.finite import check_finite, first_row_not_finite
from act_lightning.checkpoints.identity import Identity, identify, identify_module
from act_lightning.checkpoints.locate import locate
from act_lightning.checkpoints.models import (
    load_config,
    load_model,
    load_tokenizer,
    make_buffers,
    meta_model,
    resolve_dtype,
    stored_dtype,
)
from act_lightning.checkpoints.quantized import QUANTIZATIONS, load_quantized
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.shards import is_weightless, require_weights, stored_entries
from act_lightning.checkpoints.siblings import (
    ConfigDifference,
    config_differences,
    pair_faults,
    sibling_faults,
    tokenizer_faults,
)
from act_lightning.checkpoints.stream import Change, merge_checkpoint
from act_lightning.checkpoints.vocabulary import VocabularyMatch, match_folders, match_vocabulary

__all__ = [
    "QUANTIZATIONS",
    "Change",
    "CheckpointReader",
    "ConfigDifference",
    "Described",
    "Identity",
    "ModelRows",
    "Rows",
    "VocabularyMatch",
    "channel_sums",
    "check_finite",
    "check_writable",
    "config_differences",
    "describe",
    "describe_model",
    "export_model",
    "first_row_not_finite",
    "identify",
    "identify_module",
    "is_weightless",
    "load_config",
    "load_model",
    "load_quantized",
    "load_tokenizer",
    "locate",
    "make_buffers",
    "match_folders",
    "match_vocabulary",
    "merge_checkpoint",
    "meta_model",
    "name_faults",
    "output_faults",
    "pair_faults",
    "remove_leftovers",
    "replacing_file",
    "replacing_folder",
    "require_weights",
    "resolve_dtype",
    "row_changes",
    "save_tensors",
    "sibling_faults",
    "stored_dtype",
    "stored_entries",
    "tokenizer_faults",
    "write_file",
]
