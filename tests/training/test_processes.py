"""Two processes on CPUs (gloo) against one: the same scores, masks, weights, updates and answers."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.front_door import Config, basic, changed, left, run, write_yaml
from tests.programs import PROGRAMS
from tests.reference.act import assert_same_bits
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

pytestmark = pytest.mark.slow
SECONDS = 120
HELD_OUT = 0.3  # 9 of 32 rows; of the 23 others one process gets fewer than the other


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with biases and an ability's file, and the runs of both kinds beside them."""
    root = tmp_path_factory.mktemp("processes")
    target = tiny_model("qwen2")
    save_model(target, tiny_tokenizer(), root / "target")
    save_model(sibling_of(target, seed=1), tiny_tokenizer(), root / "source")
    write_jsonl(root / "d.jsonl", ({"prompt": f"Say {i}", "answer": "one " * (1 + 7 * i % 23)} for i in range(32)))
    return root


def config_of(place: Path, processes: int) -> Config:
    """The same samples in every update, whatever the number of processes."""
    folder = place / str(processes)
    folder.mkdir(exist_ok=True)
    config = basic(folder, place / "target", place / "source", place / "d.jsonl")
    config["data"] |= {"validation": HELD_OUT, "abilities": {"d": {"path": str(place / "d.jsonl")}}}
    config["profile"]["tokens_per_batch"] = 200
    accumulate = {"accumulate_grad_batches": 16 // processes}
    config["trainer"] |= accumulate | ({"devices": 2, "strategy": "ddp"} if processes > 1 else {"devices": 1})
    return config


def process(*command: object) -> None:
    """A program of Python's that starts the second process itself, and ends in time without an error."""
    done = ended(*command)
    assert done.returncode == 0, done.stderr


def ended(*command: object) -> subprocess.CompletedProcess[str]:
    """A program of Python's that has ended in time."""
    root = str(Path(__file__).parents[2])
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | alone,
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )


def two(verb: str, config: Config) -> Path:
    """A verb on two processes."""
    root = Path(config["trainer"]["default_root_dir"])
    process("-m", "act_lightning", verb, "--config", write_yaml(root.with_name(f"{verb}.yaml"), config))
    return root


def one(verb: str, config: Config) -> Path:
    """A verb on one process."""
    outcome = run(verb, config)
    assert outcome.status == 0, outcome.err
    return Path(config["trainer"]["default_root_dir"])


@pytest.fixture(scope="module")
def fitted(place: Path) -> tuple[Path, Path]:
    """The folders of a fit by one process and by two."""
    return one("fit", config_of(place, 1)), two("fit", config_of(place, 2))


@pytest.fixture(scope="module")
def merged(fitted: tuple[Path, Path], place: Path) -> tuple[Path, Path]:
    """The folders of a merge, of two processes from the beginning."""
    config = config_of(place, 2)
    config["trainer"]["default_root_dir"] = str(place / "merge" / "run")
    (place / "merge").mkdir()
    return one("merge", config_of(place, 1)), two("merge", config)


def scores(root: Path) -> Tensor:
    """All scores of a run, one after the other."""
    return torch.cat(list(load_file(root / "scores" / "s" / "d.safetensors").values()))


def model(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-5)


def metrics(root: Path, name: str) -> list[float]:
    """Every logged value of that name, in the order of the runs."""
    files = sorted(root.glob("logs/version_*/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    return [float(row[name]) for row in rows if row.get(name)]


def test_scores_and_what_they_select(fitted: tuple[Path, Path]) -> None:
    first, second = map(scores, fitted)
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-6)
    k = len(first) // 10
    assert set(first.topk(k).indices.tolist()) == set(second.topk(k).indices.tolist())
    reports = [json.loads((root / "transfer.json").read_text()) for root in fitted]
    for report in reports:
        assert report.pop("hashes")
    assert reports[0] == reports[1]


def test_updates_and_the_exported_model(fitted: tuple[Path, Path], merged: tuple[Path, Path]) -> None:
    alone, together = (model(root / "model") for root in fitted)
    assert_close(together, alone)
    assert max(float((alone[name] - values).abs().max()) for name, values in model(merged[0] / "merged").items()) > 5e-4


def test_every_sample_is_trained_and_validated_on_once(fitted: tuple[Path, Path]) -> None:
    alone, together = ([metrics(root, name) for name in ("answer_tokens", "train_loss", "val_loss")] for root in fitted)
    assert len(alone[0]) == 2, "23 samples are two updates"
    assert len(alone[2]) == 1
    assert together[0] == alone[0]
    assert together[1] == pytest.approx(alone[1], rel=1e-5)
    assert together[2] == pytest.approx(alone[2], rel=1e-5)


def test_merging(merged: tuple[Path, Path]) -> None:
    alone, together = (model(root / "merged") for root in merged)
    assert_same_bits(together, alone)
    assert left(merged[1] / "scores") == ["s", "s/d.safetensors"]


def test_profiling(merged: tuple[Path, Path], place: Path) -> None:
    """Scores that are there are used again by two processes; those that are not are measured, and nothing else is."""
    written = merged[1] / "scores" / "s" / "d.safetensors"
    config, time = config_of(place, 2), written.stat().st_mtime_ns
    config["trainer"]["default_root_dir"] = str(merged[1])
    two("profile", config)
    assert written.stat().st_mtime_ns == time
    config["trainer"]["default_root_dir"] = str(place / "profile" / "run")
    (place / "profile").mkdir()
    root = two("profile", config)
    assert left(root) == ["scores", "scores/s", "scores/s/d.safetensors"]
    torch.testing.assert_close(scores(root), scores(merged[0]), rtol=1e-6, atol=1e-6)


def test_each_row_is_tested_once(place: Path) -> None:
    """Of five rows two are answered right: a row that two processes both count would make it three of six."""
    sets: dict[str, Any] = {}
    for name, count in (("kept", 5), ("lost", 3)):
        file = write_jsonl(place / f"{name}.jsonl", [{"prompt": f"Say {i}", "answer": "?"} for i in range(count)])
        sets[name] = {"path": str(file), "role": "keep", "max_new_tokens": 3}
    config = changed(config_of(place, 1), "data.evaluations", sets)
    predicted = one("predict", config) / "evaluations" / "predictions"
    for name, right in (("kept", (0, 4)), ("lost", (1,))):
        rows = [json.loads(line) for line in (predicted / f"{name}.jsonl").read_text().splitlines()]
        answers = [row["prediction"] if i in right else "a wrong answer" for i, row in enumerate(rows)]
        new = [{"prompt": f"Say {i}", "answer": answer} for i, answer in enumerate(answers)]
        write_jsonl(place / f"{name}.jsonl", new)
    found = changed(config_of(place, 2), "data.evaluations", sets)
    found["trainer"]["default_root_dir"] = str(place / "test" / "run")
    (place / "test").mkdir()
    root = two("test", found)
    values = [metrics(root, f"exact_match/{name}") for name in ("kept", "lost")] + [metrics(root, "keep")]
    assert values == [pytest.approx([value]) for value in (0.4, 1 / 3, (0.4 + 1 / 3) / 2)]
    (place / "alone").mkdir()
    alone = one(
        "test", changed(found, "trainer", config["trainer"] | {"default_root_dir": str(place / "alone" / "run")})
    )
    for file in (*(f"{name}.jsonl" for name in sets), "results.json", "results.csv", "results.md"):
        assert (root / "evaluations" / file).read_bytes() == (alone / "evaluations" / file).read_bytes()
    two("predict", changed(found, "trainer.default_root_dir", str(place / "test" / "run")))
    assert [
        json.loads(line)["row"] for line in (root / "evaluations/predictions/kept.jsonl").read_text().splitlines()
    ] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_scores_that_cannot_be_ranked_stop_every_process(place: Path) -> None:
    """None is left waiting for another that has stopped."""
    spoiled: Any = tiny_model("qwen2")
    spoiled.lm_head.weight.data[3, 3] = float("nan")
    save_model(spoiled, tiny_tokenizer(), place / "spoiled")
    done = ended(PROGRAMS / "plugged_fit.py", place / "spoiled", place / "source", place / "refused", 2)
    assert done.returncode != 0
    for rank in (0, 1):
        said = rf"\[rank{rank}\]: .*ActError: .* scores of module 'lm_head' for ability 'any' must be finite"
        assert re.search(said, done.stderr)
    assert not list(place.glob("refused/**/*.safetensors"))


def test_in_a_loop_of_someone_elses(place: Path) -> None:
    """Every process injects: their models are the same, and those of one process."""
    script = PROGRAMS / "plugged_fit.py"
    for processes in (1, 2):
        root = place / f"plugged-{processes}"
        root.mkdir()
        process(script, place / "target", place / "source", root, processes)
    single, first, second = (
        load_file(place / name / f"rank-{rank}.safetensors")
        for name, rank in (("plugged-1", 0), ("plugged-2", 0), ("plugged-2", 1))
    )
    assert_same_bits(first, single)
    assert_same_bits(second, single)
    before = model(place / "target")
    assert any(not torch.equal(before[name], values) for name, values in single.items())


def test_two_processes_intervene_alike(place: Path) -> None:
    found = []
    for processes, ask in ((1, one), (2, two)):
        config = config_of(place, processes)
        config["data"] |= {"validation": [], "abilities": {"d": {"path": str(place / "d.jsonl"), "limit": 20}}}
        config["trainer"]["default_root_dir"] = str(place / str(processes) / "causes")
        config["causes"] = {"samples": 9, "repeats": 1}
        found.append(json.loads((ask("causes", config) / "causes" / "s" / "d.json").read_bytes())["losses"])
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        assert found[1][name] == pytest.approx(values, abs=1e-5)
