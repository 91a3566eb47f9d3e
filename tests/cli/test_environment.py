"""The verb ``env``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import act_lightning
from act_lightning.cli.environment import PACKAGES
from tests.front_door import call

ROOT = Path(act_lightning.__file__).parent.parent


def test_it_says_what_a_bug_report_needs() -> None:
    outcome = call("env", "--json")
    assert outcome.status == 0
    content = json.loads(outcome.out)
    assert content["packages"]["torch"] == torch.__version__
    assert content["packages"]["act-lightning"] == act_lightning.__version__
    assert content["packages"]["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert "cores usable" in content["machine"]["processor"]
    assert "GB free" in content["storage"]["working folder"]
    lines = call("env").out.splitlines()
    sections = [line[:-1] for line in lines if not line.startswith(" ")]
    assert sections == list(content)
    assert len(lines) == len(content) + sum(map(len, content.values()))


def test_it_knows_every_package_that_ours_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[\[><=]", requirement)[0] for requirement in project["dependencies"]}
    assert needed <= set(PACKAGES)


def test_it_tells_no_secret_and_no_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hunter2@hub.example")
    monkeypatch.setenv("https_proxy", "me:hunter2@proxy:3128")
    monkeypatch.setenv("HF_HOME", f"{Path.home()}/models")
    monkeypatch.setenv("HF_HUB_CACHE", "a\x1b[31mb")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("UNRELATED", "not told")
    for arguments in ((), ("--json",)):
        text = call("env", *arguments).out
        assert "hunter2" not in text
        assert "not told" not in text
        assert "\x1b" not in text
        assert f"{Path.home()}/" not in text
    variables = json.loads(call("env", "--json").out)["variables"]
    assert variables["HF_TOKEN"] == variables["https_proxy"] == "[redacted]"
    assert (variables["HF_HOME"], variables["CUDA_VISIBLE_DEVICES"]) == ("~/models", "1")
    assert "OPENAI_API_KEY" not in variables


def test_it_works_where_folders_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "not" / "there"))
    assert "GB free" in json.loads(call("env", "--json").out)["storage"]["this package's cache"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("verb", ["env", "config-schema"])
def test_a_full_disk_behind_standard_output_is_named(verb: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "act_lightning", verb]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: file = 'standard output': must be usable (No space left on device)")
