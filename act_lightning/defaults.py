"""Default settings, and values that several rooms must agree on."""

from __future__ import annotations

import os
from pathlib import Path

RATIO = 0.01
"""``transfer.ratio``: p (paper §4, https://arxiv.org/abs/2601.09398)."""
SCALE = 0.4
"""``transfer.scale``: λ."""
EVERY_MODULE = ("*",)
"""``transfer.include``."""
LABORATORY = "lab:"
"""What names of the laboratory's models and data sets begin with."""
SEED = 42
"""``seed_everything``."""
LARGEST_SEED = 2**32 - 1
"""The largest seed that Lightning accepts, which also seeds numpy."""
TRANSFORMERS, VLLM = "transformers", "vllm"
"""``model.generator``: what generates answers."""
IGNORED = -100
"""The label of a token that is no answer token; ``ignore_index`` of torch and transformers."""
LAST, PREVIOUS = "last.ckpt", "last-before.ckpt"
"""Checkpoints of a fit; the second matches last*.ckpt, so resuming finds it if a kill has left nothing else."""
BEST = "best"
"""The folder of ``BestRecovery``."""
LOGITS_AT_ONCE = 1 << 27
"""Half a gigabyte in float32: 883 tokens of Qwen2.5's 152,064 entries; more is no faster."""
# What torchrun, SLURM, Lightning and LSF set; as in lightning.fabric, which must not be imported for a merge.
_RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def cache_folder(name: str) -> Path:
    """``$ACT_LIGHTNING_CACHE/<name>``, or ``~/.cache/act_lightning/<name>``; it need not exist."""
    root = os.environ.get("ACT_LIGHTNING_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "act_lightning") / name


def is_first_process() -> bool:
    """Whether this process is the first of a run: the one that holds its lock and writes most of its files."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)
