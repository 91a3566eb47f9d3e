"""Export when fitting ends: a Hugging Face folder with the weights, a card and the record of the transfer."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.architecture import find_language_model, require_language_model
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.cards.card import new_card, rebuild_card
from act_lightning.cards.record import CARD
from act_lightning.checkpoints.export import export_model, output_issues
from act_lightning.checkpoints.files import no_wider_than, write_file
from act_lightning.checkpoints.models import locate, resolve_dtype
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.profiling.measurement import named_checkpoint
from act_lightning.training.lightning_compat import resumes_from_checkpoint
from act_lightning.training.sharding import Layout, is_sharded
from act_lightning.training.together import collective_hook
from act_lightning.transfer.preparation import previous_transfer


class HuggingFaceExport(RootWriter):
    """Write ``<default_root_dir>/model``, a folder that ``from_pretrained`` loads, when fitting ends.

    Config, generation config and tokenizer are the target's, byte for byte; shards and key names are laid out as the
    target's. The folder appears when it is complete.

    Args:
        target: Folder or hub id whose layout is used; by default the one that the model was loaded from, if it is known
            when fitting is set up.
        revision: Revision of the hub id.
        dtype: Precision of the weights; ``auto``: as the target is stored.
        recipe: The run's config as YAML, for the card.
        overwrite: Whether an earlier export may be replaced. That of the run which a fit resumes may be in any case.
    """

    def __init__(
        self,
        target: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        recipe: str = "",
        overwrite: bool = False,
    ) -> None:
        self.target = target
        self.revision = revision
        self.dtype = dtype
        self.recipe = recipe
        self.overwrite = overwrite
        self._own: set[Path] = set()  # exports of this run

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a folder that cannot be written before any work is done."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.require_output(Path(trainer.default_root_dir) / "model", trainer, pl_module)

    def require_output(self, out: Path, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the model can be written to ``out``, of which earlier exports of this run may be replaced.

        Raises:
            ActError: It holds something else.
        """
        if resumes_from_checkpoint(trainer):
            self._own.add(out)
        _, target = self._layout_of(pl_module)
        overwrite, remedy = self.overwrite or out in self._own, "Pass HuggingFaceExport(overwrite=True)"
        raise_if_any(output_issues(out, target, "trainer.default_root_dir", (), overwrite, remedy))

    @collective_hook
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export when training is over."""
        self.export(Path(trainer.default_root_dir) / "model", trainer, pl_module)

    def export(self, out: Path, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the model to ``out``. Every process must call this: all gather each parameter if they hold shards.

        Raises:
            ActError: A weight is NaN or infinite, or the disk is full; nothing is left behind then.
        """
        model = require_language_model(pl_module)
        layout = Layout(model, trainer.strategy.model)
        name, target = self._layout_of(pl_module)
        if trainer.is_global_zero:
            transfer = previous_transfer(model)
            files: dict[str, str | bytes] = {CARD: new_card(name, self.recipe, transfer, "fit")}
            if transfer:
                files["transfer.json"] = json.dumps(transfer, indent=2) + "\n"
            dtype = None if self.dtype == "auto" else resolve_dtype(self.dtype, target, "model.export_dtype")
            sources = [Path(str(source["model"])) for source in transfer.get("sources", {}).values()]
            overwrite = self.overwrite or out in self._own
            with no_wider_than(*(source for source in sources if source.is_dir())):
                sha256 = export_model(out, target, layout.whole, dtype, files, overwrite, layout.buffers)
            self._own.add(out)
            write_file(out / CARD, rebuild_card(out, sha256=sha256))
            rank_zero_info(f"model written to {out}")
        elif is_sharded(trainer):
            with CheckpointReader(target) as reader:
                for stored_name in reader.stored_names:
                    layout.whole(stored_name)
        trainer.strategy.barrier("exported")

    def _layout_of(self, pl_module: L.LightningModule) -> tuple[str, Path]:
        """The name and the folder of the checkpoint whose layout is used.

        Raises:
            ActError: Neither this callback nor the module names one.
        """
        module_target, module_revision = named_checkpoint(pl_module)
        name = self.target or module_target or getattr(find_language_model(pl_module), "name_or_path", None)
        if not name:
            problem, hint = "must name the checkpoint whose layout is kept", "Give HuggingFaceExport(target=...) one."
            raise ActError(ConfigIssue("HuggingFaceExport.target", self.target, problem, hint))
        revision = self.revision or (None if self.target else module_revision)
        return str(name), locate(name, revision, "HuggingFaceExport.target")
