"""The overlays of configs/strategy: each is planned as it is, and run on two CPU processes where Lightning lets it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import act_lightning
from tests.front_door import Config, basic, call, write_yaml
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import call_program

ROOT = Path(act_lightning.__file__).parent.parent
OVERLAYS = sorted(ROOT.glob("configs/strategy/*.yaml"))
SAMPLES_OF_AN_UPDATE = 16  # paper, appendix A


def content_of(file: Path) -> Config:
    content: Config = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A config that an overlay may follow."""
    target = tiny_model("qwen2")
    save_model(target, tiny_tokenizer(), tmp_path / "target")
    save_model(sibling_of(target, seed=1), tiny_tokenizer(), tmp_path / "source")
    data = write_jsonl(tmp_path / "d.jsonl", ({"prompt": f"Say {n}", "answer": "one two"} for n in range(20)))
    config = basic(tmp_path, tmp_path / "target", tmp_path / "source", data)
    del config["trainer"]["accelerator"]
    return write_yaml(tmp_path / "whole.yaml", config)


def test_they_are_found() -> None:
    assert {"cpu", "ddp", "fsdp", "fsdp2", "single_gpu", "single_gpu_8bit"} <= {file.stem for file in OVERLAYS}


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.stem)
def test_header_names_the_file_and_the_update_is_the_papers(file: Path) -> None:
    text, trainer = file.read_text(encoding="utf-8"), content_of(file)["trainer"]
    assert f"--config configs/strategy/{file.name}" in text.split("\n\n")[0]
    processes = trainer["devices"] * trainer.get("num_nodes", 1)
    assert processes * trainer.get("accumulate_grad_batches", SAMPLES_OF_AN_UPDATE) == SAMPLES_OF_AN_UPDATE
    sizes = trainer["strategy"]["init_args"] if isinstance(trainer["strategy"], dict) else {}
    assert sizes.get("data_parallel_size", processes) == processes


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.stem)
def test_planned_on_a_machine_without_a_gpu(file: Path, whole: Path) -> None:
    outcome = call("plan", "--config", whole, "--config", file, "--json")
    problems = json.loads(outcome.out)["problems"]
    assert not [problem for problem in problems if problem["level"] == "error"], problems


def test_settings_of_fsdp1_that_would_train_another_model_are_refused(whole: Path, tmp_path: Path) -> None:
    half = {"class_path": "torch.distributed.fsdp.MixedPrecision", "init_args": {"buffer_dtype": "torch.bfloat16"}}
    overlay = content_of(ROOT / "configs/strategy/fsdp.yaml")
    overlay["trainer"]["strategy"]["init_args"] |= {"mixed_precision": half, "cpu_offload": True}
    outcome = call("plan", "--config", whole, "--config", write_yaml(tmp_path / "overlay.yaml", overlay), "--json")
    errors = {problem["setting"] for problem in json.loads(outcome.out)["problems"] if problem["level"] == "error"}
    assert errors == {"trainer.strategy.mixed_precision", "trainer.strategy.cpu_offload"}


def on_cpu(content: Config) -> Config:
    """The same on two processes of a CPU, or one."""
    changed = copy.deepcopy(content)
    trainer: dict[str, Any] = changed["trainer"]
    devices = min(2, trainer["devices"])
    trainer |= {"accelerator": "cpu", "devices": devices, "num_nodes": 1}
    trainer["accumulate_grad_batches"] = SAMPLES_OF_AN_UPDATE // devices
    if isinstance(trainer["strategy"], dict):
        path, arguments = trainer["strategy"]["class_path"], trainer["strategy"]["init_args"]
        if path.endswith(".FSDPStrategy"):
            trainer["strategy"]["class_path"] = "tests.training.on_cpu.FSDP1"
        else:
            arguments["data_parallel_size"] = devices
    return changed


def runs() -> list[Any]:
    """What is left of the overlays on a CPU, each once."""
    once = {json.dumps(on_cpu(content_of(file)), sort_keys=True): file for file in OVERLAYS}
    return [pytest.param(json.loads(content), id=file.stem) for content, file in once.items()]


@pytest.mark.slow
@pytest.mark.parametrize("overlay", runs())
def test_run_on_a_cpu(overlay: Config, whole: Path, tmp_path: Path) -> None:
    arguments = ("fit", "--config", whole, "--config", write_yaml(tmp_path / "overlay.yaml", overlay))
    if overlay["trainer"]["devices"] == 1:
        assert call(*arguments).status == 0
    else:
        call_program("-m", "act_lightning", *arguments)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "transfer.json").read_text())["sources"]["s"]["union"]
