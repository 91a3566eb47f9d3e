"""Export when fitting ends: a Hugging Face folder with the weights, a card and the record of the transfer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.architecture import find_language_model, require_language_model, transfer_record
from act_lightning.cards.card import complete_card, new_card
from act_lightning.cards.record import CARD
from act_lightning.checkpoints.export import export_model, output_issues
from act_lightning.checkpoints.models import locate, resolve_dtype
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.profiling.target import named_checkpoint
from act_lightning.training.sharding import Layout
from act_lightning.training.strategies import is_sharded


class HuggingFaceExport(L.Callback):
    """Write ``<default_root_dir>/model``, a folder that ``from_pretrained`` loads, when fitting ends.

    Config, generation config and tokenizer are the target's, byte for byte; shards and key names are laid out as the
    target's. The folder appears when it is complete.

    Args:
        target: Folder or hub id whose layout is kept; by default the one that the model was loaded from, if it is there
            when fitting is set up.
        revision: Revision of the hub id.
        dtype: Precision of the weights; ``auto``: as the target is stored.
        recipe: The run's config as YAML, for the card.
    """

    def __init__(
        self, target: str | None = None, revision: str | None = None, dtype: str = "auto", recipe: str = ""
    ) -> None:
        self.target = target
        self.revision = revision
        self.dtype = dtype
        self.recipe = recipe

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a place that cannot be written before any work is done."""
        if stage == "fit":
            raise_if_any(output_issues(_place(trainer), self._folder(pl_module), "trainer.default_root_dir"))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export when training is over."""
        self.export_from_all(_place(trainer), trainer, pl_module)

    def export_from_all(self, out: Path, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first process writes, and all of them gather, a parameter at a time, where they hold shards.

        Args:
            out: The folder to be.
            trainer: Its processes, which must all call.
            pl_module: Holds the model.
        """
        layout = Layout(require_language_model(pl_module), trainer.strategy.model)
        if trainer.is_global_zero:
            self.export(out, pl_module, transfer_record(require_language_model(pl_module)), layout)
        elif is_sharded(trainer):
            with CheckpointReader(self._folder(pl_module)) as reader:
                for name in reader.stored_names:
                    layout.whole(name)
        trainer.strategy.barrier("exported")

    def export(
        self, out: Path, pl_module: L.LightningModule, transfer: dict[str, Any], layout: Layout | None = None
    ) -> None:
        """Write the model to ``out``.

        Args:
            out: The folder to be.
            pl_module: Holds the model.
            transfer: The contents of ``transfer.json``; empty for plain fine-tuning.
            layout: How the model is spread over processes; by default this one holds all of it.

        Raises:
            ActError: If a weight is NaN or infinite, or the disk is full; nothing is left behind then.
        """
        layout = layout or Layout(require_language_model(pl_module))
        folder = self._folder(pl_module)
        export_model(
            out,
            folder,
            layout.whole,
            chosen_dtype(self.dtype, folder),
            described_files(self._name(pl_module), self.recipe, transfer, "fit"),
        )
        complete_card(out, verify=True)
        rank_zero_info(f"model written to {out}")

    def _name(self, pl_module: L.LightningModule) -> str:
        loaded_from = getattr(find_language_model(pl_module), "name_or_path", None)
        name = self.target or named_checkpoint(pl_module)[0] or loaded_from
        if not name:
            problem, hint = "must name the checkpoint whose layout is kept", "Give HuggingFaceExport(target=...) one."
            raise ActError(ConfigIssue("HuggingFaceExport.target", self.target, problem, hint))
        return str(name)

    def _folder(self, pl_module: L.LightningModule) -> Path:
        revision = self.revision or (None if self.target else named_checkpoint(pl_module)[1])
        return locate(self._name(pl_module), revision, "HuggingFaceExport.target")


def chosen_dtype(name: str, folder: Path) -> torch.dtype | None:
    """The dtype called ``name``, or ``None`` for ``auto``: each tensor as it is stored."""
    return None if name == "auto" else resolve_dtype(name, folder, "model.export_dtype")


def described_files(target: str, recipe: str, transfer: dict[str, Any], verb: str) -> dict[str, str | bytes]:
    """The card and, after a transfer, its record: files that an exported folder carries beside the model.

    Args:
        target: How the target was named.
        recipe: The run's config as YAML; may be empty.
        transfer: The contents of ``transfer.json``; empty for plain fine-tuning.
        verb: ``fit`` or ``merge``.
    """
    files: dict[str, str | bytes] = {CARD: new_card(target, recipe, transfer, verb)}
    if transfer:
        files["transfer.json"] = json.dumps(transfer, indent=2) + "\n"
    return files


def _place(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "model"
