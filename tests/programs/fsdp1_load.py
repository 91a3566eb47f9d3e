"""Load unit by unit under FSDP1 and measure the peak of memory: FOLDER…."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from act_lightning.checkpoints.models import load_model
from act_lightning.training.sharding import Layout, load_for_fsdp1
from tests.memory import PeakMemory


def main() -> None:
    dist.init_process_group("gloo")
    for folder in map(Path, sys.argv[1:]):
        expected, device = load_model(folder, torch.float32), torch.device("cpu")
        parameters = dict(expected.named_parameters())
        with PeakMemory() as counted:
            model, fill = load_for_fsdp1(folder, torch.float32, device)
            layers = {type(m) for m in model.modules() if type(m).__name__ in set(model._no_split_modules)}
            policy = partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)
            root = FullyShardedDataParallel(
                model, use_orig_params=True, auto_wrap_policy=policy, device_id=device, param_init_fn=fill
            )
        whole = sum(parameter.nbytes for parameter in parameters.values())
        layer = sum(parameter.nbytes for parameter in expected.model.layers[0].parameters())
        unit = max(layer, whole - len(expected.model.layers) * layer)
        assert counted.peak < min(whole / 2 + 2.2 * unit, 0.8 * whole), (folder.name, counted.peak, whole, unit)
        layout = Layout(model, root)
        for name, parameter in parameters.items():
            assert torch.equal(layout.whole(name), parameter), name
        ids = torch.arange(5, 17).view(1, -1)
        torch.testing.assert_close(root(input_ids=ids).logits, expected(input_ids=ids).logits)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
