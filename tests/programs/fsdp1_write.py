"""Write to parameters unit by unit under FSDP1: FOLDER…."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from act_lightning.checkpoints.models import load_model
from act_lightning.training.sharding import Layout


class Wrapped(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.net = model

    def forward(self, ids):
        return self.net(input_ids=ids).logits


def main() -> None:
    dist.init_process_group("gloo")
    for folder in map(Path, sys.argv[1:]):
        for original in (True, False):
            expected, model = load_model(folder, torch.float32), load_model(folder, torch.float32)
            layers = {type(m) for m in model.modules() if type(m).__name__ in set(model._no_split_modules)}
            policy = partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)
            device = torch.device("cpu")
            root = FullyShardedDataParallel(
                Wrapped(model), use_orig_params=original, auto_wrap_policy=policy, device_id=device
            )
            layout, parameters = Layout(model, root), dict(expected.named_parameters())
            with torch.no_grad():
                for name, part in layout.parts(list(parameters)):
                    change = torch.randn(part.values.shape, generator=torch.Generator().manual_seed(len(name)))
                    assert part.first_row == 0 and part.values.shape == parameters[name].shape, name
                    part.values.add_(change)
                    parameters[name].add_(change)
            for name, parameter in parameters.items():
                assert torch.equal(layout.whole(name), parameter), name
            ids = torch.arange(5, 17).view(1, -1)
            torch.testing.assert_close(root(ids), expected(input_ids=ids).logits)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
