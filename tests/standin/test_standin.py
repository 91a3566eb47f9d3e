"""The package on a stand-in GPU, in processes of its own: the CPU's results, and little waiting."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from act_lightning.merging import METHODS as MERGING_METHODS
from act_lightning.profiling.memory import PLACEMENTS
from act_lightning.scorers import SCORERS
from tests.standin import run_program
from tests.standin.scenarios import METHODS, SCENARIOS, SELECTIONS

pytestmark = pytest.mark.slow
_PROBE = "data/batches.py"  # finds out on a small copy of a model whether it keeps packed samples apart
_ENGINE = "evaluation/generation.py"  # the stand-in for vLLM, which is not told of the device


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


@pytest.mark.parametrize("scenarios", [("predict 8 tokens", "predict 72 tokens")], ids=["predict"])
def test_waits_once_in_eight_generated_tokens(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """To read them and see which answers have ended; rows that leave may add a few."""
    short, long = (waits(results[name]) for name in scenarios)
    assert (long - short).total() <= 64 // 8 + 4, long - short
