"""What `test` writes, against the generations themselves; what `compare` makes of two runs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from act_lightning.evaluation.intervals import wilson
from tests.front_door import Config, basic, call, changed, left, run
from tests.tiny import END_ID, save_model, tiny_model, tiny_tokenizer, write_jsonl

FILES = ["numbers.jsonl", "results.csv", "results.json", "results.md", "words.jsonl"]


def talker(folder: Path, seed: int) -> Path:
    """A random model that ends some of its answers early."""
    model = tiny_model("llama", seed=seed, tie_word_embeddings=False)
    model.get_output_embeddings().weight.data[END_ID] *= 2.5
    return save_model(model, tiny_tokenizer(), folder / f"model{seed}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return talker(folder, 0), talker(folder, 3)


@pytest.fixture(scope="module")
def base_config(tmp_path_factory: pytest.TempPathFactory, models: tuple[Path, Path]) -> Config:
    """Two evaluation sets; some words are what the first model says."""
    tmp_path = tmp_path_factory.mktemp("sets")
    words = [{"prompt": f"Say {number}", "answer": "?"} for number in range(12)]
    numbers = [{"prompt": f"Add {number}", "answer": "3"} for number in range(7)]
    sets: Config = {
        "words": {"path": str(write_jsonl(tmp_path / "w.jsonl", words)), "role": "recover", "max_new_tokens": 6},
        "numbers": {"path": str(write_jsonl(tmp_path / "n.jsonl", numbers)), "role": "keep", "kind": "number"},
    }
    sets["numbers"] |= {"language": "en", "question": "benchmax", "max_new_tokens": 5}
    config = changed(basic(tmp_path, models[0], models[1], tmp_path / "w.jsonl"), "data.evaluations", sets)
    folder = tmp_path / "first"
    assert run("predict", changed(config, "trainer.default_root_dir", str(folder))).status == 0
    predictions = [row["prediction"] for row in lines(folder / "evaluations" / "predictions" / "words.jsonl")]
    for row, text in zip(words[::2], predictions[::2], strict=True):
        row["answer"] = text.strip() or "?"
    write_jsonl(tmp_path / "w.jsonl", words)
    return config


@pytest.fixture
def config(base_config: Config, tmp_path: Path) -> Config:
    """The same, with files that a test may change."""
    config = base_config
    for name, one in base_config["data"]["evaluations"].items():
        config = changed(config, f"data.evaluations.{name}.path", shutil.copy(one["path"], tmp_path))
    return config


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(config: Config, root: Path, model: Path) -> Path:
    outcome = run("test", changed(changed(config, "trainer.default_root_dir", str(root)), "model.target", str(model)))
    assert outcome.status == 0, outcome.err
    assert "Shares in %" in outcome.out
    assert "DataLoader" not in outcome.out, "Lightning's table would repeat every figure for every set"
    return root / "evaluations"


def test_results_are_what_the_generations_say(config: Config, tmp_path: Path, models: tuple[Path, Path]) -> None:
    folder = evaluated(config, tmp_path / "tested", models[0])
    assert left(folder) == FILES
    results = json.loads((folder / "results.json").read_text())
    assert (results["model"], set(results["sets"])) == (str(models[0]), {"words", "numbers"})
    table = {row["set"]: row for row in csv.DictReader(io.StringIO((folder / "results.csv").read_text()))}
    markdown = (folder / "results.md").read_text()
    for name, one in results["sets"].items():
        rows = lines(folder / f"{name}.jsonl")
        assert [row["row"] for row in rows] == list(range(len(rows)))
        for count, key in (("correct", "correct"), ("flexible", "flexible_correct"), ("answered",) * 2):
            assert one[count] == sum(row[key] for row in rows) == int(table[name][count])
        assert one["truncated"] == sum(row["truncated"] for row in rows) > 0
        assert one["tokens"][0] == pytest.approx(fmean(row["tokens"] for row in rows))
        low, high = wilson(one["correct"], one["total"])
        assert one["shares"]["exact_match"] == {"value": one["correct"] / one["total"], "low": low, "high": high}
        assert f"| {name} | {one['role']} | {one['total']} |" in markdown
    assert results["sets"]["words"]["correct"] >= 4
    assert results["sets"]["words"]["truncated"] < 12
    assert results["means"]["recover"]["value"] == results["sets"]["words"]["correct"] / 12
    assert (results["sets"]["words"]["metric"], results["sets"]["numbers"]["metric"]) == (
        "exact_match",
        "flexible_match",
    )
    prompts = [row["prompt"] for row in lines(folder / "numbers.jsonl")]
    assert "Question: Add 0\nStep-by-Step Answer:" in prompts[0]


def test_compare_pairs_rows(config: Config, tmp_path: Path, models: tuple[Path, Path]) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    before, after = (
        lines(evaluated(config, root, model) / "words.jsonl") for root, model in zip(roots, models, strict=True)
    )
    gained = sum(new["correct"] > old["correct"] for old, new in zip(before, after, strict=True))
    lost = sum(new["correct"] < old["correct"] for old, new in zip(before, after, strict=True))
    assert lost >= 4
    outcome = call("compare", *roots, "--format", "csv")
    assert outcome.status == 0
    (line,) = [
        row
        for row in csv.DictReader(io.StringIO(outcome.out))
        if (row["set"], row["run"], row["match"]) == ("words", "two", "exact")
    ]
    assert (int(line["gained"]), int(line["lost"])) == (gained, lost)
    assert float(line["difference"]) == pytest.approx((gained - lost) / 12)
    assert float(line["low"]) < float(line["difference"]) < float(line["high"])
    assert f"+{gained} −{lost}" in call("compare", *roots, "--format", "markdown").out
    output = call("compare", *roots).out
    assert "accuracy" in output
    assert "the other match" in output
    assert re.search(rf"\+{gained} −{lost} *$", output, re.MULTILINE), "in one line, however narrow the terminal"


def test_means_and_comparisons_count_by_the_metric(config: Config, tmp_path: Path, models: tuple[Path, Path]) -> None:
    """The answer that the model gave, in capitals: wrong to the letter, right flexibly."""
    words = [row | {"answer": row["answer"].upper() + "!"} for row in lines(tmp_path / "w.jsonl")]
    write_jsonl(tmp_path / "w.jsonl", words)
    config = changed(config, "data.evaluations.words.metric", "flexible_match")
    roots = [tmp_path / "one", tmp_path / "two"]
    for root, model in zip(roots, models, strict=True):
        evaluated(config, root, model)
    results = json.loads((roots[0] / "evaluations" / "results.json").read_text())
    one = results["sets"]["words"]
    assert one["flexible"] > one["correct"]
    assert results["means"]["recover"]["value"] == one["flexible"] / 12
    mean = f"| mean | recover |  |  | {100 * one['flexible'] / 12:.1f} "
    first, second = call("compare", *roots, "--format", "markdown").out.split("the other match")
    assert mean in first
    assert "| words | recover | flexible | 12 |" in first
    assert "| words | recover | exact | 12 |" in second
    assert "| mean |" not in second


def test_compare_refuses_what_cannot_be_paired(config: Config, tmp_path: Path, models: tuple[Path, Path]) -> None:
    one, other, fewer = tmp_path / "one", tmp_path / "other", tmp_path / "fewer"
    evaluated(config, one, models[0])
    words = lines(tmp_path / "w.jsonl")
    write_jsonl(tmp_path / "w.jsonl", [*words[:-1], words[-1] | {"answer": "another"}])
    evaluated(config, other, models[0])
    evaluated(changed(config, "data.evaluations.words.limit", 5), fewer, models[0])
    evaluated(changed(config, "data.evaluations.words", ...), tmp_path / "lacking", models[0])
    rules = {other: "'row 11': must ask what set words", fewer: "'5 rows': must have the 12 rows of set words"}
    rules |= {tmp_path / "lacking": "must have the sets of", tmp_path / "gone": "must be a run that was tested"}
    for run_folder, problem in rules.items():
        outcome = call("compare", one, run_folder)
        assert outcome.status == 1
        assert problem in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert call("compare", one).status == 2


def test_a_broken_file_is_named(config: Config, tmp_path: Path, models: tuple[Path, Path]) -> None:
    folder = evaluated(config, tmp_path / "one", models[0])
    (folder / "words.jsonl").write_text('{"row": 0}\n')
    outcome = call("compare", tmp_path / "one", tmp_path / "one")
    assert (outcome.status, "words.jsonl" in outcome.err) == (1, True)


def test_a_model_of_no_numbers_is_an_error_and_writes_nothing(config: Config, tmp_path: Path) -> None:
    """Its weights are numbers; what it makes of them is not, and the error names set and row."""
    model = tiny_model("llama")
    model.model.norm.weight.data.fill_(3e38)
    broken = save_model(model, tiny_tokenizer(), tmp_path / "broken")
    root = tmp_path / "nan"
    outcome = run("test", changed(config, "trainer.default_root_dir", str(root)), "--model.target", broken)
    assert outcome.status == 1
    assert re.search(r"gave NaN for \S+w\.jsonl:\d+ \(set words\)", outcome.err)
    assert not (root / "evaluations").exists()
