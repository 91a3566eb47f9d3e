"""How fast a verb starts: by what it imports, not by the clock; and what it says before that."""

from __future__ import annotations

import inspect
import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import lightning as L
import pytest

import act_lightning.cli
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.cli import VERBS, lightning_cli, main
from act_lightning.cli.plan import TrainerSection
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.section import DataSection
from act_lightning.errors import ActError
from act_lightning.module import AbilityTransferModule
from act_lightning.sections import ModelSection, ProfileSection, TransferSection
from tests.front_door import Config, basic, call, changed, launch_forgotten, write_yaml
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

ROOT = Path(act_lightning.cli.__file__).parents[2]
HEAVY = {"lightning", "datasets", "pandas", "matplotlib", "optuna", "torchmetrics", "torch._dynamo", "sympy"}
HEAVY |= {"transformers.modeling_utils", "transformers.models.qwen2.modeling_qwen2", "transformers.generation.utils"}
READS_CONFIGS = ("plan", "data")
"""With transformers' own classes of configs and tokenizers."""


def imported_by(code: str) -> set[str]:
    """The modules that a new process has imported when it has run ``code``."""
    code = f"import sys\n{code}\nprint('\\n' + ' '.join(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].imports != "PyTorch Lightning"])
def test_a_verb_imports_no_more_than_it_says(verb: str) -> None:
    module = VERBS[verb].entry.partition(":")[0]
    packages = imported_by(f"import act_lightning.cli.{module}")
    assert packages & HEAVY == set()
    assert "transformers" not in packages or verb in READS_CONFIGS
    assert ("torch" in packages) is (VERBS[verb].imports == "torch")


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return basic(tmp_path, target_folder, source_folder, ability_file)


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "--for", "merge", "--json"], ["data", "inspect"]])
def test_a_plan_imports_neither_lightning_nor_code_of_models(
    arguments: list[str], config: Config, tmp_path: Path
) -> None:
    """But for Llama's and a few others', whose configs import code of models in transformers."""
    target = save_model(tiny_model("qwen2"), tiny_tokenizer(), tmp_path / "target")
    source = save_model(sibling_of(tiny_model("qwen2"), 1), tiny_tokenizer(), tmp_path / "source")
    config = changed(changed(config, "model.target", str(target)), "profile.sources.0.model", str(source))
    file = str(write_yaml(tmp_path / "config.yaml", config))
    assert call(*arguments, "--config", file).status == 0  # which counts the channels of these models once
    modules = imported_by(f"from act_lightning.cli import main\nassert main({[*arguments, '--config', file]}) == 0")
    assert modules & HEAVY == set()


def test_card_and_compare_import_neither_lightning_nor_transformers(config: Config, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"Say {i}", "answer": "four"} for i in range(3)])
    config["data"]["evaluations"] = {"kept": {"path": str(rows), "role": "keep", "max_new_tokens": 3}}
    roots = [str(tmp_path / name) for name in ("first", "second")]
    for root in roots:
        config["trainer"]["default_root_dir"] = root
        file = write_yaml(tmp_path / "config.yaml", config)
        for verb in ("merge", "test"):
            assert call(verb, "--config", file).status == 0
    for arguments in (["card", roots[0]], ["compare", *roots]):
        modules = imported_by(f"from act_lightning.cli import main\nassert main({arguments}) == 0")
        assert modules & (HEAVY | {"transformers"}) == set()


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("plan", {}),
        ("plan", {"trainer.precision": "bf16-true", "trainer.max_time": {"hours": 1}, "trainer.devices": "2"}),
        ("plan", {"transfer.ratio": 7, "data.packing": True, "model.dtype": "int3", "profile.chunks": 99}),
        ("plan", {"profile.sources": None, "trainer.strategy": "fsdp", "trainer.accumulate_grad_batches": 3}),
        ("plan", {"model.optimizer": "sgd", "model.compile": {"mode": "no"}, "data.validation": 0.5}),
        ("plan", {"model.target": "nowhere", "transfer.selection": "attribution"}),
        ("plan", {"trainer.callbacks": [{"class_path": "act_lightning.callbacks.BestRecovery"}]}),
        ("plan", {"trainer.callbacks": [{"class_path": "nowhere.Callback"}]}),
        ("plan", {"trainer.max_epochs": "many"}),
        ("plan", {"trainer.nothing": 1, "model.learning_rate": "fast"}),
        ("plan", {"data.abilities.d.filter": "?"}),
        ("plan", {"model.lr_scheduler": {"class_path": "torch.optim.lr_scheduler.ConstantLR"}}),
        ("inspect", {}),
        ("inspect", {"data.validation": 0.5}),
        ("inspect", {"data.max_length": 0}),
        ("inspect", {"trainer.logger": {"class_path": "lightning.pytorch.loggers.CSVLogger"}}),
    ],
)
def test_the_parser_without_lightning_says_what_the_other_says(
    verb: str, options: Config, config: Config, tmp_path: Path
) -> None:
    for name, value in options.items():
        config = changed(config, name, value)
    file = write_yaml(tmp_path / "config.yaml", config)
    light = call(*(("data", "inspect") if verb == "inspect" else (verb,)), "--config", file, "--json")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, launch_forgotten():
        try:
            status = lightning_cli.main([verb, "--config", str(file), "--json"])
        except ActError as error:
            status = 1
            print(f"error: {error}", file=sys.stderr)
        except SystemExit as error:
            status = int(error.code or 0)
    free = re.compile(r'"(free|host)": \d+')
    assert (light.status, free.sub("", light.out)) == (status, free.sub("", out.getvalue()))
    assert light.err.endswith(err.getvalue())


def test_section_trainer_is_lightnings() -> None:
    """With the same settings, defaults and types, except objects of classes."""

    def types(hint: Any) -> set[Any]:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            return set().union(*map(types, arguments))
        if origin is Literal:
            return {NoneType if value is None else value for value in arguments}
        is_object = "lightning." in str(hint)
        return set() if is_object else {hint}

    hints = get_type_hints(TrainerSection)
    parameters = inspect.signature(L.Trainer).parameters
    assert list(hints) == list(parameters)
    assert {field.name: field.default for field in fields(TrainerSection)} == {
        name: parameter.default for name, parameter in parameters.items()
    }
    for name, parameter in parameters.items():
        assert types(hints[name]) == types(parameter.annotation), name


@pytest.mark.parametrize(
    ("section", "cls"),
    [
        (ModelSection, AbilityTransferModule),
        (DataSection, AbilityDataModule),
        (ProfileSection, ActivationDifferenceProfiler),
        (TransferSection, MaskedTaskVectorInjection),
    ],
)
def test_what_a_trainer_calls_has_the_settings_of_its_section(section: type, cls: type) -> None:
    assert issubclass(cls, section)
    assert inspect.signature(cls) == inspect.signature(section)


@pytest.mark.parametrize("arguments", [["--help"], ["nonsense"], ["fit", "--help"], ["data", "inspect", "--help"]])
def test_help_and_wrong_verbs_wait_for_no_import(arguments: list[str]) -> None:
    code = f"from act_lightning.cli import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert not imported_by(code) & (HEAVY | {"torch", "transformers", "jsonargparse", "numpy", "rich"})


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_line_stands_before_the_first_import(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> NoReturn:
        raise KeyboardInterrupt

    def first_lines(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["act-lightning", verb, *arguments])
        assert main() == 130
        return capsys.readouterr().err.replace("stopped by Ctrl-C\n", "")

    monkeypatch.setattr(act_lightning.cli, "import_module", interrupted)
    line = first_lines("--config", "recover.yaml")
    expected = f"{verb}: importing {VERBS[verb].imports}, then reading what it is given\n"
    assert line == (expected if VERBS[verb].imports else "")
    assert len(line) <= 80
    assert first_lines("--json") == first_lines("--print_config") == ""
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert first_lines() == ""


def test_a_program_that_calls_main_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Any = ["compare", "nowhere", "elsewhere"]
    assert main(arguments) == 1
    assert "importing" not in capsys.readouterr().err
