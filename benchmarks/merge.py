"""Merging from disk to disk, paired with mergekit 0.1.5 and with ``cp``: time, peak memory, bytes read.

    python benchmarks/merge.py --size 200M --mergekit /path/to/venv/bin/mergekit-yaml

Writes a random Llama and two siblings in bfloat16, shard by shard; merges them by whole commands, ours and the peer's
in turn, so that each pair meets the same machine; and reports the median of the pairs' ratios. One round goes before
those that count: files lie in the page cache for both, as far as memory holds them, and ours has described the models.
With ``--cold``, the models are dropped from the page cache before each run, and no round goes before; what a command
has the disk read is counted. mergekit wants an environment of its own.

    python benchmarks/merge.py --mixture 3B

Writes a random Qwen3-MoE and a sibling in the hub's layout, one tensor an expert; profiles them layer by layer, merges
them from disk, and compares the keys of the result: no more memory may be taken than ``--limit`` says.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING
from zlib import crc32

import yaml

if TYPE_CHECKING:
    import torch

SIZES = {  # hidden, MLP, layers, heads, key-value heads
    "20M": (256, 704, 4, 4, 2),
    "200M": (1024, 2816, 12, 16, 4),
    "500M": (1280, 3456, 22, 20, 4),
    "1.5B": (2048, 5632, 30, 32, 8),
    "7B": (4096, 14336, 32, 32, 8),
}
MIXTURES = {  # hidden, inner size of an expert, layers, experts
    "20M": (128, 64, 4, 16),
    "3B": (1024, 768, 20, 64),
}
VOCABULARY = 32000
SHARD = 1 << 30
SETTINGS = {  # ours by default, by mergekit's names
    "ties": {"density": 0.2},
    "dare": {"density": 0.1},
    "dare_ties": {"density": 0.1},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01},
    "della": {"density": 0.5, "epsilon": 0.15},
}
SCALE = 0.4
_POOL = (1 << 22) + 1
RATIO = 0.01
SOURCES = ("a", "b")


@dataclass(frozen=True)
class Taken:
    """What a command took: seconds by the clock and of processors, bytes of memory, and bytes read from the disk."""

    wall: float
    work: float
    peak: int
    read: int


def main() -> None:
    """Write the models, run the pairs, print a table."""
    options = _options()
    if options.mixture:
        measure_mixture(options.folder / f"mixture-{options.mixture}", options)
        return
    root = options.folder / (f"{options.size}-{options.layers}" if options.layers else options.size)
    # Elsewhere, for a process starts with the peak memory of the one that started it.
    with get_context("spawn").Pool(1) as pool:
        parameters = pool.apply(write_inputs, (root, options.size, options.layers))
    print(f"{parameters / 1e6:.0f} M parameters, bfloat16, {len(SOURCES)} sources, {os.cpu_count()} cores")
    rows = [pair(name, root, options) for name in options.methods]
    head = ["", "ours", "peer", "ratio", "processor time", "peer's", "ratio", "our peak", "peer's", "we read", "peer"]
    print("\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]))
    if not options.keep:
        shutil.rmtree(root)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="200M")
    parser.add_argument("--layers", type=int, help="fewer than the size has, for less time")
    parser.add_argument("--mixture", choices=MIXTURES, help="profile and merge a mixture of experts instead")
    parser.add_argument("--limit", type=int, default=24, help="the memory of a mixture's commands, in GiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="read the models from the disk, not from the page cache")
    parser.add_argument("--mergekit", default="mergekit-yaml", help="the command of an environment with mergekit 0.1.5")
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-merge"))
    parser.add_argument("--keep", action="store_true", help="leave models and results in the folder")
    return parser.parse_args()


def write_inputs(root: Path, size: str, layers: int | None) -> int:
    """Write models and scores; returns the number of parameters."""
    parameters = write_models(root, size, layers)
    write_scores(root)
    return parameters


def write_models(root: Path, size: str, layers: int | None) -> int:
    """Write target and sources, a shard at a time in memory; returns the number of parameters."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    hidden, inner, all_layers, heads, groups = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers or all_layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    vocabulary = {f"t{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="t0")))
    for number, name in enumerate(("target", *SOURCES)):
        if not (root / name / "config.json").is_file():
            _write_weights(root / name, shapes, number)
            tokenizer.save_pretrained(root / name)
            config.save_pretrained(root / name)
    return sum(map(prod, shapes.values()))


def _write_weights(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    number: int,
    draw: Callable[[str, tuple[int, ...], int], torch.Tensor] | None = None,
) -> None:
    """Random weights, and for a sibling a tenth of as much again; in shards of at most a gigabyte."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        needed = 2 * prod(shape)
        if size + needed > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    index = {}
    for count, names in enumerate(shards, start=1):
        file = f"model-{count:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: (draw or _random)(name, shapes[name], number) for name in names}, folder / file, {"format": "pt"}
        )
        index |= dict.fromkeys(names, file)
    total = 2 * sum(map(prod, shapes.values()))
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _random(name: str, shape: tuple[int, ...], number: int) -> torch.Tensor:
    import torch

    values = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if number:
        values += 0.002 * torch.randn(
            shape, generator=torch.Generator().manual_seed(crc32(f"{name} {number}".encode()))
        )
    return values.bfloat16()


def measure_mixture(root: Path, options: argparse.Namespace) -> None:
    """Write target and source, run `profile` and `merge` with their memory limited, and print what they took."""
    with get_context("spawn").Pool(1) as pool:
        parameters = pool.apply(write_mixture, (root, options.mixture))
    print(f"{parameters / 1e9:.2f} G parameters, bfloat16, hub layout, {os.cpu_count()} cores")
    words = [{"prompt": f"t{row} t7", "answer": " ".join(f"t{row * 31 + i}" for i in range(48))} for row in range(16)]
    (root / "ability.jsonl").write_text("\n".join(map(json.dumps, words)))
    config = {
        "model": {"target": str(root / "target")},
        "data": {"abilities": {"ability": {"path": str(root / "ability.jsonl")}}, "template": "{prompt} "},
        "profile": {"sources": [{"model": str(root / SOURCES[0]), "abilities": ["ability"]}], "placement": "layerwise"},
        "transfer": {"scale": SCALE, "ratio": RATIO},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(root / "run")},
    }
    (root / "profile.yaml").write_text(yaml.safe_dump(config))
    config["transfer"]["scores"] = str(root / "run" / "scores")
    (root / "merge.yaml").write_text(yaml.safe_dump({key: value for key, value in config.items() if key != "data"}))
    print("| command | wall | processor time | peak memory |\n|---|---|---|---|")
    shutil.rmtree(root / "run", ignore_errors=True)
    for verb in ("profile", "merge"):
        limited = ["prlimit", f"--data={options.limit << 30}", sys.executable, "-m", "act_lightning", verb]
        taken = _timed([*limited, "--config", str(root / f"{verb}.yaml")], root / f"{verb}-log")
        print(f"| {verb} | {taken.wall:.0f} s | {taken.work:.0f} s | {taken.peak / 2**30:.2f} GiB |", flush=True)
    from act_lightning.checkpoints.weight_files import read_headers

    keys = [
        {key: entry for header in read_headers(root / folder).values() for key, entry in header.entries.items()}
        for folder in ("target", "run/merged")
    ]
    print(f"{len(keys[0]):,} stored tensors, the same keys, dtypes and shapes in the result: {keys[0] == keys[1]}")
    if not options.keep:
        shutil.rmtree(root)


def write_mixture(root: Path, size: str) -> int:
    """Write a mixture and a sibling in the hub's layout; returns the number of parameters."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

    hidden, inner, layers, experts = MIXTURES[size]
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * inner,
        moe_intermediate_size=inner,
        num_hidden_layers=layers,
        num_experts=experts,
        num_experts_per_tok=8,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        tie_word_embeddings=False,
        eos_token_id=0,
        dtype="bfloat16",
        architectures=["Qwen3MoeForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        prefix, packed, kind = name.partition(".experts.")
        if not packed:
            stored[name] = shape
        for expert in range(experts if packed else 0):
            parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            for part in parts:
                stored[f"{prefix}.experts.{expert}.{part}.weight"] = (shape[1] // len(parts), shape[2])
    vocabulary = Tokenizer(WordLevel({f"t{number}": number for number in range(VOCABULARY)}, unk_token="t0"))
    vocabulary.pre_tokenizer = WhitespaceSplit()
    for number, name in enumerate(("target", SOURCES[0])):
        if not (root / name / "config.json").is_file():
            _write_weights(root / name, stored, number, _drawn_from_pool)
            PreTrainedTokenizerFast(tokenizer_object=vocabulary, eos_token="t0").save_pretrained(root / name)
            config.save_pretrained(root / name)
    return sum(map(prod, shapes.values()))


def _drawn_from_pool(name: str, shape: tuple[int, ...], number: int) -> torch.Tensor:
    """As :func:`_random`, from a few million draws that are used again and again: for gigabytes of them."""
    values = 0.02 * _from_pool(name, shape)
    if len(shape) == 1:  # a norm
        values += 1
    if number:
        values += 0.002 * _from_pool(f"{name} {number}", shape)
    return values.bfloat16()


def _from_pool(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    start, size, pool = crc32(name.encode()) % (_POOL // 2), prod(shape), _pool()
    whole = pool[start:] if size <= _POOL // 2 else torch.cat([pool[start:], *[pool] * (size // _POOL + 1)])
    return whole[:size].view(shape)


@cache
def _pool() -> torch.Tensor:
    import torch

    return torch.randn(_POOL, generator=torch.Generator().manual_seed(0))


def write_scores(root: Path) -> None:
    """Scores with a heavy tail for one ability of each source, as a profile would have saved them."""
    import torch

    from act_lightning.checkpoints.model_spec import read_model_spec
    from act_lightning.checkpoints.weight_files import identify
    from act_lightning.scores import ScoreRecord, score_path, write_scores

    channels = read_model_spec(root / "target").channels
    assert channels is not None
    for number, name in enumerate(SOURCES):
        known = {role: identify(root / folder, verify=True) for role, folder in _roles(name).items()}
        identities = {role: {"digest": one.digest, "sha256": one.sha256} for role, one in known.items()}
        record = ScoreRecord(1, 1, 0, _roles(name), identities, "", "bfloat16")
        scores = torch.randn(channels.total, generator=torch.Generator().manual_seed(number)).exp()
        write_scores(score_path(root / "scores", name, "ability"), channels, scores, record)


def _roles(source: str) -> dict[str, str]:
    return {"target": "target", "source": source}


def pair(method: str, root: Path, options: argparse.Namespace) -> str:
    """Run ours and the peer in turn; a row of the table."""
    commands = [_ours(method, root), PEERS[method](method, root, options)]
    taken: list[list[Taken]] = [[], []]
    for turn in range(options.cold, options.rounds + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            os.sync()
            if options.cold:
                _forget(root)
            found = _timed(commands[side], root / ("ours", "peer")[side])
            print(method, ("ours", "peer")[side], found, flush=True)
            if turn:
                taken[side].append(found)
    pairs = list(zip(*taken, strict=True))
    cells = []
    for kind in ("wall", "work"):
        ratios = sorted(getattr(ours, kind) / getattr(peer, kind) for ours, peer in pairs)
        cells += [f"{statistics.median(getattr(one, kind) for one in side):.1f} s" for side in taken]
        cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    cells += [f"{max(one.peak for one in side) / 1e6:,.0f} MB" for side in taken]
    cells += [f"{statistics.median(one.read for one in side) / 1e6:,.0f} MB" for side in taken]
    print(method, next(line for line in (root / "ours" / "log").read_text().splitlines() if "tensors read" in line))
    return f"| {method} | {' | '.join(cells)} |"


def _forget(root: Path) -> None:
    """Drop the models from the page cache."""
    for path in root.glob("*/*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(command: list[str], out: Path) -> Taken:
    """Run a command that writes below ``out``, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start = perf_counter()
    with (out / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    wall = perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{(out / 'log').read_text()[-2000:]}")
    return Taken(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, usage.ru_inblock * 512)


def _ours(method: str, root: Path) -> list[str]:
    transfer = {"scores": str(root / "scores"), "ratio": RATIO} if method == "act" else {"selection": "all"}
    names = SOURCES[:1] if method == "act" else SOURCES
    config = {
        "model": {"target": str(root / "target")},
        "profile": {"sources": [{"model": str(root / name), "abilities": ["ability"]} for name in names]},
        "transfer": {"scale": SCALE, **transfer, "method": "task_arithmetic" if method == "act" else method},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(root / "ours")},
    }
    (root / f"ours-{method}.yaml").write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "act_lightning", "merge", "--config", str(root / f"ours-{method}.yaml")]


def _mergekit(method: str, root: Path, options: argparse.Namespace) -> list[str]:
    name = {"dare": "dare_linear"}.get(method, method)
    weights = {"weight": SCALE, **SETTINGS.get(method, {})}
    config = {
        "merge_method": name,
        "base_model": str(root / "target"),
        "models": [{"model": str(root / source), "parameters": weights} for source in SOURCES],
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
    }
    (root / f"peer-{method}.yaml").write_text(yaml.safe_dump(config))
    return [options.mergekit, str(root / f"peer-{method}.yaml"), str(root / "peer" / "merged"), "--copy-tokenizer"]


def _copy(method: str, root: Path, options: argparse.Namespace) -> list[str]:
    return ["cp", "-r", str(root / "target"), str(root / "peer" / "merged")]


PEERS: dict[str, Callable[[str, Path, argparse.Namespace], list[str]]] = {
    "task_arithmetic": _mergekit,
    "dare": _mergekit,
    "ties": _mergekit,
    "dare_ties": _mergekit,
    "breadcrumbs": _mergekit,
    "della": _mergekit,
    "act": _copy,
}

if __name__ == "__main__":
    main()
