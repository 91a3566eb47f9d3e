"""The benchmark of GPUs, with tiny shapes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import gpu, sft


def run(out: Path, *parts: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--minutes", "10"]
    command += ["--out", str(out), "--work", str(out / "work"), "--parts", *parts]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_measures_every_part_once(tmp_path: Path) -> None:
    parts = [part for part in gpu.PARTS if "compiled" not in part]
    run(tmp_path, *parts)
    rows = gpu.read_rows(tmp_path / "rows.jsonl")
    assert {row.part for row in rows} == set(parts)
    assert [row.ratio for row in rows if row.part == "check" and row.beside] == [0.0] * 4
    missing = {row.part for row in rows if row.note}
    assert all("is not installed" in row.note for row in rows if row.note)
    measured = [row for row in rows if row.rate is not None]
    assert all(row.rate > 0 for row in measured)
    assert {row.part for row in measured} == {*parts} - {"check"} - missing
    again = run(tmp_path, "check", "1.5b")
    assert "at most" not in again
    assert gpu.read_rows(tmp_path / "rows.jsonl") == rows


def test_goes_on_where_a_part_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"part": "7b", "what": what}) + "\n" for what in ("a", "b", "a")))
    assert [row.what for row in gpu.read_rows(path)] == ["a", "b"]
    assert gpu.Row("7b", "complete") not in gpu.read_rows(path)


@pytest.mark.parametrize(("shape", "parameters"), [("qwen2.5-1.5b", 1_543_714_304), ("qwen2.5-7b", 7_615_616_512)])
def test_shapes_are_those_of_qwen(shape: str, parameters: int) -> None:
    """Numbers of parameters as in the models' index files."""
    sizes = dict(sft.SHAPES[shape])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(sizes.pop("architecture"), **sizes))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
