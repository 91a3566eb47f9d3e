"""Every process holds its own rows of the same model: FOLDER…."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from act_lightning.checkpoints.models import load_model
from act_lightning.errors import ActError
from act_lightning.training.sharding import Layout, load_for_fsdp2


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for folder in map(Path, sys.argv[1:]):
        for dtype in (torch.float32, torch.bfloat16):
            expected = load_model(folder, dtype)
            model = load_for_fsdp2(folder, dtype, mesh, torch.device("cpu"))
            assert model.generation_config.eos_token_id == expected.generation_config.eos_token_id == [2, 7]
            layout, names = Layout(model), dict(model.named_parameters(remove_duplicate=False))
            parameters = dict(expected.named_parameters(remove_duplicate=False))
            assert names.keys() == parameters.keys()
            assert len(set(names.values())) == len(set(parameters.values())), "ties are kept"
            for name, parameter in parameters.items():
                assert torch.equal(layout.whole(name), parameter) and layout.whole(name).dtype == dtype, name
                assert names[name].to_local().numel() < parameter.numel(), name
            for name, buffer in expected.named_buffers():
                found = model.get_buffer(name)
                assert torch.equal(found, buffer) and found.dtype == buffer.dtype, name
            ids = torch.arange(5, 17).view(1, -1)
            with torch.no_grad():
                assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
            assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
            gathered = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
            assert gathered, "a backward pass needs them"
            with pytest.raises(ActError, match="must be sharded as the module around it"):
                layout.whole(gathered[0])
            for name, part in Layout(model).parts(gathered):
                part.values.zero_()
                assert not Layout(model).whole(name).any(), name
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
