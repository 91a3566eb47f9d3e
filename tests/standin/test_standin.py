"""The package on a stand-in GPU, in processes of its own: the CPU's results, and hardly any waiting."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from act_lightning.merging import METHODS as MERGING_METHODS
from act_lightning.profiling.memory import PLACEMENTS
from act_lightning.scorers import SCORERS
from tests.standin import run_program
from tests.standin.scenarios import METHODS, PROFILES, SCENARIOS, SELECTIONS

pytestmark = pytest.mark.slow
_PROBE = "data/batches.py"  # finds out on a small copy of a model whether it keeps packed samples apart
_CAUSES = ("analysis/", "data/", "training/")  # what the causal check calls in a batch
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
    assert set(PLACEMENTS) - {"auto"} <= PROFILES.keys()


def waits(result: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    """How often the host waits, by operation, our line, and the line of a library that it calls, if any."""
    return Counter({(what, line, library_line): count for what, line, library_line, count in result["waits"]})


_MICRO_BATCHES = [
    ("fit 1 updates of 4", "fit 1 updates of 12"),
    *((f"fit 2 {layout} micro-batches", f"fit 4 {layout} micro-batches") for layout in ("padded", "packed")),
]


@pytest.mark.parametrize("scenarios", _MICRO_BATCHES, ids=["alone", "padded", "packed"])
def test_never_waits_in_a_micro_batch(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """TokenThroughput is there; on CUDA, Lightning's monitor, from which it inherits, waits once to read the clock."""
    few, many = (waits(results[name]) for name in scenarios)
    assert many - few == {}


@pytest.mark.parametrize("scenarios", [("fit 1 updates of 12", "fit 3 updates of 4")], ids=["fit"])
def test_waits_once_in_an_update(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """To read loss and tokens, before the optimizer's step; Lightning logs what the host knows."""
    once, three_times = (waits(results[name]) for name in scenarios)
    assert (three_times - once).total() == 2, three_times - once


_BATCHES = [(f"profile {kind} of 8 samples", f"profile {kind} of 24 samples") for kind in PROFILES if kind != "mixture"]


@pytest.mark.parametrize("scenarios", _BATCHES, ids=[kind for kind in PROFILES if kind != "mixture"])
def test_never_waits_in_a_profiled_batch(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    few, many = (waits(results[name]) for name in scenarios)
    assert many - few == {}


_MIXTURES = [("profile mixture of 8 samples", "profile mixture of 24 samples")]


@pytest.mark.parametrize("scenarios", _MIXTURES, ids=["profile"])
def test_waits_for_what_routers_choose(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """For the rows of answer tokens among those of experts, and for the pairs of token and expert in either model."""
    few, many = (waits(results[name]) for name in scenarios)
    ours = {place: count for place, count in (many - few).items() if not place[2]}
    assert {(what, line.partition(":")[0]) for what, line, _ in ours} == {
        ("nonzero", "profiling/outputs.py"),
        ("_unique2", "profiling/channel_means.py"),
    }


@pytest.mark.parametrize("scenarios", [("profile until stable",)], ids=["profile"])
def test_waits_four_times_to_look_at_a_mask(scenarios: tuple[str], results: dict[str, Any]) -> None:
    """For counts and scores of all samples, and for those of all chunks."""
    read = [count for (what, *_), count in waits(results[scenarios[0]]).items() if what == "copy to host"]
    assert sum(read) == 3 * 4  # three measurements, each stable at the first look


@pytest.mark.parametrize("scenarios", [("causes",)], ids=["causes"])
def test_waits_once_in_a_batch_of_interventions(scenarios: tuple[str], results: dict[str, Any]) -> None:
    """To read the losses under all of them; and once where means are taken, to find the tokens of a padded batch."""
    found = waits(results[scenarios[0]])
    by_file = {
        (what, line.partition(":")[0]): count for (what, line, _), count in found.items() if line.startswith(_CAUSES)
    }
    abilities = 2  # of one batch each
    assert by_file == {
        ("copy to host", "analysis/activation_patching.py"): abilities,
        ("nonzero", "data/batches.py"): abilities,
    }


@pytest.mark.parametrize("scenarios", [("predict 8 tokens", "predict 72 tokens")], ids=["predict"])
def test_waits_once_in_eight_generated_tokens(scenarios: tuple[str, str], results: dict[str, Any]) -> None:
    """To read them and see which answers have ended; rows that leave may add a few."""
    short, long = (waits(results[name]) for name in scenarios)
    assert (long - short).total() <= 64 // 8 + 4, long - short
