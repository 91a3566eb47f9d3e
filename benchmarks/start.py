"""How long each verb takes to start, in user seconds, as ratios to ``import torch``; and when its first line stands.

    python -m benchmarks.start --rounds 5

Commands run in turn, so that each meets the same machine; medians count. Models are tiny, so nearly all of it is
imports. Their channels have been counted before: the first plan of a model builds it once, which imports its code.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

PACKAGES = "import lightning, transformers"
OURS = "import act_lightning.cli.lightning_cli"


def user_seconds(command: list[str]) -> float:
    """User time of a command and what it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def seconds_to_first_line(command: list[str]) -> float:
    """Wall time until a command writes to standard error."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        process.stderr.readline()
        passed = time.perf_counter() - begin
        process.kill()
    return passed


def prepare(root: Path) -> dict[str, list[str]]:
    """Write models, data, a config and two tested runs, and return the commands that are measured, by name."""
    rows = write_jsonl(root / "rows.jsonl", [{"prompt": f"Say {i}", "answer": "two words"} for i in range(32)])
    configs = {}
    for architecture in ("qwen2", "llama"):
        target = save_model(tiny_model(architecture), tiny_tokenizer(), root / architecture / "target")
        source = save_model(sibling_of(tiny_model(architecture), 1), tiny_tokenizer(), root / architecture / "source")
        content = {
            "model": {"target": str(target)},
            "data": {
                "abilities": {"words": {"path": str(rows)}},
                "evaluations": {"kept": {"path": str(rows), "role": "keep", "limit": 4, "max_new_tokens": 2}},
            },
            "profile": {"sources": [{"model": str(source), "abilities": ["words"]}]},
            "trainer": {"accelerator": "cpu", "default_root_dir": str(root / architecture / "run")},
        }
        configs[architecture] = root / f"{architecture}.yaml"
        configs[architecture].write_text(yaml.safe_dump(content))
    act = [sys.executable, "-m", "act_lightning"]
    runs = [str(root / name / "run") for name in configs]
    for verb in ("merge", "test", "plan"):
        for file in configs.values():
            user_seconds([*act, verb, "--config", str(file)])
    config = ["--config", str(configs["qwen2"])]
    return {
        "`import torch`": [sys.executable, "-c", "import torch"],
        "`fit --help`": [*act, "fit", "--help"],
        "`env`": [*act, "env"],
        "`compare`": [*act, "compare", *runs],
        "`card`": [*act, "card", runs[0]],
        "`plan`": [*act, "plan", *config],
        "`plan`, Llama": [*act, "plan", "--config", str(configs["llama"])],
        "`data inspect`": [*act, "data", "inspect", *config],
        f"`{PACKAGES}`": [sys.executable, "-c", PACKAGES],
        "`fit`'s imports": [sys.executable, "-c", OURS],
        "`fit --print_config`": [*act, "fit", *config, "--print_config"],
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        commands = prepare(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                seconds[name].append(user_seconds(command))
        act = [sys.executable, "-m", "act_lightning"]
        first = [seconds_to_first_line([*act, "fit", "--config", "recover.yaml"]) for _ in range(rounds)]
        torch = seconds["`import torch`"]
        print("| command | user seconds | × `import torch` |\n|---|---|---|")
        for name, values in seconds.items():
            ratios = [value / one for value, one in zip(values, torch, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            print(f"| {name} | {statistics.median(values):.2f} | {spread} |")
        packages, ours = seconds[f"`{PACKAGES}`"], seconds["`fit`'s imports"]
        added = statistics.median(b - a for a, b in zip(packages, ours, strict=True))
        print(
            f"\n`fit` adds {added:.2f} s to `{PACKAGES}`; its first line stands after {statistics.median(first):.2f} s."
        )


if __name__ == "__main__":
    main()
