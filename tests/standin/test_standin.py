"""The package on a stand-in GPU, in processes of its own: the CPU's results, and little waiting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from act_lightning.merging import METHODS as MERGING_METHODS
from act_lightning.profiling.placement import PLACEMENTS
from act_lightning.scorers import SCORERS
from tests.standin.scenarios import METHODS, SCENARIOS, SELECTIONS

pytestmark = pytest.mark.slow
# Without accelerate, which is no dependency, though the tests' environment has it.
_PROGRAM = (
    "import runpy, sys; sys.modules['accelerate'] = None; runpy.run_module(sys.argv.pop(1), {}, '__main__', True)"
)
_SYMPTOMS = re.compile("same device|device type tensor to numpy|requires `accelerate`")
_SECONDS = 3600  # all scenarios take four minutes on two free cores
_PROBE = "data/batches.py"  # finds out on a small copy of a model whether it keeps packed samples apart
_ENGINE = "evaluation/generation.py"  # the stand-in for vLLM, which is not told of the device


def run_program(name: str, folder: Path, *arguments: str) -> None:
    """Run a program of this folder to its end."""
    root = Path(__file__).parents[2]
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", _PROGRAM, f"tests.standin.{name}", str(folder), *arguments]
    subprocess.run(command, env=os.environ | variables, timeout=_SECONDS, check=True, cwd=root)


def test_the_device_follows_cuda_s_rules() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        Path(__file__).with_name("device_checks.py"),
    ]
    subprocess.run(command, timeout=_SECONDS, check=True, cwd=Path(__file__).parents[2])


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every scenario that a selected test needs, all run by one process."""
    selected = [
        item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path
    ]
    params = [item.callspec.params for item in selected if hasattr(item, "callspec")]
    names = list(dict.fromkeys(name for values in params for name in values["scenarios"]))
    folder = tmp_path_factory.mktemp("standin")
    run_program("compare", folder, *names)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@pytest.mark.parametrize("scenarios", [(name,) for name in SCENARIOS], ids=SCENARIOS)
def test_gives_the_results_of_the_cpu(scenarios: tuple[str], results: dict[str, Any]) -> None:
    """To the bit; and the host multiplies no matrix that the device should."""
    result = results[scenarios[0]]
    assert result["errors"] == {}
    assert result["differences"] == {}
    on_host = {_PROBE, _ENGINE} if scenarios == ("test with vllm",) else {_PROBE}
    assert [place for place in result["linears"] if place[1].rpartition(":")[0] not in on_host] == []


def test_scenarios_name_every_method_selection_and_placement() -> None:
    assert set(METHODS) == set(MERGING_METHODS)
    assert {"activation", *SELECTIONS} == set(SCORERS)
    assert {f"profile {placement}" for placement in PLACEMENTS if placement != "auto"} <= SCENARIOS.keys()


def waits(result: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    """How often the host waits, by operation, our line, and the line of a library that it calls, if any."""
    return Counter({(what, line, library_line): count for what, line, library_line, count in result["waits"]})


@pytest.mark.parametrize("scenarios", [("fit 1 updates of 4", "fit 1 updates of 12")], ids=["fit"])
def test_waits_twice_in_a_micro_batch(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """To find its answer tokens, and in transformers, which asks whether the attention mask hides anything."""
    four, twelve = (waits(results[name]) for name in scenarios)
    assert (twelve - four).total() <= 8 * 2, twelve - four


@pytest.mark.parametrize("scenarios", [("fit 1 updates of 12", "fit 3 updates of 4")], ids=["fit"])
def test_waits_once_in_an_update(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """To read loss and tokens, which Lightning then logs; that makes it wait more often, for a queue that is empty."""
    once, three_times = (waits(results[name]) for name in scenarios)
    ours = {place: count for place, count in (three_times - once).items() if not place[2]}
    assert sum(ours.values()) <= 2 * 1, ours


@pytest.mark.parametrize("scenarios", [("profile 4 batches", "profile 12 batches")], ids=["profile"])
def test_waits_five_times_in_a_profiled_batch(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """To copy tokens, and positions and mask of the answer tokens; and in transformers, once in each model."""
    four, twelve = (waits(results[name]) for name in scenarios)
    assert (twelve - four).total() <= 8 * 5, twelve - four


def test_sees_every_move_that_is_left_out(tmp_path: Path) -> None:
    run_program("mutants", tmp_path)
    outcomes = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [outcome for outcome in outcomes if outcome["places"] != 1] == []  # the code is another now: so must they be
    unseen = [outcome for outcome in outcomes if not (outcome["linears"] or _SYMPTOMS.search(outcome["error"] or ""))]
    assert unseen == []
    assert len(outcomes) >= 18
