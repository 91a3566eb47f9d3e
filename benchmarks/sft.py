"""Fine-tuning on packed samples of mixed lengths: tokens a second and memory against TRL's SFTTrainer.

    python benchmarks/sft.py --peer .venv-trl/bin/python            # a model of 17 M parameters, on the CPU
    python benchmarks/sft.py --peer .venv-trl/bin/python --device cuda --shape qwen2.5-1.5b --checkpointing

``--peer`` is a Python with ``trl`` (``python -m venv .venv-trl``, ``.venv-trl/bin/pip install trl``). Both sides train
the same random weights on the same batches in the same order and precision, by the same attention and Adam, each in a
process of its own, in turns; their losses are compared. A batch is ``--rows`` samples in one row without padding, of
which the last two thirds are answers; an update has two. The first update warms up, and is not timed. ``mfu`` is the
share of ``--peak`` (in 10¹² operations a second; 989 for an H100 in bfloat16) that 6 operations a parameter and token
make.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RATE, ACCUMULATE = 1.0e-4, 2
LLAMA = {"architecture": "llama", "tie_word_embeddings": True, "num_attention_heads": 6, "num_key_value_heads": 2}
QWEN = {"architecture": "qwen2", "vocab_size": 151_936, "num_hidden_layers": 28, "max_position_embeddings": 32_768}
SHAPES: dict[str, dict[str, Any]] = {
    "17m": LLAMA
    | {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "head_dim": 64},
    "135m": LLAMA  # SmolLM2-135M
    | {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64}
    | {"num_attention_heads": 9, "num_key_value_heads": 3},
    "qwen2.5-1.5b": QWEN
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
    | {"tie_word_embeddings": True},
    "qwen2.5-7b": QWEN
    | {"hidden_size": 3584, "intermediate_size": 18_944, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152_064, "tie_word_embeddings": False},
}
Samples = list[tuple[list[int], list[int]]]


def make_model(shape: str, folder: Path) -> None:
    """Random weights of that shape, the same each time, in a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(SHAPES[shape])
    config = AutoConfig.for_model(sizes.pop("architecture"), bos_token_id=None, eos_token_id=0, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def samples(count: int, vocabulary: int) -> Samples:
    """Token ids and labels of 150 tokens in the mean, from some 30 to some 700; two thirds are answers."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        length = min(2048, max(8, int(draw.lognormvariate(4.85, 0.6))))
        ids = [draw.randrange(1, vocabulary) for _ in range(length)]
        cut = length // 3
        found.append((ids, [-100] * cut + ids[cut:]))
    return found


def timed(steps: list[float], losses: list[float], rows: Samples, arguments: argparse.Namespace) -> dict[str, Any]:
    """What both sides report: rates leave out the first update."""
    update = arguments.rows * arguments.accumulate
    tokens = sum(len(ids) for ids, _ in rows[update:])
    if arguments.device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - arguments.before
    seconds = steps[-1] - steps[0]
    return {"tokens/s": tokens / seconds, "seconds": seconds, "peak": memory, "losses": losses}


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(folder: Path, rows: Samples, arguments: argparse.Namespace) -> dict[str, Any]:
    """One epoch of the package's module under Lightning's Trainer."""
    import lightning as L
    from torch.utils.data import DataLoader

    from act_lightning.data.batches import pack
    from act_lightning.data.labels import Sample
    from act_lightning.module import AbilityTransferModule

    steps, losses = [], []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step > len(steps):
                steps.append(now(arguments.device))
                losses.append(float(trainer.callback_metrics["train_loss"]))

    each = [Sample(torch.tensor(ids), torch.tensor(labels)) for ids, labels in rows]
    batches = [pack(each[start : start + arguments.rows]) for start in range(0, len(each), arguments.rows)]
    module = AbilityTransferModule(
        str(folder),
        learning_rate=RATE,
        gradient_checkpointing=arguments.checkpointing,
        attention=arguments.attention,
        compile=arguments.compile,
        optimizer=arguments.optimizer,
    )
    trainer = L.Trainer(
        accelerator="gpu" if arguments.device == "cuda" else "cpu",
        devices=1,
        strategy=arguments.strategy,
        precision=arguments.precision,
        max_epochs=1,
        accumulate_grad_batches=arguments.accumulate,
        callbacks=[Watch()],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None, collate_fn=None)  # type: ignore[arg-type]
    arguments.before = resident()
    trainer.fit(module, loader)
    return timed(steps, losses, rows, arguments)


def trl(folder: Path, rows: Samples, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same under SFTTrainer, whose collator packs a batch into a row without padding."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    steps: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            steps.append(now(arguments.device))

    from tokenizers import Tokenizer, models

    nothing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0})), pad_token="<pad>")
    nothing.eos_token = "<pad>"
    attention = None if arguments.attention == "auto" else arguments.attention
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    settings = SFTConfig(
        output_dir=str(folder.parent / "run"),
        per_device_train_batch_size=arguments.rows,
        gradient_accumulation_steps=arguments.accumulate,
        gradient_checkpointing=arguments.checkpointing,
        padding_free=True,
        max_length=None,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=arguments.device == "cpu",
        bf16=arguments.precision == "bf16-mixed",
        disable_tqdm=True,
        torch_compile=arguments.compile,
        shuffle_dataset=False,
        eos_token="<pad>",
    )
    data = Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]})
    trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=nothing, callbacks=[Watch()])
    arguments.before = resident()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return timed(steps, losses, rows, arguments)


def run_side(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    rows = samples(arguments.samples, SHAPES[arguments.shape]["vocab_size"])
    found = {"ours": ours, "trl": trl}[arguments.side](arguments.folder, rows, arguments)
    names = ("torch", "transformers", "lightning", "trl", "act-lightning")
    print(json.dumps(found | {"versions": {name: version(name) for name in names if _installed(name)}}))


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ImportError:
        return False


def measure(side: str, python: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own."""
    names = ("shape", "device", "precision", "attention", "samples", "rows", "threads")
    passed = [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]
    switches = [f"--{name}" for name in ("checkpointing", "compile") if getattr(arguments, name)]
    command = [python, __file__, "--side", side, "--folder", str(folder), *passed, *switches]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=quiet, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parameters(folder: Path) -> int:
    """How many a token meets: without the embedding, unless it is the head."""
    from act_lightning.callbacks.throughput import FlopCount
    from act_lightning.checkpoints.models import load_config

    count = FlopCount.of(load_config(folder))
    return count.body + count.head


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    sides = {"ours": sys.executable} | ({"trl": arguments.peer} if arguments.peer else {})
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(arguments.pairs):
        for side, python in sides.items():
            one = measure(side, python, folder, arguments)
            found[side].append(one)
            rate = one["tokens/s"]
            share = f", mfu {6 * parameters(folder) * rate / arguments.peak / 1e12:.1%}" if arguments.peak else ""
            print(f"  {side:4} {rate:9,.0f} tokens/s, peak {one['peak'] / 2**20:,.0f} MiB{share}", flush=True)
    print("losses:", {side: [round(loss, 4) for loss in of[0]["losses"]] for side, of in found.items()})
    if arguments.peer:
        mine, theirs = found["ours"], found["trl"]
        ratios = [one["tokens/s"] / other["tokens/s"] for one, other in zip(mine, theirs, strict=True)]
        memory = [one["peak"] / other["peak"] for one, other in zip(mine, theirs, strict=True)]
        apart = max(abs(a - b) for a, b in zip(mine[0]["losses"], theirs[0]["losses"], strict=True))
        pairs = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"ours is {statistics.median(ratios):.2f} times as fast (pairs: {pairs}),", end=" ")
        print(f"with {statistics.median(memory):.2f} of the memory; losses differ by {apart:.1e} at most")
    print("versions:", {side: of[0]["versions"] for side, of in found.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python that has trl")
    parser.add_argument("--shape", choices=SHAPES, default="17m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), help="32-true on a CPU, else bf16-mixed")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--rows", type=int, default=4, help="samples in a packed row")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=float, default=0.0, help="10¹² operations a second that the device can do")
    parser.set_defaults(accumulate=ACCUMULATE, optimizer="adam", strategy="auto")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or ("32-true" if arguments.device == "cpu" else "bf16-mixed")
    if arguments.side:
        run_side(arguments)
        return
    print(f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}")
    print("python", *sys.argv)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        make_model(arguments.shape, folder)
        compare(arguments, folder)


if __name__ == "__main__":
    main()
