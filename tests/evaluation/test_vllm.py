"""``model.generator: vllm``, through a stand-in for its module: the same records as by transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.vllm_stand_in import stand_in
from tests.front_door import Config, basic, changed, run
from tests.tiny import END_ID, START_ID, save_model, tiny_model, tiny_tokenizer, write_jsonl

VLLM = ("--model.generator", "vllm")


def talker(folder: Path, **generation: Any) -> Path:
    """A random model that ends some of its answers early, at either of two tokens, and wants to be sampled."""
    model = tiny_model("qwen2", tie_word_embeddings=False)
    model.get_output_embeddings().weight.data[[START_ID, END_ID]] *= 2.5
    defaults = {"eos_token_id": [START_ID, END_ID], "do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    for name, value in (defaults | generation).items():
        setattr(model.generation_config, name, value)
    return save_model(model, tiny_tokenizer(), folder)


@pytest.fixture(scope="module")
def base_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A config with sets of two kinds, the rows of many lengths."""
    root = tmp_path_factory.mktemp("asked")
    target = talker(root / "target")
    rows = [{"prompt": "Say " + "one " * (3 * number % 7), "answer": str(number)} for number in range(9)]
    kept = write_jsonl(root / "kept.jsonl", rows)
    config = basic(root, target, target, kept)
    config["data"]["evaluations"] = {
        "words": {"path": str(kept), "role": "recover", "max_new_tokens": 9},
        "numbers": {"path": str(kept), "role": "keep", "kind": "number", "max_new_tokens": 4, "limit": 5},
    }
    return config


@pytest.fixture
def config(base_config: Config, tmp_path: Path) -> Config:
    return changed(base_config, "trainer.default_root_dir", str(tmp_path / "run"))


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", stand_in())


def written(config: Config, verb: str, *arguments: object) -> dict[str, bytes]:
    outcome = run(verb, config, *arguments)
    assert outcome.status == 0, outcome.err
    folder = Path(config["trainer"]["default_root_dir"]) / "evaluations"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("vllm")
def test_writes_what_transformers_writes(config: Config, tmp_path: Path) -> None:
    by_transformers = written(changed(config, "trainer.default_root_dir", str(tmp_path / "other")), "test")
    assert written(config, "test", *VLLM) == by_transformers
    rows = [json.loads(line) for line in by_transformers["words.jsonl"].splitlines()]
    assert {row["truncated"] for row in rows} == {True, False}
    predicted = written(changed(config, "trainer.default_root_dir", str(tmp_path / "predicted")), "predict", *VLLM)
    predictions = [json.loads(line)["prediction"] for line in predicted["predictions/words.jsonl"].splitlines()]
    assert predictions == [row["prediction"] for row in rows]


@pytest.mark.usefixtures("vllm")
def test_an_output_cut_by_the_context_is_truncated(config: Config) -> None:
    rows = [json.loads(line) for line in written(config, "test", *VLLM)["words.jsonl"].splitlines()]
    number = max(range(9), key=lambda number: rows[number]["tokens"])
    length = len(tiny_tokenizer()(rows[number]["prompt"]).input_ids)
    last = changed(
        config, "data.evaluations.words", config["data"]["evaluations"]["words"] | {"skip": number, "limit": 1}
    )
    cut = changed(changed(last, "data.evaluations.numbers", ...), "model.generator_args", {"max_model_len": length + 3})
    (row,) = (json.loads(line) for line in written(cut, "test", *VLLM)["words.jsonl"].splitlines())
    assert (row["prompt"], row["tokens"], row["truncated"]) == (rows[number]["prompt"], 3, True)


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("model.generator_args", {"max_model_len": 4}, "must take these prompts (The decoder prompt is longer"),
        ("model.generator_args", {"unheard_of": 1}, "must take this model and these arguments"),
        ("model.generator_args", {"trust_remote_code": True}, "must not hold trust_remote_code"),
        ("ckpt_path", "best", "cannot be read where model.generator is vllm"),
    ],
)
def test_what_it_cannot_do_is_said(config: Config, setting: str, value: Any, problem: str) -> None:
    outcome = run("test", changed(config, setting, value), *VLLM)
    assert outcome.status == 1
    (message,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert problem in message
    assert not (Path(config["trainer"]["default_root_dir"]) / "evaluations").exists()


@pytest.mark.usefixtures("vllm")
def test_logits_that_are_no_numbers_name_set_and_row(config: Config, tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.model.norm.weight.data[3] = float("nan")
    broken = save_model(model, tiny_tokenizer(), tmp_path / "broken")
    outcome = run("test", config, *VLLM, "--model.target", broken)
    assert outcome.status == 1
    assert "NaN for" in outcome.err
    assert "kept.jsonl:1 (set words)" in outcome.err


def test_without_it_nothing_begins(config: Config) -> None:
    outcome = run("test", config, *VLLM)
    assert (outcome.status, len(outcome.err.splitlines())) == (1, 1)
    assert "model.generator = 'vllm': must be installed. Write pip install 'act-lightning[vllm]'" in outcome.err
    other = run("test", config, "--model.generator", "ollama", "--model.generator_args", "{a: 1}")
    assert "must be one of transformers, vllm" in other.err
    assert "model.generator_args" in other.err
