"""Four processes under FSDP2: what each injects, to the bit, and what the host's memory holds while loading."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer
from tests.training.processes import on_processes

pytestmark = pytest.mark.slow

INJECTED = """
import sys
from functools import partial
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from act_lightning.callbacks import AbilitySource
from act_lightning.callbacks.preparation import prepare
from act_lightning.channels import inventory
from act_lightning.checkpoints import CheckpointReader, identify, load_model
from act_lightning.sharding import Layout, load_sharded
from act_lightning.transfer import TransferSettings

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
moved = 0
for target in map(Path, sys.argv[1:]):
    source = AbilitySource(str(target.with_name(target.name + "-source")), ["any"])
    for dtype in (torch.float32, torch.bfloat16):
        for method in ("task_arithmetic", "ties", "dare"):
            before, whole = load_model(target, dtype), load_model(target, dtype)
            sharded = load_sharded(target, dtype, mesh, torch.device("cpu"))
            settings = TransferSettings(ratio=0.2, selection="random", method=method)
            known = inventory(whole), settings, Path("none"), 42, [identify(target).digest], target
            prepared = prepare([source], *known)
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
"""

LOADED = """
import resource, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig
from act_lightning.sharding import load_sharded

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
small, large = map(Path, sys.argv[1:3])
load_sharded(small, torch.float32, mesh, torch.device("cpu"))  # imports, and whatever else comes once
before, size = peak(), sum(file.stat().st_size for file in large.glob("*.safetensors"))
model = load_sharded(large, torch.float32, mesh, torch.device("cpu"))
grown, share = peak() - before, size / dist.get_world_size()
held = sum(parameter.to_local().nbytes for parameter in model.parameters())
assert 0.9 * share < held < 1.1 * share
assert grown < share + 2 * (64 << 20) + (32 << 20), (grown, share, size)
assert grown < 0.75 * size
dist.destroy_process_group()
"""


def test_the_injection_to_the_bit(tmp_path: Path) -> None:
    """Tied and untied, in both precisions, of methods that add, vote and draw: as one process does it."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma3_text")]
    for folder in folders:
        target = tiny_model(folder.name)
        save_model(target, tiny_tokenizer(), folder)
        save_model(sibling_of(target, seed=1), tiny_tokenizer(), folder.with_name(f"{folder.name}-source"))
    on_processes(4, INJECTED, *folders)


def test_the_host_holds_a_share_and_a_little_while_loading(tmp_path: Path) -> None:
    """Of 400 MB in float32, a quarter; beside it 64 MiB that are read, once as bytes and once as numbers."""
    large = {"vocab_size": 20_000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 4}
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "small")
    save_model(tiny_model("llama", **large), tiny_tokenizer(), tmp_path / "large")
    on_processes(4, LOADED, tmp_path / "small", tmp_path / "large")
