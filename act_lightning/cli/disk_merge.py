"""The last step of ``merge``: a prepared transfer, from checkpoints to a folder, without a Trainer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from act_lightning.cards.record import CARD
from act_lightning.cards.writing import complete_card, first_card
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import resolve_dtype
from act_lightning.checkpoints.streaming import merge_checkpoint
from act_lightning.transfer.preparation import PreparedTransfer
from act_lightning.transfer.report import describe_transfer

_RECORD = "transfer.json"


def merge_to_disk(
    root: Path,
    target: Path,
    prepared: PreparedTransfer,
    recipe: str,
    dtype: str = "auto",
    device: torch.device | None = None,
) -> str:
    """Write ``<root>/merged`` and ``<root>/transfer.json``.

    Args:
        root: The run's folder.
        target: The target's checkpoint.
        prepared: The sources with their masks.
        recipe: The run's config as YAML, for the card.
        dtype: Precision of the written weights; ``auto``: as the target is stored.
        device: Where rows are merged; by default the CPU.

    Returns:
        What to tell the user.

    Raises:
        ActError: If a weight is NaN or infinite, or the disk is full; nothing is left behind then.
    """
    record = json.dumps(prepared.report, indent=2) + "\n"
    files: dict[str, str | bytes] = {CARD: first_card(str(target), recipe, prepared.report, "merge"), _RECORD: record}
    written = None if dtype == "auto" else resolve_dtype(dtype, target, "model.export_dtype")
    with prepared.injection() as injection:
        merge_checkpoint(root / "merged", target, injection, written, files, device)
        read = f"{injection.bytes_read:,} bytes of the sources' tensors read"
    complete_card(root / "merged", verify=False)
    write_file(root / _RECORD, record)
    return f"{describe_transfer(prepared.report)}\n{read}\nmerged model written to {root / 'merged'}"
