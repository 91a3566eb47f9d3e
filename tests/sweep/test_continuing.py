"""A sweep that is killed goes on; Optuna's own tools read what it keeps; two processes find what one finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from act_lightning.checkpoints.lock import lock_output
from tests.front_door import Config, changed, run, write_yaml
from tests.sweep.folders import make_config
from tests.sweep.test_sweep import Row, rows, with_root

GRID = ("--sweep.scales", "0.3,1.0", "--sweep.ratios", "0.1,0.3,0.5")
SECONDS = 300


@pytest.fixture(scope="module")
def base_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tmp_path_factory.mktemp("continuing"))


@pytest.fixture(scope="module")
def whole(base_config: Config) -> Path:
    config = with_root(base_config, "whole")
    assert run("sweep", config, *GRID).status == 0
    return Path(config["trainer"]["default_root_dir"])


def trials(root: Path) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(root / "sweep" / "journal.log")))
    return optuna.load_study(study_name="act", storage=storage).trials


def start(config: Config, *arguments: str) -> subprocess.Popen[bytes]:
    file = write_yaml(Path(config["trainer"]["default_root_dir"]).with_name("config.yaml"), config)
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "act_lightning", "sweep", "--config", str(file), *GRID, *arguments]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def without_seconds(results: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in results]


def test_a_sweep_that_is_killed_goes_on(base_config: Config, whole: Path) -> None:
    config = with_root(base_config, "killed")
    root = Path(config["trainer"]["default_root_dir"])
    journal, end = root / "sweep" / "journal.log", time.monotonic() + SECONDS
    process = start(config)
    while not journal.is_file() or journal.read_text().count('"counts"') < 2:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {trial.number: trial.datetime_complete for trial in trials(root) if trial.state == TrialState.COMPLETE}
    assert 2 <= len(before) < 6
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker')  # as if it had been killed in the middle of a line
    assert run("sweep", config, *GRID).status == 0
    after = {trial.number: trial.datetime_complete for trial in trials(root) if trial.state == TrialState.COMPLETE}
    assert len(after) == 6
    assert before.items() <= after.items(), "what was finished was not evaluated again"
    assert without_seconds(rows(root)) == without_seconds(rows(whole))


def test_optuna_reads_it(whole: Path) -> None:
    results = trials(whole)
    assert all(trial.params.keys() == {"method", "scale", "ratio"} for trial in results)
    by_point = {(float(row["scale"]), float(row["ratio"])): row for row in rows(whole)[1:]}
    for trial in results:
        row = by_point[trial.params["scale"], trial.params["ratio"]]
        assert trial.values == [float(row["keep"]), float(row["recover"])]
        assert trial.user_attrs["counts"]["lost"] == [int(row["lost_correct"]), int(row["lost_total"])]
        assert trial.user_attrs["intervals"]["keep"][1] == float(row["keep_low"])


def test_a_grown_grid_evaluates_what_is_new(base_config: Config, whole: Path) -> None:
    config, count = with_root(base_config, "whole"), len(trials(whole))
    assert run("sweep", config, "--sweep.scales", "0.3", "--sweep.ratios", "0.1,0.4").status == 0
    assert [trial.params["ratio"] for trial in trials(whole)[count:]] == [0.4]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_search_between_the_ends(base_config: Config, sampler: str) -> None:
    config = with_root(base_config, sampler)
    file = Path(config["trainer"]["default_root_dir"]).with_name("points.db")
    options = ("--sweep.sampler", sampler, "--sweep.storage", str(file), "--sweep.methods", "act")
    for count in (2, 3):  # the second goes on
        assert run("sweep", config, *GRID, *options, "--sweep.trials", str(count)).status == 0
        study = optuna.load_study(study_name="act", storage=RDBStorage(f"sqlite:///{file}"))
        assert len(study.trials) == count
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 3, "random numbers do not begin again"
    assert all(0.3 <= trial.params["scale"] <= 1.0 and 0.1 <= trial.params["ratio"] <= 0.5 for trial in study.trials)
    assert len(study.best_trials) >= 1


def test_two_sweeps_do_not_share_a_storage(base_config: Config, tmp_path: Path) -> None:
    storage = tmp_path / "journal.log"
    with lock_output(storage, "sweep", "sweep.storage"):
        outcome = run("sweep", with_root(base_config, "second"), *GRID, "--sweep.storage", storage)
    assert outcome.status == 1
    assert f"sweep.storage = '{storage}': must not be in use" in outcome.err


@pytest.mark.slow
def test_two_processes_find_what_one_finds(base_config: Config, whole: Path) -> None:
    config = changed(with_root(base_config, "two"), "trainer.devices", 2)
    config["trainer"]["strategy"] = "ddp"
    process = start(config)
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr.decode()
    results = without_seconds(rows(Path(config["trainer"]["default_root_dir"])))
    expected = [row for row in without_seconds(rows(whole)) if row["ratio"] != "0.4"]  # that of the grown grid
    assert results == expected
