"""FSDP1, which flattens parameters, as torch runs it on two CPU processes: written to and gathered unit by unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_model, tiny_model, tiny_tokenizer
from tests.training.processes import on_processes

pytestmark = pytest.mark.slow

WRITTEN = """
import sys
from functools import partial
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from act_lightning.checkpoints import load_model
from act_lightning.sharding import Layout

class Wrapped(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.net = model

    def forward(self, ids):
        return self.net(input_ids=ids).logits

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
"""


LOADED = """
import sys
from functools import partial
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from act_lightning.checkpoints import load_model
from act_lightning.sharding import Layout, load_by_units
from tests.memory import PeakMemory

dist.init_process_group("gloo")
for folder in map(Path, sys.argv[1:]):
    expected, device = load_model(folder, torch.float32), torch.device("cpu")
    parameters = dict(expected.named_parameters())
    with PeakMemory() as counted:
        model, fill = load_by_units(folder, torch.float32, device)
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
"""


def test_no_process_holds_more_than_its_part_and_a_unit(tmp_path: Path) -> None:
    """A unit, and the flat copy that is sharded; untied and tied."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma3_text")]
    for folder in folders:
        save_model(tiny_model(folder.name, num_hidden_layers=16), tiny_tokenizer(), folder)
    on_processes(2, LOADED, *folders)


def test_what_is_written_unit_by_unit_stays(tmp_path: Path) -> None:
    """With biases, tied, and with matrices stored the other way round."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma2", "gpt2")]
    for folder in folders:
        save_model(tiny_model(folder.name), tiny_tokenizer(), folder)
    on_processes(2, WRITTEN, *folders)
