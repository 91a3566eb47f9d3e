"""The LightningModule apart from training: what it loads, and what Lightning's precisions do to it."""

from pathlib import Path

import lightning as L
import pytest
import torch

from act_lightning.checkpoints.models import load_model
from act_lightning.module import AbilityTransferModule
from tests.tiny import save_model, tiny_model, tiny_tokenizer


class Reader(L.Callback):
    """Reads a text when fitting starts, and ends the fit."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            self.logits = pl_module.model(torch.arange(3, 40)[None]).logits
        trainer.should_stop = True


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    ids = torch.arange(3, 9)[None]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_logits_are_those_of_transformers(precision: str, dtype: torch.dtype, tmp_path: Path, batches: list) -> None:
    folder = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target")
    reader = Reader()
    trainer = L.Trainer(
        precision=precision,
        callbacks=[reader],
        max_steps=1,
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(AbilityTransferModule(str(folder)), batches, batches)
    with torch.no_grad():
        expected = load_model(folder, dtype)(torch.arange(3, 40)[None]).logits
    assert reader.logits.dtype == dtype
    torch.testing.assert_close(reader.logits, expected, rtol=0, atol=0)
