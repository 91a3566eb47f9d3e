"""Trackers get the settings of a run, without secrets, and write below its folder; those not installed are refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import act_lightning
from tests.front_door import Config, basic, changed, left, run
from tests.tiny import write_jsonl

OVERLAY = Path(act_lightning.__file__).parent.parent / "configs" / "logging" / "wandb.yaml"


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed here")
@pytest.mark.parametrize("verb", ["fit", "profile", "merge"])
def test_wandb_that_is_not_installed(verb: str, tmp_path: Path) -> None:
    """Before the models are looked for: there are none."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "Say", "answer": "one"}])
    config = basic(tmp_path, tmp_path / "none", tmp_path / "none", data)
    logger = yaml.safe_load(OVERLAY.read_text(encoding="utf-8"))["trainer"]["logger"]
    for loggers in (logger, logger[1]):
        config["trainer"]["logger"] = loggers
        outcome = run(verb, config)
        assert outcome.status == 1
        assert "trainer.logger = 'lightning.pytorch.loggers.WandbLogger'" in outcome.err, outcome.err
        assert "pip install wandb" in outcome.err
        assert "Traceback" not in outcome.err
        assert not left(tmp_path / "run")


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    config = basic(tmp_path, target_folder, source_folder, ability_file)
    config["trainer"]["max_steps"] = 1
    return config


def hyperparameters(folder: Path) -> dict[str, Any]:
    """What TensorBoard shows as the hyperparameters of the run in a folder."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import plugin_data_pb2

    (events,) = folder.glob("events.out.tfevents.*")
    for event in EventFileLoader(str(events)).Load():
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                values = content.session_start_info.hparams.items()
                return {name: getattr(entry, str(entry.WhichOneof("kind"))) for name, entry in values}
    return {}


def test_settings_are_hyperparameters(config: Config, target_folder: Path) -> None:
    config = changed(config, "model.optimizer", {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}})
    outcome = run("fit", changed(config, "seed_everything", 7))
    assert outcome.status == 0, outcome.err
    folder = Path(config["trainer"]["default_root_dir"]) / "logs" / "version_0"
    saved = yaml.safe_load((folder / "hparams.yaml").read_text(encoding="utf-8"))  # of the CSV logger
    assert (saved["transfer"]["ratio"], saved["transfer"]["scale"], saved["seed_everything"]) == (0.1, 0.4, 7)
    shown = hyperparameters(folder)
    assert shown["transfer/ratio"] == 0.1
    assert shown["transfer/selection"] == "activation"
    assert shown["model/target"] == str(target_folder)
    assert shown["model/optimizer/init_args/lr"] == 0.5
    assert shown["data/abilities/d/path"] == config["data"]["abilities"]["d"]["path"]
    assert shown["profile/sources/s/model"] == config["profile"]["sources"][0]["model"]


def test_they_hold_no_secret_and_can_be_left_out(config: Config) -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"filename": "s3://me:pw@b"}}
    config = changed(config, "model.optimizer", optimizer)
    root = Path(config["trainer"]["default_root_dir"])
    silent = changed(config, "trainer.enable_autolog_hparams", False)
    assert run("validate", changed(silent, "data.validation", ["d"])).status == 0
    assert not hyperparameters(root / "logs" / "version_0")
    with_secret = changed(changed(config, "trainer.callbacks", [callback]), "data.validation", ["d"])
    assert run("validate", with_secret).status == 0
    assert "pw" not in "".join(path.read_bytes().decode("latin-1") for path in (root / "logs" / "version_1").iterdir())
    assert hyperparameters(root / "logs" / "version_1")["data/validation"] == "['d']"


def test_loggers_write_below_the_runs_folder(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prefix = "lightning.pytorch.loggers."
    loggers = [{"class_path": prefix + "CSVLogger"}, {"class_path": prefix + "TensorBoardLogger"}]
    loggers.append({"class_path": prefix + "CSVLogger", "init_args": {"save_dir": str(tmp_path / "other")}})
    before = {*left(tmp_path)}
    outcome = run("fit", changed(config, "trainer.logger", loggers), "--trainer.default_root_dir", tmp_path / "moved")
    assert outcome.status == 0, outcome.err
    assert {path.split("/")[0] for path in {*left(tmp_path)} - before} == {"config.yaml", "moved", "other"}
    assert (tmp_path / "moved" / "lightning_logs" / "version_0" / "metrics.csv").is_file()
    assert (tmp_path / "other" / "lightning_logs" / "version_0" / "metrics.csv").is_file()
    assert hyperparameters(tmp_path / "moved" / "lightning_logs" / "version_1")["transfer/ratio"] == 0.1
