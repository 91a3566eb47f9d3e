"""On paper: memory, traffic and hours for models of 7 to 235 billion parameters on 1 to 512 GPUs.

    python -m benchmarks.scale                # prints the table that docs/scale.md shows

Memory is the forecast of ``plan`` for ``configs/strategy/fsdp2.yaml`` (bf16-mixed, checkpointing, rows of 2,048
tokens), everything else arithmetic. Assumed are GPUs of 80 GB that reach ``SPEED``, links of ``LINK`` a GPU between
nodes, disks of ``DISK`` a node, eight GPUs a node, and the paper's 22 abilities of 1,500 samples with ``TOKENS`` tokens
each, which profiling reads and one epoch trains on. Nothing here was measured: no such machine was at hand.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.models import meta_model
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from act_lightning.planning.checks import Run
from act_lightning.planning.forecast import memory_forecast

GPU, SPEED, LINK, DISK = 80e9, 400e12, 50e9, 5e9  # bytes, operations a second, bytes a second
TOKENS, SAMPLES, ROW, GPUS_A_NODE, PAPER_UPDATE = 300, 22 * 1500, 2048, 8, 16
COUNTS = (1, 8, 64, 512)
BFLOAT16, FLOAT32 = 2, 4


class Shape(NamedTuple):
    """A model: its config, and how many of its parameters a token meets."""

    architecture: str
    settings: dict[str, Any]
    active: float = 1.0


SHAPES = {
    "Qwen2.5-7B": Shape(
        "qwen2",
        {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    ),
    "Qwen2.5-32B": Shape(
        "qwen2",
        {
            "vocab_size": 152_064,
            "hidden_size": 5120,
            "intermediate_size": 27_648,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
        },
    ),
    "Llama-3.1-70B": Shape(
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 8192,
            "intermediate_size": 28_672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
    "Qwen3-235B-A22B": Shape(
        "qwen3_moe",
        {
            "vocab_size": 151_936,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
        active=22 / 235,
    ),
}


@dataclass(frozen=True)
class Line:
    """One model on so many GPUs.

    Attributes:
        placement: Of profiling: resident where the pair fits.
        profiling: Bytes of a GPU.
        training: Bytes of a GPU.
        read: Bytes that profiling reads from a node's disk.
        exchanged: Bytes that a GPU receives and sends for one micro-batch of fine-tuning.
        profile_hours: Of all samples, the longer of computing and reading.
        fit_hours: Of one epoch, the longer of computing and exchanging, where memory suffices.
    """

    model: str
    gpus: int
    placement: str
    profiling: float
    training: float
    read: float
    exchanged: float
    profile_hours: float
    fit_hours: float


def mends(at: Line, enough: int) -> str:
    """What breaks first, and the setting that mends it; ``enough`` GPUs have the memory to train."""
    if at.training > GPU:
        alone = ", or `configs/strategy/single_gpu_bf16.yaml`" if at.gpus == 1 and at.model.endswith("7B") else ""
        return f"memory of training: {enough} GPUs{alone}"
    if at.gpus > PAPER_UPDATE:
        fewer = f"{PAPER_UPDATE} GPUs, or " if enough <= PAPER_UPDATE else ""
        return f"the update, of {at.gpus} samples: {fewer}a learning rate for it"
    return "nothing"


def _run(folder: Path, gpus: int, placement: str) -> Run:
    strategy = {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": gpus, "tensor_parallel_size": 1},
    }
    trainer = {
        "accelerator": "gpu",
        "devices": min(gpus, GPUS_A_NODE),
        "num_nodes": max(1, gpus // GPUS_A_NODE),
        "precision": "bf16-mixed",
        "strategy": strategy,
    }
    model = AbilityTransferModule(str(folder), dtype="bfloat16", gradient_checkpointing=True)
    profiler = ActivationDifferenceProfiler([AbilitySource(str(folder), ["a"], name="s")], placement=placement)
    return Run(model, AbilityDataModule(max_length=ROW), profiler, MaskedTaskVectorInjection(), trainer)


def line(model: str, gpus: int, folder: Path, channels: ChannelInventory) -> Line:
    """Forecast and arithmetic for one model on so many GPUs."""
    size, active = channels.parameters, channels.parameters * SHAPES[model].active
    placement, memory = "resident", memory_forecast(_run(folder, gpus, "resident"), channels, folder, "fit")
    if memory["profiling"] > GPU:
        placement, memory = "layerwise", memory_forecast(_run(folder, gpus, "layerwise"), channels, folder, "fit")
    tokens, nodes = SAMPLES * TOKENS, max(1, gpus // GPUS_A_NODE)
    read = 2 * size * BFLOAT16  # each node once: its processes share what the operating system keeps of the files
    computed = 2 * 2 * active * tokens / (SPEED * gpus)
    moved = (gpus - 1) / gpus * size  # of a parameter: gathered twice, its gradient reduced in float32
    exchanged = moved * (2 * BFLOAT16 + FLOAT32) if gpus > 1 else 0.0
    micro_batches = SAMPLES / min(gpus, SAMPLES)
    learned = (4 / 3) * 6 * active * tokens / (SPEED * gpus)
    link = LINK if nodes > 1 else 9 * LINK  # inside a node, NVLink
    return Line(
        model,
        gpus,
        placement,
        memory["profiling"],
        memory["training"],
        read,
        exchanged,
        max(computed, read / DISK) / 3600,
        max(learned, micro_batches * exchanged / link) / 3600,
    )


def table() -> str:
    """All lines as Markdown."""
    columns = ("model", "GPUs", "profiling", "GB", "hours", "fine-tuning: GB", "GB exchanged a micro-batch", "hours")
    lines = [f"| {' | '.join(columns)} | breaks first, and what mends it |", "|---" * (len(columns) + 1) + "|"]
    with tempfile.TemporaryDirectory() as root:
        for model, shape in SHAPES.items():
            folder = Path(root, model)
            config = AutoConfig.for_model(shape.architecture, tie_word_embeddings=False, **shape.settings)
            config.save_pretrained(folder)
            channels = inventory(meta_model(folder))
            found = {gpus: line(model, gpus, folder, channels) for gpus in (2**power for power in range(10))}
            enough = next(gpus for gpus, at in found.items() if at.training <= GPU)
            for gpus in COUNTS:
                at = found[gpus]
                fits = at.training <= GPU
                cells = [model, str(gpus), at.placement, f"{at.profiling / 1e9:.0f}", f"{at.profile_hours:.2g}"]
                cells += [f"{at.training / 1e9:.0f}", f"{at.exchanged / 1e9:.0f}"]
                cells += [f"{at.fit_hours:.2g}" if fits else "–", mends(at, enough)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
