"""What a point of a sweep costs beside its evaluation: selecting, applying and reverting, by method.

    python benchmarks/sweep.py --size 60M --items 24 --methods act,task_arithmetic,ties,dare,random

A random Llama and a sibling of it, and two sets of numbers, generated or (``--kind exact``) teacher-forced; the sweep
runs as users run it, and times the parts of every point itself, with ``--processor`` by processor time, for a machine
that is busy. Models are random, so answers are never right: only seconds are looked at. The overhead is that beside an
evaluation of ``EVALUATED`` items, for which that of ``--items`` is scaled.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from act_lightning.cli import main as act_lightning
from act_lightning.sweep import runner

SIZES = {  # hidden, MLP, layers, heads, key-value heads
    "3M": (128, 352, 4, 4, 2),
    "60M": (576, 1536, 12, 9, 3),
    "135M": (576, 1536, 30, 9, 3),
}
VOCABULARY = 32000
EVALUATED = 400  # items of each of the two sets, as in the quickstart
PARTS = ("selecting", "applying", "reverting", "evaluating")


def main() -> None:
    options = _options()
    if options.processor:
        runner.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = _config(root, options)
        arguments = ["--sweep.scales", "0.4", "--sweep.ratios", options.ratios, "--sweep.methods", options.methods]
        if act_lightning(["sweep", "--config", str(config), *arguments]):
            raise SystemExit("the sweep failed")
        with (root / "run" / "sweep" / "results.csv").open(encoding="utf-8") as file:
            _print(list(csv.DictReader(file)), EVALUATED / options.items)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="60M")
    parser.add_argument("--items", type=int, default=24, help="items of the evaluation set")
    parser.add_argument("--kind", choices=("number", "exact"), default="number")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--processor", action="store_true", help="processor time")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens generated for each item")
    parser.add_argument("--ratios", default="0.01,0.05,0.1")
    parser.add_argument("--methods", default="act,task_arithmetic,ties,dare,random")
    parser.add_argument("--accelerator", default="cpu")
    return parser.parse_args()


def _config(root: Path, options: argparse.Namespace) -> Path:
    """The models, their tokenizer, samples and questions, and a config that names them."""
    torch.manual_seed(0)
    words = {f"w{number}": number for number in range(VOCABULARY - 2)} | {
        "<pad>": VOCABULARY - 2,
        "<end>": VOCABULARY - 1,
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
    for name, moved in (("target", 0.0), ("source", 0.02)):
        torch.manual_seed(1)
        model = LlamaForCausalLM(_llama(options.size)).to(getattr(torch, options.dtype))
        with torch.no_grad():
            for values in model.parameters():
                values.add_(moved * values.abs().mean() * torch.randn_like(values))
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    text = [" ".join(f"w{(7 * row + place) % 900}" for place in range(24)) for row in range(max(64, options.items))]
    _rows(root / "ability.jsonl", [{"prompt": one, "answer": one} for one in text])
    _rows(
        root / "numbers.jsonl", [{"prompt": one, "answer": str(row)} for row, one in enumerate(text[: options.items])]
    )
    sets = {
        role: {
            "path": str(root / "numbers.jsonl"),
            "role": role,
            "kind": options.kind,
            "max_new_tokens": options.new_tokens,
        }
        for role in ("keep", "recover")
    }
    config = {
        "model": {"target": str(root / "target")},
        "data": {
            "abilities": {"words": {"path": str(root / "ability.jsonl")}},
            "evaluations": sets,
            "template": "{prompt} ",
        },
        "profile": {"sources": [{"model": str(root / "source"), "abilities": ["words"]}]},
        "trainer": {"accelerator": options.accelerator, "devices": 1, "default_root_dir": str(root / "run")},
    }
    path = root / "sweep.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _llama(size: str) -> LlamaConfig:
    hidden, inner, layers, heads, groups = SIZES[size]
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 2,
    )  # fmt: skip


def _rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _print(points: list[dict[str, str]], factor: float) -> None:
    """The median seconds of every part by method, and the overhead beside ``factor`` times this evaluation."""
    print(f"\n{'method':18}" + "".join(f"{part:>12}" for part in PARTS) + f"{'overhead':>12}")
    for method in dict.fromkeys(point["method"] for point in points):
        its = [point for point in points if point["method"] == method]
        seconds = {part: statistics.median(float(point.get(f"seconds_{part}") or 0) for point in its) for part in PARTS}
        overhead = sum(seconds[part] for part in PARTS[:-1]) / (factor * seconds["evaluating"])
        print(f"{method:18}" + "".join(f"{seconds[part]:12.3f}" for part in PARTS) + f"{100 * overhead:10.1f} %")


if __name__ == "__main__":
    main()
