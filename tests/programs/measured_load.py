"""How much memory a pair takes that all processes have loaded, in multiples of its size: OUT FOLDER…."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from act_lightning.checkpoints.models import resolve_dtype
from act_lightning.checkpoints.reader import load_on_device


def proportional_memory() -> int:
    """Bytes of this process, of pages that several processes map its share."""
    (line,) = (line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    dist.init_process_group("gloo")
    folders = [Path(name) for name in sys.argv[2:]]
    load_on_device(folders[0], torch.float32, torch.device("cpu"))  # whatever a first load leaves in memory
    dist.barrier()
    before = proportional_memory()
    models = [load_on_device(folder, resolve_dtype("auto", folder), torch.device("cpu")) for folder in folders]
    dist.barrier()  # all hold all of them
    growth = torch.tensor(float(proportional_memory() - before))
    dist.all_reduce(growth)
    size = sum(parameter.nbytes for model in models for parameter in model.parameters())
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(float(growth) / size))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
