"""Fine-tuning on 1, 2 and 4 processes, by DDP and FSDP2: tokens a second, and what each process holds.

    python benchmarks/scaling.py                                                  # on the CPU, one thread a process
    python benchmarks/scaling.py --device cuda --shape qwen2.5-1.5b --processes 1 2 4 8 --precision bf16-mixed

Random weights, packed rows of 4 samples (those of ``sft.py``), the same update of 16 samples whatever the number of
processes; the first update is not timed. *loading* is how much the resident memory of a process grew at its peak while
the model was loaded, beside the size of all weights. As many processes need as many free cores: the number of those is
printed, and more processes than cores say nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from sft import SHAPES, make_model, now, resident, samples
from torch.utils.data import DataLoader, DistributedSampler

from act_lightning.callbacks.throughput import peak_memory
from act_lightning.data.batches import pack
from act_lightning.data.labels import Sample
from act_lightning.module import AbilityTransferModule

ROWS, UPDATE = 4, 16


class Watch(L.Callback):
    """Times updates, and measures memory around loading."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []
        self.losses: list[float] = []
        self.before = self.loaded = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before anything is loaded."""
        self.before = resident()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """When the model is there, and sharded."""
        self.loaded = peak_memory(torch.device("cpu")) - self.before

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """After an update."""
        if trainer.global_step > len(self.times):
            self.times.append(now(self.device))
            self.losses.append(float(trainer.callback_metrics["train_loss"]))


def strategy_of(name: str, processes: int) -> Any:  # noqa: ANN401 - a name, or a strategy of Lightning's
    if processes == 1:
        return "auto"
    if name == "ddp":
        return "ddp"
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)


def worker(arguments: argparse.Namespace) -> None:
    """One fit; Lightning starts the other processes with the same arguments."""
    torch.set_num_threads(1)
    processes = arguments.processes[0]
    rows = samples(arguments.updates * UPDATE, SHAPES[arguments.shape]["vocab_size"])
    each = [Sample(torch.tensor(ids), torch.tensor(labels)) for ids, labels in rows]
    batches = [pack(each[start : start + ROWS]) for start in range(0, len(each), ROWS)]
    watch = Watch(arguments.device)
    trainer = L.Trainer(
        accelerator="gpu" if arguments.device == "cuda" else "cpu",
        devices=processes,
        strategy=strategy_of(arguments.strategy, processes),
        precision=arguments.precision,
        max_epochs=1,
        accumulate_grad_batches=UPDATE // ROWS // processes,
        callbacks=[watch],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    rank = int(os.environ.get("LOCAL_RANK", 0))
    share = DistributedSampler(batches, processes, rank, shuffle=False)  # type: ignore[arg-type]
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None, sampler=share)  # type: ignore[arg-type]
    trainer.fit(AbilityTransferModule(str(arguments.folder), learning_rate=1.0e-4), loader)
    if trainer.is_global_zero:
        tokens = sum(len(ids) for ids, _ in rows[UPDATE:])
        found = {"tokens/s": tokens / (watch.times[-1] - watch.times[0]), "loading": watch.loaded}
        found |= {"peak": peak_memory(trainer.strategy.root_device), "losses": watch.losses}
        print("\n" + json.dumps(found), flush=True)


def measure(name: str, processes: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("shape", "device", "precision", "updates")
    passed = [text for one in names for text in (f"--{one}", str(getattr(arguments, one)))]
    command = [sys.executable, __file__, "--strategy", name, "--processes", str(processes), "--folder", str(folder)]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *passed], stdout=subprocess.PIPE, env=quiet, text=True, check=True)
    found: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="17m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--strategy", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.strategy:
        worker(arguments)
        return
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}", *sys.argv)
    print({name: version(name) for name in ("torch", "lightning", "transformers", "act-lightning")})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        make_model(arguments.shape, folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        print(f"weights {size / 2**20:,.0f} MiB")
        alone: dict[str, Any] = {}
        for name in ("ddp", "fsdp2"):
            for processes in arguments.processes:
                found = alone if processes == 1 and alone else measure(name, processes, folder, arguments)
                alone = alone or found
                apart = max(abs(a - b) for a, b in zip(found["losses"], alone["losses"], strict=True))
                print(
                    f"  {name:5} {processes}: {found['tokens/s']:8,.0f} tokens/s,"
                    f" {found['tokens/s'] / alone['tokens/s']:.2f} of one; loading {found['loading'] / 2**20:,.0f} MiB,"
                    f" peak {found['peak'] / 2**20:,.0f} MiB; losses differ by {apart:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
