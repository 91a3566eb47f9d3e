"""Fine-tuning after every point, each by a `fit` of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.front_door import changed, left, run
from tests.sweep.folders import make_config
from tests.sweep.test_sweep import rows, with_root

pytestmark = pytest.mark.slow
ONE = ("--sweep.scales", "1.0", "--sweep.ratios", "0.1", "--sweep.fit", "true")


def test_each_point_is_fine_tuned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    comparison = {"class_path": "act_lightning.callbacks.TransferComparison"}
    base_config = changed(make_config(tmp_path), "trainer.callbacks", [comparison])
    base_config = changed(base_config, "transfer.include", ["model.*"])
    outcome = run("sweep", base_config, *ONE)
    assert outcome.status == 0, outcome.err
    root = Path(base_config["trainer"]["default_root_dir"])
    table = rows(root)
    assert [(row["method"], row["tuned"]) for row in table] == [
        ("target", "False"),
        ("act", "False"),
        ("target", "True"),
        ("act", "True"),
    ]
    point = root / "sweep" / "points" / "act_p0.1_l1.0"
    assert not (point / "model").exists()
    assert "transfer.json" in left(point)
    config = yaml.safe_load((point / "config.yaml").read_text())
    assert config["transfer"]["scores"] == str(root / "scores")
    assert (config["transfer"]["include"], config["transfer"]["exclude"]) == (["model.*"], [])
    assert config["trainer"]["callbacks"] is None, "the sweep evaluates by itself"

    single, tested = (
        with_root(changed(base_config, "trainer.callbacks", ...), "single"),
        with_root(base_config, "tested"),
    )
    assert run("fit", single, "--transfer.ratio", "0.1", "--transfer.scale", "1.0").status == 0
    model = Path(single["trainer"]["default_root_dir"]) / "model"
    assert run("test", tested, "--model.target", model).status == 0
    results = json.loads((Path(tested["trainer"]["default_root_dir"]) / "evaluations" / "results.json").read_text())
    for name, one in results["sets"].items():
        assert int(table[3][f"{name}_correct"]) == one["correct"]

    written = (point / "fit.log").stat().st_mtime_ns
    assert run("sweep", base_config, *ONE).status == 0
    assert (point / "fit.log").stat().st_mtime_ns == written
    assert rows(root) == table
    refused = run("sweep", changed(base_config, "model.learning_rate", 0.5), *ONE)
    assert "holds a sweep with other fit." in refused.err


def test_a_fit_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr("act_lightning.sweep.finalize.sys.executable", "false")
    outcome = run("sweep", make_config(tmp_path), *ONE)
    assert outcome.status == 1
    assert "sweep.fit = True: must end in a model, and plain fine-tuning did not" in outcome.err
