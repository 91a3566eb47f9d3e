"""Every shipped config runs: those of the laboratory as they are, the others with tiny models and data in place."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import act_lightning
from tests.front_door import Config, call, write_yaml
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

ROOT = Path(act_lightning.__file__).parent.parent
CONFIGS = sorted(set(ROOT.glob("configs/**/*.yaml")) - set(ROOT.glob("configs/lm_eval/**/*.yaml")))
COMMAND = re.compile(r"-m act_lightning ((?:data )?\w+)((?: --config \S+)+)")


def content_of(file: Path) -> Config:
    content: Config = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def is_whole(content: Config) -> bool:
    """Whether it names a target; else it is an overlay for other configs."""
    return "target" in content.get("model", {})


def of_laboratory(content: Config) -> bool:
    return str(content["model"]["target"]).startswith("lab:")


def verb_of(file: Path) -> str:
    """What the command at the head of a config does."""
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    found = [match[1] for match in COMMAND.finditer(header) if str(file.relative_to(ROOT)) in match[2].split()]
    assert found, f"{file} does not open with the command that runs it"
    return found[0]


def cases(laboratory: bool) -> list[Any]:
    chosen = [file for file in CONFIGS if is_whole(content_of(file)) and of_laboratory(content_of(file)) is laboratory]
    return [pytest.param(file, id=str(file.relative_to(ROOT))) for file in chosen]


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    target = save_model(tiny_model("qwen2"), tiny_tokenizer(), root / "target")
    return target, save_model(sibling_of(tiny_model("qwen2"), 1), tiny_tokenizer(), root / "source")


def small(content: Config, pair: tuple[Path, Path], folder: Path) -> Config:
    """An overlay that puts tiny models and small files in the place of those that a config names."""
    rows = [{"prompt": f"Say {number}", "answer": "two words"} for number in range(6)]
    data: Config = {"path": str(write_jsonl(folder / "rows.jsonl", rows))}
    data |= {key: None for key in ("name", "split", "revision", "columns", "filter")}
    sources = [
        {**source, "model": str(pair[1]), "name": source.get("name") or str(source["model"]).split("/")[-1]}
        for source in content.get("profile", {}).get("sources") or []
    ]
    sections, quiet = content.get("data", {}), {"enable_progress_bar": False, "enable_model_summary": False}
    return {
        "model": {"target": str(pair[0])},
        "data": {kind: dict.fromkeys(sections.get(kind, {}), data) for kind in ("abilities", "evaluations")},
        "profile": {"sources": sources or None},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(folder / "run")} | quiet,
    }


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_parses(file: Path) -> None:
    verb = ("data", "translate") if "translate" in content_of(file) else ("fit",)
    outcome = call(*verb, "--config", file, "--print_config")
    assert outcome.status == 0, outcome.err
    assert yaml.safe_load(outcome.out)


@pytest.mark.parametrize("file", cases(laboratory=False))
def test_runs_with_tiny_models(file: Path, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    verb, content = verb_of(file), content_of(file)
    overlay = write_yaml(tmp_path / "small.yaml", small(content, tiny_pair, tmp_path))
    outcome = call(verb, "--config", file, "--config", overlay)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / {"fit": "model", "merge": "merged"}[verb] / "config.json").is_file()
    plan = call("plan", "--config", file, "--config", overlay)
    assert "error: " not in plan.out


@pytest.mark.slow
@pytest.mark.parametrize("file", cases(laboratory=True))
def test_runs_as_it_is_with_few_steps(file: Path, tmp_path: Path) -> None:
    few = ("--trainer.max_steps", 2, "--trainer.default_root_dir", tmp_path, "--trainer.enable_model_summary", "false")
    outcome = call(verb_of(file), "--config", file, *few)
    assert outcome.status == 0, outcome.err


def test_the_papers_numbers_are_in_the_papers_configs() -> None:
    def settings(name: str) -> Config:
        return content_of(ROOT / "configs" / "paper" / f"{name}.yaml")

    languages = {"ar", "bn", "hu", "ja", "ko", "sw", "te", "th", "vi"}
    numbers = {"recovery_transfer_only": (0.01, 0.4), "recovery": (0.09, 0.7), "merging": (0.9, 0.6)}
    for name, (ratio, scale) in numbers.items():
        assert (settings(name)["transfer"]["ratio"], settings(name)["transfer"]["scale"]) == (ratio, scale)
        assert {ability["limit"] for ability in settings(name)["data"]["abilities"].values()} == {1500}
    for name in ("recovery_transfer_only", "recovery"):
        (source,) = settings(name)["profile"]["sources"]
        assert set(source["abilities"]) == {f"science-{language}" for language in languages}
    abilities = settings("recovery")["data"]["abilities"]
    both = {f"{domain}-{language}" for domain in ("math", "science") for language in languages | {"en", "zh"}}
    assert set(abilities) == both
    assert math.ceil(1500 * len(abilities) / 16) == 2063
    assert settings("recovery")["trainer"]["accumulate_grad_batches"] * settings("recovery")["data"]["batch_size"] == 16
    assert settings("recovery")["model"]["learning_rate"] == 2.0e-5
