"""Measure the host memory that loading takes on four processes: SMALL LARGE."""

import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from act_lightning.training.sharding import load_for_fsdp2


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    small, large = map(Path, sys.argv[1:3])
    load_for_fsdp2(small, torch.float32, mesh, torch.device("cpu"))  # imports, and whatever else comes once
    before, size = peak(), sum(file.stat().st_size for file in large.glob("*.safetensors"))
    model = load_for_fsdp2(large, torch.float32, mesh, torch.device("cpu"))
    grown, share = peak() - before, size / dist.get_world_size()
    held = sum(parameter.to_local().nbytes for parameter in model.parameters())
    assert 0.9 * share < held < 1.1 * share
    assert grown < share + 2 * (64 << 20) + (32 << 20), (grown, share, size)
    assert grown < 0.75 * size
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
