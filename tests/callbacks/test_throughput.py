"""Operations, tokens and samples of batches, against plain counting, and what a fit logs of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.throughput import measure_flops
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from act_lightning.callbacks import TokenThroughput
from act_lightning.callbacks.throughput import FlopCount
from act_lightning.data.batches import sample_lengths
from act_lightning.module import AbilityTransferModule
from tests.loops import packed, padded, quiet_trainer, random_samples
from tests.reference.act import IGNORED
from tests.tiny import save_model, tiny_config, tiny_model, tiny_tokenizer

SAMPLES = random_samples(12, seed=7)


@pytest.mark.parametrize("left", [False, True])
def test_lengths_of_samples(left: bool) -> None:
    expected = [len(ids) for ids, _ in SAMPLES]
    for batches in (padded(SAMPLES, rows=12, left=left), packed(SAMPLES, rows=12)):
        assert sample_lengths(batches[0]).tolist() == expected


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text"])
def test_operations_are_those_that_torch_counts(architecture: str) -> None:
    """On one sample with all tokens answers; norms and activations, which torch does not count, are left out there."""
    config = tiny_config(architecture, tie_word_embeddings=False)
    ids = torch.arange(40)[None]
    model = tiny_model(architecture, tie_word_embeddings=False)
    model.set_attn_implementation("eager")  # whose products torch's counter sees
    counted = measure_flops(model, lambda: model(ids, use_cache=False).logits, torch.Tensor.sum)
    count = FlopCount.of(config)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    ours = count.operations(torch.tensor([40]), answers=40) - 6 * vectors * 40
    assert ours == pytest.approx(counted, rel=0.02)


def test_what_is_logged(tmp_path: Path) -> None:
    folder = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target")
    batches = packed(SAMPLES, rows=2)
    loader: DataLoader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type,type-arg]
    logger = CSVLogger(str(tmp_path))
    trainer = quiet_trainer(
        tmp_path,
        TokenThroughput(window_size=2),
        logger=logger,
        log_every_n_steps=1,
        accumulate_grad_batches=2,
        limit_val_batches=1,
    )
    trainer.fit(AbilityTransferModule(str(folder)), loader, loader)
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {name: [float(row[name]) for row in rows if row.get(name)] for name in rows[0]}
    assert len(found["train/answer_tokens_per_sec"]) == 3, "an update has two of six micro-batches"
    seconds, samples = (found[f"train/{name}"][-1] for name in ("time", "samples"))
    assert samples == len(SAMPLES)
    answers = sum(label != IGNORED for _, labels in SAMPLES for label in labels)
    assert 0 < found["train/answer_tokens_per_sec"][-1] < 100 * answers / seconds
    assert found["train/device/flops_per_sec"][-1] > 0
    assert found["train/peak_memory_gb"][-1] > 0.05
