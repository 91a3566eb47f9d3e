"""Loggers whose package is missing are refused before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import act_lightning
from tests.front_door import basic, left, run
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
