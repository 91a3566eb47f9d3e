"""How fast rows become samples, against TRL's SFTTrainer on the same rows; how much is padding; how much memory.

    python benchmarks/data.py --peer .venv-trl/bin/python      # 33,000 samples of about 300 tokens, three pairs
    python benchmarks/data.py --peer .venv-trl/bin/python --samples 2000 --pairs 1      # a try

``--peer`` is a Python with ``trl`` and its own versions of everything: ``python -m venv .venv-trl``, then
``.venv-trl/bin/pip install trl``. Without it only our side is measured. Both go from a JSONL file of chats to token ids
and assistant-only labels, each in a process of its own with empty caches, in turns; their numbers of answer tokens are
compared. The tokenizer is trained here, unless ``--tokenizer`` names a folder.
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
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

MAX_LENGTH = 2048
BATCH = 16
BUDGET = 8192  # profile.tokens_per_batch
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUIET = (
    os.environ
    | {"TRANSFORMERS_VERBOSITY": "error"}
    | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
)
VERSIONS = ("torch", "transformers", "tokenizers", "datasets", "trl", "act-lightning")


def chats(count: int) -> Iterator[dict[str, Any]]:
    """Chats of 300 tokens in the mean, from some 50 to some 1,500, of words as frequent as in a language."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    for _ in range(count):
        length = int(draw.lognormvariate(5.33, 0.5))
        text = draw.choices(words, weights, k=length)
        cut = length // 3
        yield {
            "messages": [
                {"role": "user", "content": " ".join(text[:cut]) + "?"},
                {"role": "assistant", "content": " ".join(text[cut:]) + "."},
            ]
        }


def make_tokenizer(rows: Path, folder: Path) -> None:
    """A byte-level BPE tokenizer of 16,384 entries with ChatML's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_384, special_tokens=special, initial_alphabet=alphabet)
    with rows.open(encoding="utf-8") as lines:
        first = [json.loads(line)["messages"] for line in islice(lines, 2000)]
    tokenizer.train_from_iterator([turn["content"] for turns in first for turn in turns], trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=special[1:2]
    )
    whole.chat_template = CHATML
    whole.save_pretrained(folder)


def ours(rows: Path, tokenizer: Path, cache: Path, num_proc: int | None) -> dict[str, Any]:
    """From the file to samples on disk, their fingerprint included."""
    from act_lightning.checkpoints.models import load_tokenizer
    from act_lightning.data.ability_data import AbilityData
    from act_lightning.data.cache import lengths, tokenize_ability

    loaded = load_tokenizer(tokenizer)
    started, used = time.perf_counter(), processor_seconds()
    ability = tokenize_ability("rows", AbilityData(str(rows)), loaded, "chat", MAX_LENGTH, num_proc, str(cache))
    seconds, used = time.perf_counter() - started, processor_seconds() - used
    started = time.perf_counter()
    tokenize_ability("rows", AbilityData(str(rows)), loaded, "chat", MAX_LENGTH, num_proc, str(cache))
    of_each = lengths(ability.samples)
    found = {"seconds": seconds, "cpu": used, "again": time.perf_counter() - started, "answers": ability.tokens}
    return found | {"samples": len(of_each), "tokens": sum(of_each), "waste": waste(of_each)}


def waste(lengths: list[int]) -> dict[str, float]:
    """The share of padding in micro-batches of training and in batches of profiling, before and after."""
    from act_lightning.data.batches import MAX_PADDING, token_budget_batches
    from act_lightning.data.loaders import MicroBatchSampler

    at_random = MicroBatchSampler(len(lengths), BATCH, seed=42).composition()
    alike = MicroBatchSampler(len(lengths), BATCH, seed=42, lengths=lengths).composition()
    compositions = {
        f"training, {BATCH} rows at random, padded (before)": at_random,
        f"training, {BATCH} rows of like length, padded (models that cannot be packed)": alike,
        f"profiling and validation, {BUDGET} tokens, grouped (before)": token_budget_batches(lengths, BUDGET),
        f"profiling and validation, {BUDGET} tokens, bounded": token_budget_batches(lengths, BUDGET, MAX_PADDING),
    }
    room = {
        name: sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
        for name, batches in compositions.items()
    }
    return {name: 1 - sum(lengths) / size for name, size in room.items()} | {"packed": 0.0}


def trl(rows: Path, tokenizer: Path, cache: Path, num_proc: int | None) -> dict[str, Any]:
    """From the file to the data set that an SFTTrainer trains on."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
    from trl import SFTConfig, SFTTrainer

    class Timed(SFTTrainer):
        """Times what prepares the rows, and nothing else of a Trainer."""

        def _prepare_dataset(self, *arguments: object, **named: object) -> object:
            started, used = time.perf_counter(), processor_seconds()
            prepared = super()._prepare_dataset(*arguments, **named)
            self.seconds, self.cpu = time.perf_counter() - started, processor_seconds() - used
            return prepared

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(loaded), **sizes))
    settings = {
        "assistant_only_loss": True,
        "max_length": MAX_LENGTH,
        "dataset_num_proc": num_proc,
        "report_to": "none",
    }
    arguments = SFTConfig(output_dir=str(cache / "run"), use_cpu=True, bf16=False, **settings)
    started, used = time.perf_counter(), processor_seconds()
    data = load_dataset("json", data_files=str(rows), split="train", cache_dir=str(cache))
    read, read_cpu = time.perf_counter() - started, processor_seconds() - used
    trainer = Timed(model, arguments, train_dataset=data, processing_class=loaded)
    done = trainer.train_dataset
    tokens, answers = sum(map(len, done["input_ids"])), sum(label != -100 for row in done["labels"] for label in row)
    found = {"seconds": read + trainer.seconds, "cpu": read_cpu + trainer.cpu}
    return found | {"samples": len(done), "tokens": tokens, "answers": answers}


def processor_seconds() -> float:
    """What this process and its ended children have used, on all cores: other work on the machine hardly changes it."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def measure(side: str, python: str, rows: Path, tokenizer: Path, num_proc: int | None) -> dict[str, Any]:
    """One side in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        command = [python, __file__, "--side", side, "--rows", rows, "--tokenizer", tokenizer, "--cache", cache]
        command += [] if num_proc is None else ["--num-proc", num_proc]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, env=QUIET, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_side(arguments: argparse.Namespace) -> None:
    side = {"ours": ours, "trl": trl}[arguments.side]
    found = side(arguments.rows, arguments.tokenizer, arguments.cache, arguments.num_proc)
    peaks = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    known = {name: version(name) for name in VERSIONS if _installed(name)}
    print(json.dumps(found | {"main MiB": peaks[0], "largest child MiB": peaks[1], "versions": known}))


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ImportError:
        return False


def compare(arguments: argparse.Namespace, rows: Path, tokenizer: Path) -> None:
    """Pairs in turns, first with each side's default number of processes, then with one each."""
    for num_proc in (None, 1):
        print(f"\nprocesses: {'each side as by default' if num_proc is None else num_proc}")
        sides = {"ours": sys.executable} | ({"trl": arguments.peer} if arguments.peer else {})
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(arguments.pairs):
            for side, python in sides.items():
                found[side].append(measure(side, python, rows, tokenizer, num_proc))
                show(side, found[side][-1])
        if arguments.peer:
            for what in ("seconds", "cpu"):
                ratios = [theirs[what] / mine[what] for mine, theirs in zip(*found.values(), strict=True)]
                pairs = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"theirs over ours, {what}: {statistics.median(ratios):.2f} (pairs: {pairs})")
            same = {one["answers"] for side in found.values() for one in side}
            print(f"answer tokens are {'the same' if len(same) == 1 else f'DIFFERENT: {same}'} on both sides")
    print("\npadding:", *(f"  {share:6.2%}  {name}" for name, share in found["ours"][0]["waste"].items()), sep="\n")
    print("\nversions:", {side: of_side[0]["versions"] for side, of_side in found.items()})


def show(side: str, found: dict[str, Any]) -> None:
    speed = f"{found['tokens'] / found['seconds']:11,.0f} tokens/s"
    memory = f"peak {found['main MiB']} MiB, its largest child {found['largest child MiB']} MiB"
    again = f"; found again in {found['again']:.2f} s" if "again" in found else ""
    cpu = f"{found['cpu']:.1f} s of CPU"
    print(
        f"  {side:4} {found['seconds']:7.1f} s {speed}  {found['samples']} samples; {cpu}; {memory}{again}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python that has trl")
    parser.add_argument("--samples", type=int, default=33_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="a folder; by default one is trained")
    for name, kind in {"--side": str, "--rows": Path, "--cache": Path, "--num-proc": int}.items():
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments)
        return
    print(f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}")
    print("python", *sys.argv)
    with tempfile.TemporaryDirectory() as place:
        rows, tokenizer = Path(place, "rows.jsonl"), arguments.tokenizer or Path(place, "tokenizer")
        rows.write_text("".join(json.dumps(row) + "\n" for row in chats(arguments.samples)), encoding="utf-8")
        if not arguments.tokenizer:
            make_tokenizer(rows, tokenizer)
        compare(arguments, rows, tokenizer)


if __name__ == "__main__":
    main()
