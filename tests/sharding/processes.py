"""Programs on several CPU processes, and the command line under a strategy that shards."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.front_door import Config, run, write_yaml

_SECONDS = 300


def on_processes(count: int, program: str, *arguments: object) -> None:
    """A program of Python's on ``count`` processes that know of each other."""
    where = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count)
    script = Path(str(arguments[0])).parent / "program.py"
    script.write_text(program, encoding="utf-8")
    call_program(*where, script, *arguments)


@dataclass(frozen=True)
class FSDP2:
    """FSDP2 on so many processes; with one process, no strategy at all.

    Attributes:
        processes: Their number.
    """

    processes: int

    def run(self, verb: str, config: Config, *arguments: object) -> Path:
        """A verb of the command line, which starts the other processes itself; gives the run's folder."""
        root = Path(config["trainer"]["default_root_dir"])
        sizes = {"data_parallel_size": self.processes, "tensor_parallel_size": 1}
        strategy = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": sizes}
        config["trainer"] |= {"devices": self.processes} | ({"strategy": strategy} if self.processes > 1 else {})
        call_program(
            "-m", "act_lightning", verb, "--config", write_yaml(root.with_name("config.yaml"), config), *arguments
        )
        return root


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model that lies in one file."""
    return load_file(folder / "model.safetensors")


def call_program(*arguments: object) -> None:
    """A program of Python's on a machine without GPU, and without network, that ends in time without an error."""
    root = str(Path(__file__).parents[2])
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | alone,
        timeout=_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
