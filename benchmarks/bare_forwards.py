"""What profiling costs over two bare forward passes on the same batches: resident and layerwise.

    python benchmarks/profile.py                                        # SmolLM2-135M's shape, float32, on the CPU
    python benchmarks/profile.py --dtype bfloat16
    python benchmarks/profile.py --experts 32 --layers 2                # a mixture of experts, 8 of them for a token
    python benchmarks/profile.py --device cuda --dtype bfloat16 --tokens 8192 --batches 8

Two models with random weights, no hooks, against the pair as the profiler runs it, in turns in one process. On a CPU
the time is the processor's (threads of this process together), for a machine that is shared; on a GPU the clock's. A
bare mixture runs its experts as the profiler has them run, grouped by expert; in another row as transformers chooses.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3MoeConfig

from act_lightning.channels import ChannelInventory, inventory
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.layerwise import LayerwiseModel, LayerwisePair
from act_lightning.profiling.offload import DiskWeights
from act_lightning.profiling.pair import ChunkBatch, Pair, ResidentPair
from act_lightning.scorers import Activation

SHAPE = {  # SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
MIXTURE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
}


def shape(layers: int, experts: int) -> PretrainedConfig:
    """The config of the models; a mixture has Qwen3-30B-A3B's widths and experts for a token, and as many as asked."""
    if not experts:
        return LlamaConfig(**SHAPE, num_hidden_layers=layers)
    return Qwen3MoeConfig(**(SHAPE | MIXTURE), num_experts=experts, num_hidden_layers=layers)


def build(root: Path, dtype: torch.dtype, config: PretrainedConfig) -> list[Path]:
    """Two siblings on disk."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name in ("target", "source"):
        model.save_pretrained(root / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return [root / "target", root / "source"]


def bare(models: list[nn.Module], batches: list[dict[str, Tensor]], answers: slice | None = None) -> None:
    with torch.no_grad():
        for batch in batches:
            ids = batch["input_ids"]
            keep = {} if answers is None else {"logits_to_keep": torch.arange(ids.shape[1], device=ids.device)[answers]}
            for model in models:
                model(input_ids=ids, use_cache=False, **keep)


@contextmanager
def experts_of(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Have a mixture run its experts in another implementation."""
    config, previous = model.config, model.config._experts_implementation
    config._experts_implementation = implementation
    try:
        yield
    finally:
        config._experts_implementation = previous


def profiled(pair: Pair, place: Path, channels: ChannelInventory, batches: list[dict[str, Tensor]]) -> None:
    means = ChannelMeans(channels, Activation()).to(batches[0]["input_ids"].device)
    for _ in pair.run(map(ChunkBatch, batches), [(place, means)]):
        pass
    means.total.sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--experts", type=int, default=0, help="of a layer; 0 for a dense model")
    parser.add_argument("--tokens", type=int, default=128, help="of a batch")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    device, dtype = torch.device(asked.device), getattr(torch, asked.dtype)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places = build(Path(folder), dtype, shape(asked.layers, asked.experts))
        models = [AutoModelForCausalLM.from_pretrained(one, dtype=dtype).eval().to(device) for one in places]
        ids = torch.randint(0, SHAPE["vocab_size"], (asked.batches, 1, asked.tokens), device=device)
        half = slice(asked.tokens // 2, None)
        full = [{"input_ids": row, "labels": row} for row in ids]
        answers = [{"input_ids": row, "labels": torch.full_like(row, -100)} for row in ids]
        for batch in answers:
            batch["labels"][:, half] = batch["input_ids"][:, half]
        channels = inventory(models[0])
        resident = ResidentPair(models[0], {places[1]: models[1]}, device)
        target, source = (
            stack.enter_context(LayerwiseModel(DiskWeights(one, dtype, device), device)) for one in places
        )
        layerwise = LayerwisePair(target, {places[1]: source}, device, ids.numel())
        kinds: dict[str, Callable[[], None]] = {
            "bare, all logits": lambda: bare(models, full),
            "bare, logits of the second half": lambda: bare(models, full, half),
            "resident, all tokens answers": lambda: profiled(resident, places[1], channels, full),
            "resident, half of them": lambda: profiled(resident, places[1], channels, answers),
            "layerwise, all tokens answers": lambda: profiled(layerwise, places[1], channels, full),
        }
        if asked.experts:

            def bare_grouped(answers: slice | None = None) -> None:
                with ExitStack() as experts:
                    for model in models:
                        experts.enter_context(experts_of(model, "act_lightning"))
                    bare(models, full, answers)

            kinds["bare, as transformers runs experts"] = kinds["bare, all logits"]
            kinds["bare, all logits"] = bare_grouped
            kinds["bare, logits of the second half"] = lambda: bare_grouped(half)
        bare(models, full[:1])  # warm
        report({name: [] for name in kinds}, kinds, device, asked)


def report(
    times: dict[str, list[float]], kinds: dict[str, Callable[[], None]], device: torch.device, asked: argparse.Namespace
) -> None:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(asked.rounds):
        for name, work in kinds.items():
            start = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(clock() - start)
    print(f"{platform.processor() or platform.machine()}, {device}, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, {torch.get_num_threads()} threads; {vars(asked)}")
    first = next(iter(times.values()))
    for name, found in times.items():
        best, median = min(found), statistics.median(found)
        ratios = f"{min(first) / best:.3f} (best), {statistics.median(first) / median:.3f} (median)"
        print(f"{name:34} {best:7.2f} s best, {median:7.2f} s median; throughput over bare {ratios}")
