"""A training loop that knows nothing of ACT, random samples for it, and batches as various loaders would make them."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch import Tensor

from act_lightning.profiling.pair import ModelInputs, Reader, compare
from tests.reference.act import IGNORED, Sample
from tests.tiny import VOCABULARY

Batches = list[dict[str, Tensor]]


class PlainModule(L.LightningModule):
    """Somebody's LightningModule around a language model; its weights stay as they are while the rate is zero."""

    def __init__(self, net: Any, rate: float = 0.0) -> None:
        super().__init__()
        self.net = net
        self.rate = rate

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.net(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def quiet_trainer(root: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """A Trainer on one CPU that prints and keeps nothing."""
    silent = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    fixed: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": root}
    return L.Trainer(callbacks=list(callbacks), **(silent | fixed | settings))


def random_samples(count: int, longest: int = 24, seed: int = 0, shortest: int = 2) -> list[Sample]:
    """Samples of random lengths of all token ids, padding's too, with answer tokens anywhere, the last among them."""
    draw = random.Random(seed)
    samples = []
    for _ in range(count):
        ids = [draw.randrange(VOCABULARY) for _ in range(draw.randint(shortest, longest))]
        labels = [token if draw.random() < 0.5 else IGNORED for token in ids[:-1]]
        samples.append((ids, [*labels, ids[-1]]))
    return samples


def padded(samples: Sequence[Sample], rows: int = 4, left: bool = False, fill: int = 0) -> Batches:
    """Batches of so many rows, padded on either side."""

    def pad(values: list[int], length: int, value: int) -> list[int]:
        padding = [value] * (length - len(values))
        return padding + values if left else values + padding

    batches = []
    for start in range(0, len(samples), rows):
        part = samples[start : start + rows]
        length = max(len(ids) for ids, _ in part)
        batches.append(
            {
                "input_ids": torch.tensor([pad(ids, length, fill) for ids, _ in part]),
                "attention_mask": torch.tensor([pad([1] * len(ids), length, 0) for ids, _ in part]),
                "labels": torch.tensor([pad(labels, length, IGNORED) for _, labels in part]),
            }
        )
    return batches


def packed(samples: Sequence[Sample], rows: int = 4) -> Batches:
    """Batches of one long row; positions restart where the next sample begins."""
    batches = []
    for start in range(0, len(samples), rows):
        part = samples[start : start + rows]
        lists = {
            "input_ids": [token for ids, _ in part for token in ids],
            "labels": [label for _, labels in part for label in labels],
            "position_ids": [position for ids, _ in part for position in range(len(ids))],
        }
        batches.append({name: torch.tensor([values]) for name, values in lists.items()})
    return batches


def write_config(path: Path, config: Mapping[str, Any]) -> str:
    """A YAML file for ``--config``."""
    path.write_text(yaml.safe_dump(dict(config), allow_unicode=True), encoding="utf-8")
    return str(path)


@contextmanager
def messages() -> Iterator[list[str]]:
    """What is said on rank zero in the meantime."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def compare_on_batch(target: Any, sources: Sequence[Any], batch: Mapping[str, Tensor], means: Sequence[Any]) -> int:
    """Run a target and its sources once over a batch, and add their outputs to each source's means; answer tokens."""
    inputs = ModelInputs.of(batch, target)
    compare(Reader(target), [Reader(source) for source in sources], inputs, means)
    return inputs.answers.tokens
