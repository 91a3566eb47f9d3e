"""``merge`` without Lightning: the same bits as with it, imports, memory, and what goes to LightningCLI."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from act_lightning.callbacks import ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.checkpoints import weight_files
from act_lightning.checkpoints.model_spec import read_model_spec
from act_lightning.cli.merge import SECTIONS, merge_without_trainer
from act_lightning.module import AbilityTransferModule
from tests.checkpoints.test_export import contents
from tests.front_door import Config, basic, call, changed, run, write_yaml
from tests.programs import PROGRAMS
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

FORBIDDEN = ("lightning", "transformers", "datasets", "huggingface_hub")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a merge from saved scores, without data, as a user writes it."""
    root = tmp_path_factory.mktemp("profiled")
    target = tiny_model("llama", dtype=torch.bfloat16)
    folders = {"t": target, "s": sibling_of(target, 1)}
    paths = {name: save_model(model, tiny_tokenizer(), root / name, "30KB") for name, model in folders.items()}
    data = write_jsonl(root / "d.jsonl", [{"prompt": f"Say {i}", "answer": "one two"} for i in range(4)])
    config = basic(root, paths["t"], paths["s"], data)
    assert run("profile", config).status == 0
    config = changed(changed(config, "data", ...), "model.learning_rate", ...)
    return changed(config, "transfer.scores", str(root / "run" / "scores"))


@pytest.fixture
def config(profiled: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The same config, with an output folder for this test."""
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    return changed(profiled, "trainer.default_root_dir", str(tmp_path / "run"))


def is_direct(config: Config, *arguments: str) -> bool:
    """Whether a command line is answered without LightningCLI."""
    path = write_yaml(Path(config["trainer"]["default_root_dir"]).with_name("direct.yaml"), config)
    with ExitStack() as lock:
        return merge_without_trainer(["--config", str(path), *arguments], lock) is not None


SETTINGS: list[dict[str, Any]] = [
    {},
    {"selection": "all", "method": "ties"},
    {"selection": "random", "ratio": 0.2, "method": "dare"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_both_paths_write_the_same(settings: dict[str, Any], config: Config, tmp_path: Path) -> None:
    config["transfer"] |= settings
    assert is_direct(config)
    assert run("merge", config).status == 0
    direct = contents(tmp_path / "run" / "merged")
    report = (tmp_path / "run" / "transfer.json").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("act_lightning.cli.merge.merge_without_trainer", lambda arguments, lock: None)
        assert run("merge", config, "--overwrite").status == 0
    expected = contents(tmp_path / "run" / "merged")
    assert (tmp_path / "run" / "transfer.json").read_text() == report
    card = [files.pop("README.md").decode().splitlines()[0] for files in (direct, expected)]
    assert card[0] == card[1]
    assert direct == expected


def test_a_source_is_never_replaced_by_the_result(config: Config, tmp_path: Path) -> None:
    """As happens when an earlier result is a source, with the same ``default_root_dir``."""
    assert run("merge", config).status == 0
    before = contents(tmp_path / "run" / "merged")
    again = changed(
        changed(config, "profile.sources.0.model", str(tmp_path / "run" / "merged")), "transfer.scores", ...
    )
    again["transfer"]["selection"] = "all"
    assert not is_direct(again)
    outcome = run("merge", again)
    assert outcome.status == 1
    assert "must not be or hold a source, which would be replaced" in outcome.err
    assert contents(tmp_path / "run" / "merged") == before
    assert is_direct(changed(again, "trainer.default_root_dir", str(tmp_path / "other")))


def test_the_card_is_a_config_that_merges_the_same_again(config: Config, tmp_path: Path) -> None:
    assert run("merge", config, "--seed_everything", 7).status == 0
    card = (tmp_path / "run" / "merged" / "README.md").read_text()
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["seed_everything"] == 7
    assert recipe["transfer"]["scale"] == 0.4
    assert recipe["transfer"]["method"] == "task_arithmetic"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--transfer.scores", "null"),
        ("--transfer.selection", "weight"),
        ("--transfer.ratio", "0"),
        ("--transfer.scale", "null"),
        ("--transfer.rat", "0.1"),
        ("--model.export_dtype", "int8"),
        ("--model.target", "nowhere"),
        ("--seed_everything", "-1"),
        ("--trainer.devices", "2"),
        ("--trainer.accelerator", "gpu"),
        ("--data.max_length", "5"),
        ("--profile.sources", "[]"),
        ("--profile.sources", "[{model: nowhere, abilities: [d]}]"),
        ("--help",),
        ("--transfer.ratio",),
        ("merge",),
    ],
)
def test_other_settings_and_issues_go_to_lightning_cli(arguments: tuple[str, ...], config: Config) -> None:
    assert is_direct(config)
    assert not is_direct(config, *arguments)


def test_a_broken_file_goes_to_lightning_cli(config: Config, tmp_path: Path) -> None:
    for text in ("[", "3", "model: 5", "transfer: {ratio: yes}"):
        (tmp_path / "broken.yaml").write_text(text)
        assert not is_direct(config, "--config", str(tmp_path / "broken.yaml"))
    assert not is_direct(config, "--config", str(tmp_path / "absent.yaml"))
    assert call("merge", "--config", tmp_path / "absent.yaml").status


def test_every_setting_has_the_name_and_default_that_lightning_cli_knows() -> None:
    owners = {
        "model": AbilityTransferModule,
        "profile": ActivationDifferenceProfiler,
        "transfer": MaskedTaskVectorInjection,
        "trainer": L.Trainer,
    }
    assert SECTIONS.keys() == owners.keys()
    for name, owner in owners.items():
        known = inspect.signature(owner).parameters
        for field in fields(SECTIONS[name]):
            assert field.name in known
            if field.default is not MISSING:
                assert field.default == known[field.name].default, f"{name}.{field.name}"


def measured(config: Config, *arguments: str) -> dict[str, Any]:
    """The peak memory and the imports of a merge in a separate process."""
    path = write_yaml(Path(config["trainer"]["default_root_dir"]).with_name("measured.yaml"), config)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [
        sys.executable,
        str(PROGRAMS / "measured_merge.py"),
        "merge",
        "--overwrite",
        "--config",
        str(path),
        *arguments,
    ]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    assert result["status"] == 0, process.stderr
    return result


def test_importing_the_verb_imports_no_heavy_package_besides_torch() -> None:
    code = f"import sys, act_lightning.cli.merge; print(sorted({{*{FORBIDDEN}}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_memory_stays_below_three_times_the_largest_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For three models that take six times as much; once they are described, a merge needs no heavy imports."""
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    target = tiny_model("llama", dtype=torch.bfloat16, vocab_size=32000, hidden_size=1024)
    largest = target.lm_head.weight.nbytes
    t = save_model(target, tiny_tokenizer(), tmp_path / "t")
    a, b = (Path(shutil.copytree(t, tmp_path / name)) for name in "ab")
    for number, folder in enumerate((a, b), 1):  # of the last element, one byte each
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(bytes([number]))
    read_model_spec(t)
    config = basic(tmp_path, t, a, tmp_path / "none.jsonl")
    config = changed(changed(config, "data", ...), "model.learning_rate", ...)
    config["profile"]["sources"].append({"model": str(b), "abilities": ["d"], "name": "b"})
    config["transfer"] = {"selection": "all"}
    for method in ("task_arithmetic", "ties"):
        result = measured(config, "--transfer.method", method)
        assert not {*FORBIDDEN} & {*result["modules"]}
        assert result["peak"] < 3 * largest


@pytest.mark.parametrize("role", ["target", "source"])
def test_weights_that_changed_beyond_the_quick_check_are_refused(
    role: str, profiled: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge reads all of the target and some of the source; ``--verify`` reads all of both."""
    monkeypatch.setattr(weight_files, "_SAMPLE_BYTES", 8)
    copies = {
        name: shutil.copytree(folder, tmp_path / name)
        for name, folder in (
            ("target", profiled["model"]["target"]),
            ("source", profiled["profile"]["sources"][0]["model"]),
        )
    }
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"Say {i}", "answer": "one two"} for i in range(4)])
    config = basic(tmp_path, copies["target"], copies["source"], data)
    assert run("profile", config).status == 0
    config = changed(config, "transfer.scores", str(tmp_path / "run" / "scores"))
    assert run("merge", config, "--verify").status == 0
    digest = weight_files.identify(copies[role]).digest
    path = sorted(copies[role].glob("*.safetensors"))[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last element of the file's last tensor, beyond the first 8 bytes
    path.write_bytes(content)
    assert weight_files.identify(copies[role]).digest == digest, "the quick check sees nothing"
    shutil.rmtree(tmp_path / "run" / "merged")
    plain, verified = run("merge", config), run("merge", config, "--verify")
    for outcome in (plain, verified) if role == "target" else (verified,):
        assert outcome.status == 1
        assert f"measured on the {role} of this run, of which {path.name} has changed since" in outcome.err
        assert role == "source" or not list((tmp_path / "run").glob("*merged*")), "nothing of a merge is left"
    if role == "source":
        assert plain.status == 0, plain.err
