"""Runs the command line on the CPU and on the stand-in device, and compares all that both have written.

    python -m tests.standin.compare FOLDER SCENARIO…

Writes ``FOLDER/<scenario>.json``. The package's branches for CUDA run on the device.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from tests.evaluation.vllm_stand_in import stand_in
from tests.front_door import run
from tests.standin.records import record_host_linears, record_waits
from tests.standin.scenarios import SCENARIOS, Steps, base_config, merged, write_models
from tests.standin.trainer import changed_source, cuda_as_standin, trainers_on_standin


def run_steps(steps: Steps, models: Path, root: Path, device: AbstractContextManager[None]) -> str | None:
    """Run verbs on a device; gives the error if one fails."""
    root.mkdir(parents=True)
    with device:
        for verb, changes in steps:
            config = merged(base_config(models, root, "mixture" in root.parent.name), changes)
            if verb in ("validate", "test", "predict"):
                config = {key: value for key, value in config.items() if key not in ("profile", "transfer")}
            try:
                outcome = run(verb, config)
            except Exception as error:
                return f"{verb}: {type(error).__name__}: {error}"
            if outcome.status:
                return f"{verb}: {outcome.err[-500:]}"
    return None


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference in every file of two folders, relative to the largest number; infinite if it lacks."""
    files = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    found = {}
    for file in sorted(files):
        values = [_numbers(root / file) for root in (one, other)]
        found[str(file)] = max((_difference(a, b) for a, b in zip_longest(*values)), default=0.0)
    return {file: difference for file, difference in found.items() if difference}


def _numbers(path: Path) -> list[Any]:
    """What a file holds: tensors, and in text whatever should be the same in another folder."""
    if not path.exists():
        return [None]
    if path.suffix == ".safetensors":
        return [value for _, value in sorted(load_file(path).items())]
    if path.suffix == ".ckpt":
        leaves = tree_leaves(torch.load(path, map_location="cpu", weights_only=False))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dtype != torch.uint8]
    if path.name == "metrics.csv":
        rows = csv.DictReader(path.read_text().splitlines())
        return [value for row in rows for name, value in sorted(row.items()) if not name.startswith("train/")]
    if path.suffix == ".jsonl" or (path.suffix == ".json" and path.parent.name in ("evaluations", "causes")):
        return [leaf for line in _json_lines(path) for leaf in tree_leaves(line) if not _is_path(leaf)]
    return []


def _json_lines(path: Path) -> list[Any]:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def _is_path(value: object) -> bool:
    return isinstance(value, str) and os.sep in value


def _difference(a: Any, b: Any) -> float:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape:
        if not a.numel():
            return 0.0
        a, b = a.double(), b.double()
        return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) / max(abs(a), 1e-30)
    return 0.0 if type(a) is type(b) and not isinstance(a, torch.Tensor) and a == b else float("inf")


def compare(name: str, models: Path, folder: Path) -> dict[str, Any]:
    """Run a scenario twice, and give errors, differences, host work and waits."""
    steps, (cpu, standin) = SCENARIOS[name], (folder / name / device for device in ("cpu", "standin"))
    with record_waits() as waits, record_host_linears() as linears:
        error = run_steps(steps, models, standin, trainers_on_standin())
    # the kernels of attention that the device has
    cpu_error = run_steps(steps, models, cpu, sdpa_kernel(SDPBackend.MATH))
    return {
        "errors": {name: text for name, text in (("cpu", cpu_error), ("standin", error)) if text},
        "differences": {} if error or cpu_error else differences(cpu / "run", standin / "run"),
        "linears": [(*place, count) for place, count in linears.items()],
        "waits": [(*place, count) for place, count in waits.items()],
    }


def main(folder: Path, names: list[str]) -> None:
    """Compare scenarios, one after the other."""
    os.environ["ACT_LIGHTNING_CACHE"] = str(folder / "cache")
    sys.modules["vllm"] = stand_in()
    write_models(folder / "models")
    with changed_source(cuda_as_standin):
        for name in names:
            (folder / f"{name}.json").write_text(json.dumps(compare(name, folder / "models", folder), indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
