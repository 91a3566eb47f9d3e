"""Inject on four processes, to the bit: FOLDER…."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from act_lightning.callbacks import AbilitySource
from act_lightning.channels import inventory
from act_lightning.checkpoints.models import load_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import identify
from act_lightning.training.sharding import Layout, load_for_fsdp2
from act_lightning.transfer.preparation import TransferPlan, prepare
from act_lightning.transfer.settings import TransferSettings


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    moved = 0
    for target in map(Path, sys.argv[1:]):
        source = AbilitySource(str(target.with_name(target.name + "-source")), ["any"])
        for dtype in (torch.float32, torch.bfloat16):
            for method in ("task_arithmetic", "ties", "dare"):
                before, whole = load_model(target, dtype), load_model(target, dtype)
                sharded = load_for_fsdp2(target, dtype, mesh, torch.device("cpu"))
                settings = TransferSettings(ratio=0.2, selection="random", method=method)
                digests = [identify(target).digest]
                prepared = prepare(TransferPlan(settings, [source], inventory(whole), digests, 42, target))
                for model in (whole, sharded):
                    with prepared.injection() as injection, CheckpointReader(target) as reader, torch.no_grad():
                        for name, part in Layout(model).parts(injection.names):
                            injection.apply_(name, part.values, part.first_row, partial(reader.rows, name))
                layout = Layout(sharded)
                for name, parameter in whole.named_parameters():
                    assert torch.equal(layout.whole(name), parameter), (target.name, dtype, method, name)
                    moved += int((parameter != before.get_parameter(name)).sum())
    assert moved
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
