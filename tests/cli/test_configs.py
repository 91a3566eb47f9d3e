"""Every shipped config runs: those of the laboratory as they are, the others with tiny models and data in place."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import act_lightning
from act_lightning.analysis.paper import PAPER_PAIRS, paper_pair
from act_lightning.channels import inventory
from act_lightning.sweep.sweep_settings import RATIOS
from tests.front_door import Config, call, write_yaml
from tests.hub_rows import ROWS, local
from tests.tiny import save_model, sibling_of, tiny_config, tiny_model, tiny_tokenizer, write_jsonl

ROOT = Path(act_lightning.__file__).parent.parent
CONFIGS = sorted(set(ROOT.glob("configs/**/*.yaml")) - set(ROOT.glob("configs/lm_eval/**/*.yaml")))
SECTIONS = {"translate": ("data", "translate"), "sweep": ("sweep",)}
"""Sections that one verb alone has."""
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
    other: Config = {"path": str(write_jsonl(folder / "rows.jsonl", rows))}
    other |= dict.fromkeys(("name", "split", "revision", "columns", "filter"))
    sources = [
        {**source, "model": str(pair[1]), "name": source.get("name") or str(source["model"]).split("/")[-1]}
        for source in content.get("profile", {}).get("sources") or []
    ]
    sections, quiet = content.get("data", {}), {"enable_progress_bar": False, "enable_model_summary": False}
    sets = {
        kind: {
            name: local(one, folder) if one["path"] in ROWS else other for name, one in sections.get(kind, {}).items()
        }
        for kind in ("abilities", "evaluations")
    }
    return {
        "model": {"target": str(pair[0])},
        "data": sets,
        "profile": {"sources": sources or None},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(folder / "run")} | quiet,
    }


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_parses(file: Path) -> None:
    found = [verb for section, verb in SECTIONS.items() if section in content_of(file)]
    verb = found[0] if found else ("fit",)
    outcome = call(*verb, "--config", file, "--print_config")
    assert outcome.status == 0, outcome.err
    assert yaml.safe_load(outcome.out)


@pytest.mark.parametrize("file", cases(laboratory=False))
def test_runs_with_tiny_models(file: Path, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    verb, content = verb_of(file), content_of(file)
    overlay = write_yaml(tmp_path / "small.yaml", small(content, tiny_pair, tmp_path))
    planned = ("--for", "sweep") if verb == "sweep" else ()
    plan = call("plan", *planned, "--config", file, "--config", overlay)
    assert "error: " not in plan.out
    fewer = ("--sweep.ratios", 0.5) if verb == "sweep" else ()
    outcome = call(verb, "--config", file, "--config", overlay, *fewer)
    assert outcome.status == 0, outcome.err
    made = tmp_path / "run" / {"fit": "model", "merge": "merged", "profile": "scores", "sweep": "sweep"}[verb]
    assert made.is_dir()
    asked = content.get("data", {}).get("evaluations")
    if asked and verb != "sweep":
        result = () if verb == "profile" else ("--model.target", made)
        found = call("test", "--config", file, "--config", overlay, *result)
        assert found.status == 0, found.err
        results = json.loads((tmp_path / "run" / "evaluations" / "results.json").read_text())
        assert results["sets"].keys() == asked.keys()


BASELINES = sorted((ROOT / "configs" / "paper" / "baselines").glob("*.yaml"))


@pytest.mark.parametrize("file", BASELINES, ids=lambda file: file.stem)
def test_a_baseline_moves_everything_and_fine_tunes(file: Path, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = ROOT / "configs" / "paper" / "table3_sft.yaml"
    overlay = write_yaml(tmp_path / "small.yaml", small(content_of(whole), tiny_pair, tmp_path))
    assert f"fit --config {whole.relative_to(ROOT)} --config {file.relative_to(ROOT)}" in file.read_text()
    outcome = call("fit", "--config", whole, "--config", file, "--config", overlay, "--trainer.max_steps", 1)
    assert outcome.status == 0, outcome.err
    report = json.loads((tmp_path / "run" / "transfer.json").read_text())
    (source,) = report["sources"].values()
    assert (report["selection"], source["parameter_share"]) == ("all", 1)
    assert report["method"].lower().startswith(file.stem.removesuffix("_sft").replace("_arithmetic", ""))


@pytest.mark.slow
@pytest.mark.parametrize("file", cases(laboratory=True))
def test_runs_as_it_is_with_few_steps(file: Path, tmp_path: Path) -> None:
    few = ("--trainer.max_steps", 2, "--trainer.default_root_dir", tmp_path, "--trainer.enable_model_summary", "false")
    outcome = call(verb_of(file), "--config", file, *few)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_header_names_is_there(file: Path) -> None:
    header = "".join(line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line[0] == "#")
    named = re.findall(r"configs/[\w./-]+\.yaml", header)
    assert str(file.relative_to(ROOT)) in named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_papers_numbers_are_in_the_papers_configs() -> None:
    def settings(name: str) -> Config:
        return content_of(ROOT / "configs" / "paper" / f"{name}.yaml")

    languages = {"ar", "bn", "hu", "ja", "ko", "sw", "te", "th", "vi"}
    both = {f"{domain}-{language}" for domain in ("math", "science") for language in languages | {"en", "zh"}}
    pairs = {f"pair_{kind}_{size}": (0.01, 0.4) for kind in ("math", "coder") for size in ("7b", "1.5b")}
    numbers = {"table3_transfer": (0.01, 0.4), "table3_sft": (0.09, 0.7), "table4": (0.9, 0.6)}
    for name, (ratio, scale) in (numbers | pairs).items():
        assert (settings(name)["transfer"]["ratio"], settings(name)["transfer"]["scale"]) == (ratio, scale)
        for ability in settings(name)["data"]["abilities"].values():
            groups = ability.get("per_group", {"limit": 0, "groups": []})
            assert 1500 in (ability["limit"], groups["limit"] * len(groups["groups"]))
    for file in (ROOT / "configs" / "paper").glob("*.yaml"):
        for evaluation in content_of(file)["data"].get("evaluations", {}).values():
            expected = None if evaluation["kind"] == "code" else "flexible_match"  # the paper does not say which
            assert evaluation.get("metric") == expected, file
    for name in ("table3_transfer", "table3_sft"):
        (source,) = settings(name)["profile"]["sources"]
        assert set(source["abilities"]) == {f"science-{language}" for language in languages}
    for name in pairs:
        (source,) = settings(name)["profile"]["sources"]
        assert set(source["abilities"]) == set(settings(name)["data"]["abilities"]) == both
        assert settings(name)["model"]["target"].replace("-Math", "").replace("-Coder", "") == source["model"]
    llama = settings("pairs_llama2_13b")
    assert llama["transfer"]["ratio"] == 0.01
    assert llama["data"]["abilities"] == settings("table4")["data"]["abilities"]
    pairs_of_llama = [paper_pair(source["model"], llama["model"]["target"]) for source in llama["profile"]["sources"]]
    assert {id(pair) for pair in pairs_of_llama} == {id(pair) for pair in PAPER_PAIRS if "LLaMA" in pair.name}
    assert all(source["abilities"] == list(llama["data"]["abilities"]) for source in llama["profile"]["sources"])
    for kind in ("abilities", "evaluations"):
        assert settings("figure5")["data"][kind] == settings("table3_transfer")["data"][kind]
    assert settings("figure5")["profile"] == settings("table3_transfer")["profile"]
    assert (settings("figure5")["sweep"]["scales"], settings("figure5")["sweep"]["ratios"]) == ([0.5], list(RATIOS))
    sft = settings("table3_sft")
    assert set(sft["data"]["abilities"]) == both
    assert math.ceil(1500 * len(both) / 16) == 2063
    assert sft["trainer"]["accumulate_grad_batches"] * sft["data"]["batch_size"] == 16
    assert sft["model"]["learning_rate"] == 2.0e-5


QWEN2_1_5B = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
QWEN2_1_5B |= {"num_key_value_heads": 2, "vocab_size": 151936, "head_dim": 128, "tie_word_embeddings": True}
LLAMA2_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
LLAMA2_13B |= {"num_key_value_heads": 40, "vocab_size": 32000, "head_dim": 128, "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("architecture", "sizes", "channels", "share", "config"),
    [
        pytest.param("qwen2", QWEN2_1_5B, 607, "6.85%", "pair_math_1.5b.yaml", id="Table 8"),
        pytest.param("llama", LLAMA2_13B, 4845, "18.77%", "pairs_llama2_13b.yaml", id="Table 10a"),
    ],
)
def test_one_percent_is_as_many_channels_as_the_paper_counts(
    architecture: str, sizes: dict[str, Any], channels: int, share: str, config: str
) -> None:
    """A table of the paper says what share of a mask so many channels are."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **sizes))
    count = int(inventory(model).total * 0.01)
    assert f"{channels / count:.2%}" == share
    assert f"top 1 %, {count:,} channels" in (ROOT / "configs" / "paper" / config).read_text()
