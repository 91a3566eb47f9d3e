"""Programs on several CPU processes, and ``fit`` under a strategy that shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.front_door import Config, run, write_yaml

_SECONDS = 300


def on_processes(count: int, program: Path, *arguments: object) -> None:
    """A program of Python's on ``count`` processes that know of each other."""
    where = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count)
    call_program(*where, program, *arguments)


def fit(config: Config, processes: int, *arguments: object, strategy: str = "fsdp2") -> Path:
    """``fit`` under a strategy on so many processes, or by one without it; gives the run's folder."""
    return call_verb("fit", config, processes, *arguments, strategy=strategy)


def call_verb(verb: str, config: Config, processes: int, *arguments: object, strategy: str = "fsdp2") -> Path:
    """A verb under a strategy on so many processes, or by one without it; gives the run's folder."""
    root = Path(config["trainer"]["default_root_dir"])
    config["trainer"]["devices"] = processes
    if processes == 1:
        outcome = run(verb, config, *arguments)
        assert outcome.status == 0, outcome.err
        return root
    config["trainer"]["strategy"] = strategy_of(strategy, processes)
    file = write_yaml(root.with_name("config.yaml"), config)
    call_program("-m", "act_lightning", verb, "--config", file, *arguments)
    return root


def strategy_of(name: str, processes: int) -> str | Config:
    """A setting of ``trainer.strategy`` for so many CPU processes: ``auto``, ``ddp``, ``fsdp1`` or ``fsdp2``."""
    if name == "fsdp1":
        layers = ["qwen2.modeling_qwen2.Qwen2DecoderLayer", "gemma3.modeling_gemma3.Gemma3DecoderLayer"]
        wrapped = {"auto_wrap_policy": [f"transformers.models.{layer}" for layer in layers]}
        return {"class_path": "tests.training.on_cpu.FSDP1", "init_args": wrapped | {"state_dict_type": "sharded"}}
    if name == "fsdp2":
        sizes = {"data_parallel_size": processes, "tensor_parallel_size": 1}
        return {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": sizes}
    return name


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model that lies in one file."""
    return load_file(folder / "model.safetensors")


def call_program(*arguments: object, status: int = 0, seconds: int = _SECONDS) -> None:
    """A program of Python's on a machine without GPU, and without network, that ends in time with this status."""
    assert_ends(start(*arguments), status, seconds)


def start(*arguments: object) -> subprocess.Popen[str]:
    """A program of Python's that goes on by itself, together with all processes it starts."""
    root = str(Path(__file__).parents[2])
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | alone, stderr=subprocess.PIPE, text=True, start_new_session=True)


def assert_ends(started: subprocess.Popen[str], status: int, seconds: int = _SECONDS) -> None:
    """Wait for what was started; after too long it is killed, with all processes it started."""
    try:
        _, printed = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    assert started.returncode == status, printed[-5000:]
