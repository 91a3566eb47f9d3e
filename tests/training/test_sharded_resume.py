"""Fits on CPU processes that go on with another number of them, or that are told to stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from tests.front_door import Config, basic, changed, write_yaml
from tests.tiny import save_pair, write_jsonl
from tests.training.processes import assert_ends, call_program, fit, start, strategy_of, weights

pytestmark = pytest.mark.slow
STOPPED = 143


class Telling(L.Callback):
    """Tells the second process to stop, in the midst of the third update."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if batch_idx == 9 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resuming")
    save_pair(root, "qwen2")
    write_jsonl(root / "d.jsonl", ({"prompt": f"Say {i}", "answer": "one " * (1 + 7 * i % 23)} for i in range(32)))
    return root


def config_of(place: Path, name: str, processes: int) -> Config:
    """Updates of 8 samples whatever the number of processes."""
    (place / name).mkdir(exist_ok=True)
    config = basic(place / name, place / "target", place / "source", place / "d.jsonl")
    config["trainer"] |= {"accumulate_grad_batches": 8 // processes, "max_epochs": 2}
    return config


@pytest.fixture(scope="module")
def straight(place: Path) -> Path:
    """Two epochs, eight updates, by one process at a stretch."""
    return fit(config_of(place, "straight", 1), 1)


def assert_close(root: Path, straight: Path) -> None:
    expected = weights(straight / "model")
    for name, values in weights(root / "model").items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_shards_of_another_number_of_processes(before: int, after: int, place: Path, straight: Path) -> None:
    """After three updates: a folder of two processes' shards is read by one without a strategy; a file by two."""
    name = f"{before}-{after}"
    fit(changed(config_of(place, name, before), "trainer.max_steps", 3), before)
    last = place / name / "run" / "checkpoints" / "last.ckpt"
    assert last.is_dir() == (before == 2)
    assert_close(fit(config_of(place, name, after), after, "--ckpt_path", "last"), straight)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1"])
def test_two_processes_stop_after_the_same_update(strategy: str, place: Path, straight: Path) -> None:
    """One of them is told, the second: within an update of four micro-batches each."""
    config = config_of(place, strategy, 2)
    config["trainer"] |= {"devices": 2, "strategy": strategy_of(strategy, 2)}
    telling = {"class_path": "tests.training.test_sharded_resume.Telling"}
    file = write_yaml(place / strategy / "told.yaml", changed(config, "trainer.callbacks", [telling]))
    call_program("-m", "act_lightning", "fit", "--config", file, status=STOPPED)
    root = place / strategy / "run"
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not (root / "model").exists()
    file = write_yaml(place / strategy / "config.yaml", config)
    call_program("-m", "act_lightning", "fit", "--config", file, "--ckpt_path", "last")
    assert_close(root, straight)


def test_all_processes_leave_when_the_first_is_told_while_profiling(place: Path) -> None:
    config = config_of(place, "profiling", 2)
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config["data"]["abilities"] |= {"e": {"path": str(place / "d.jsonl"), "limit": 9}}
    config["profile"] |= {"tokens_per_batch": 60}
    config["profile"]["sources"][0]["abilities"] = ["d", "e"]
    started = start("-m", "act_lightning", "fit", "--config", write_yaml(place / "profiling" / "config.yaml", config))
    scores = place / "profiling" / "run" / "scores" / "s" / "d.safetensors"
    while not scores.exists() and started.poll() is None:
        time.sleep(0.002)
    started.send_signal(signal.SIGTERM)
    assert_ends(started, STOPPED)
    assert [path.name for path in scores.parent.iterdir()] == ["d.safetensors"]
