"""The study: that it goes on after a kill, moves what the product moves, and chooses and resamples by its rules."""

from __future__ import annotations

import copy
import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from lightning.pytorch import seed_everything
from num2words import num2words

import act_lightning as act
from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.lab.training import Stage, encode, train
from act_lightning.sweep.runner import Stopwatch, apply_and_revert
from benchmarks import smollm2, study, study_tables
from tests.tiny import save_model, tiny_model, tiny_tokenizer, write_jsonl

NUMBERS = "zero one two three four five six seven".split()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> study.Pair:
    """A model that learned two abilities by heart, and one that was trained further on one of them."""
    folder, tokenizer, model = tmp_path_factory.mktemp("pair"), tiny_tokenizer(), tiny_model("llama")
    rows = {
        "keep": [{"prompt": f"after {n}", "answer": NUMBERS[(n + 1) % 8]} for n in range(8)],
        "recover": [{"prompt": f"write {n}", "answer": NUMBERS[n]} for n in range(8)],
    }
    folders = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, roles, steps in (("source", ("keep", "recover"), 150), ("target", ("keep",), 12)):
            of_stage = [row for role in roles for row in rows[role]]
            samples = encode(tokenizer, of_stage, [1.0] * len(of_stage), whole_text=False)
            train(model, samples, Stage(steps, 16, 1e-2, 0.5), name)
            folders.append(save_model(model, tokenizer, folder / name))
    splits = {role: dict.fromkeys(("train", "validation", "test"), of_role) for role, of_role in rows.items()}
    return study.Pair("numbers", 3, *folders, MappingProxyType(splits))


@pytest.fixture
def part(pair: study.Pair, monkeypatch: pytest.MonkeyPatch) -> study.Part:
    monkeypatch.setattr(study, "SCORED_SAMPLES", 8)
    monkeypatch.setattr(study, "KEEP_SAMPLES", 4)
    grid = {"scales": (0.7,), "dense_scales": (0.5,), "ratios": (0.1, 0.3), "densities": (0.2,)}
    return study.Part({"numbers": lambda seed, folder: pair}, [3], (1e-3, 1e-2), tuned_samples=(4,), **grid)


@pytest.fixture
def bench(part: study.Part, pair: study.Pair, tmp_path: Path) -> study.Bench:
    return study.Bench(part, pair, tmp_path)


def without_seconds(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [line[:-1] for line in csv.reader(file)]


@pytest.mark.slow
def test_goes_on_after_a_kill(part: study.Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.run("whole", part, tmp_path, tmp_path / "work", minutes=60)
    whole, append, appended = without_seconds(tmp_path / "whole.csv"), study.Table._append, list[int]()

    def killed(file: object, lines: list[list[object]]) -> None:
        appended.append(len(lines))
        if len(appended) == 13:
            file.write(b"numbers,3,random,0.7,0.")  # type: ignore[attr-defined]
            file.flush()  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        append(file, lines)  # type: ignore[arg-type]

    monkeypatch.setattr(study.Table, "_append", staticmethod(killed))
    with pytest.raises(KeyboardInterrupt):
        study.run("resumed", part, tmp_path, tmp_path / "work", minutes=60)
    assert (tmp_path / "resumed.csv").read_text().endswith("\nnumbers,3,random,0.7,0.")
    monkeypatch.setattr(study.Table, "_append", staticmethod(append))
    assert not study.run("resumed", part, tmp_path, tmp_path / "work", minutes=0), "it stops in time"
    assert study.run("resumed", part, tmp_path, tmp_path / "work", minutes=60)
    assert without_seconds(tmp_path / "resumed.csv") == whole
    rows = study.read_rows(tmp_path / "whole.csv")
    assert {row.method for row in rows} == {study.TARGET, study.SOURCE, study.ALONE, *study.METHODS}
    source = next(row for row in rows if row.method == study.SOURCE)
    assert (source.keep, source.recover) == (8, 8)
    assert any(0 < row.recover < 8 for row in rows)
    text = study_tables.write_tables({"whole": part}, tmp_path)
    monkeypatch.setitem(study.METHODS, "rule", study.Method("local"))
    report = study_tables.Report(replace(part, methods=(*study.BASELINES, "rule")), rows)
    assert report.methods == list(study.BASELINES), "a rule is shown once it is measured"
    for method, samples in report.entries:
        row, _ = report.choice("numbers", 3, method, samples)
        assert f"| {method} |" in text
        assert sum(study_tables.outcomes(row.recover_bits, 8)) == row.recover
    assert not list(tmp_path.glob("*.svg")), "a figure shows intervals over seeds"
    study.Table(tmp_path / "seeds.csv").append(*rows, *(replace(row, seed=4) for row in rows))
    study_tables.write_tables({"seeds": part}, tmp_path)
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    assert "| ACT without head |" in (tmp_path / "seeds-summary.md").read_text(encoding="utf-8")
    replaced = replace(rows[0], weights="other")
    study.Table(tmp_path / "resumed.csv").append(replace(replaced, method="more"))
    other = replace(part, tuned_samples=(4, 5))
    with pytest.raises(SystemExit, match="rows of other models for numbers, seed 3"):
        study.run("resumed", other, tmp_path, tmp_path / "work", minutes=60)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:source:UserWarning")  # about eight samples, and what random models select
@pytest.mark.parametrize("method", ["ACT", "attribution", "weight"])
def test_moves_what_the_api_moves(bench: study.Bench, pair: study.Pair, method: str) -> None:
    data = bench.training_data(8)
    samples = data.tokenized[study.RECOVER].samples
    batches = [{name: getattr(sample, name)[None] for name in ("input_ids", "labels")} for sample in samples]
    scores = act.score(pair.target, pair.source, batches, scorer=study.METHODS[method].selection)
    expected = copy.deepcopy(bench.model)
    act.merge_(expected, pair.source, scores.select(0.1, share="parameters"), scale=0.7)
    before = copy.deepcopy(bench.model.state_dict())
    transfer = bench.transfer(method, study.Point(0.7, 0.1), 8)
    with apply_and_revert(bench.model, lambda: transfer, Stopwatch(torch.device("cpu"))):
        moved = {name: values.clone() for name, values in bench.model.state_dict().items()}
    assert all(torch.equal(values, moved[name]) for name, values in expected.state_dict().items())
    assert any(not torch.equal(values, moved[name]) for name, values in before.items())
    assert all(torch.equal(values, before[name]) for name, values in bench.model.state_dict().items())


@pytest.mark.slow
def test_fine_tunes_like_a_plain_loop(bench: study.Bench) -> None:
    tuned = bench._fine_tuned(bench.model, 8, 1e-3)
    seed_everything(bench.pair.seed, verbose=False)
    data: AbilityDataModule = bench.training_data(8)
    samples = [sample for role in data.train for sample in data.tokenized[role].samples]
    plain = copy.deepcopy(bench.model)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for sample in samples:  # fewer than an update has, so that their order plays no part
        logits = plain(input_ids=sample.input_ids[None]).logits[0, :-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, sample.labels[1:], ignore_index=-100, reduction="sum")
    (loss / sum(int((sample.labels[1:] != -100).sum()) for sample in samples)).backward()
    optimizer.step()
    for name, values in plain.state_dict().items():
        assert torch.allclose(values, tuned.state_dict()[name], atol=2e-5), name


@pytest.mark.slow
def test_siblings_forget(pair: study.Pair, part: study.Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model in place of SmolLM2."""
    for name, value in (("ROUND", 8), ("BATCH", 16), ("LEARNING_RATE", 2e-3), ("MOST_UPDATES", 480), ("KEPT", 0.5)):
        monkeypatch.setattr(smollm2, name, value)
    monkeypatch.setitem(smollm2.FORGOTTEN, "partly", 0.75)
    monkeypatch.setitem(smollm2.FORGOTTEN, "nearly", 0.3)
    monkeypatch.setattr(smollm2, "rows", lambda name: pair.rows[study.KEEP if name == "phrases" else study.RECOVER])
    shutil.copytree(pair.source, tmp_path / "smollm2" / "models" / "base")  # which has learned already
    names = [f"words-phrases, {forgotten}" for forgotten in smollm2.FORGOTTEN]
    pairs = {name: study.PARTS["smollm2"].pairs[name] for name in names}
    methods = {"methods": ("ACT", "random"), "tuned_methods": ("ACT",)}
    part = replace(part, pairs=pairs, tuned_points=(study.KEEPS,), **methods)
    assert study.run("smollm2", part, tmp_path, tmp_path, minutes=60)
    rows = study.read_rows(tmp_path / "smollm2.csv")
    recovered = {}
    for name in names:
        target, source = (
            next(row for row in rows if (row.pair, row.method, row.split) == (name, method, study.TEST))
            for method in (study.TARGET, study.SOURCE)
        )
        assert min(source.keep_share, source.recover_share) > 0.8
        assert target.keep_share > 0.4
        recovered[name] = target.recover
        tuned = {row.method for row in rows if row.pair == name and row.samples}
        assert tuned == {study.ALONE, "ACT"}
    partly, nearly = recovered.values()
    assert nearly < partly <= 6


def row(**values: object) -> study.Row:
    settings = {
        "pair": "p", "seed": 0, "method": "m", "scale": 0.5, "ratio": 0.1, "samples": 0, "learning_rate": 0.0,
        "split": study.VALIDATION, "share": 0.1, "keep": 90, "keep_items": 100, "recover": 50, "recover_items": 100,
        "keep_bits": "", "recover_bits": "", "weights": "w", "seconds": 1.0,
    }  # fmt: skip
    return study.Row(**(settings | values))  # type: ignore[arg-type]


def test_chooses_the_best_recover_that_keeps() -> None:
    target = row(method=study.TARGET)
    points = [row(keep=88, recover=99), row(keep=89, recover=60, share=0.3), row(keep=91, recover=60, share=0.2)]
    assert study.choose(points, target) == (points[2], True), "within a point, and less moved of equal ones"
    assert study.choose(points[:1], target) == (points[0], False)
    assert study.choose(points, target, study.REPAIRABLE) == (points[0], True)
    tied = [row(scale=0.7), row(scale=0.3)]
    assert study.choose(tied, target).row == tied[1], "then the smaller λ"


def test_outcomes_are_kept_as_bits() -> None:
    for digits in ("0", "1", "00101", "1" * 400, "0" * 399 + "1"):
        assert study_tables.outcomes(study._bits(digits), len(digits)) == [int(digit) for digit in digits]


def test_intervals_resample_items_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the closed form: the variance of items within a seed, and of the means of seeds."""
    part = study.Part({"p": study.laboratory}, [0, 1], (), methods=(), tuned_samples=())
    digits = {0: "1" * 40 + "0" * 60, 1: "1" * 80 + "0" * 20}

    def interval(seeds: list[int]) -> study_tables.Estimate:
        rows = [
            row(seed=seed, method=method, split=split, recover_bits=study._bits(digits[seed]),
                keep_bits=study._bits(digits[seed]), keep=digits[seed].count("1"), recover=digits[seed].count("1"))
            for seed in seeds for method in (study.TARGET, study.SOURCE) for split in (study.VALIDATION, study.TEST)
        ]  # fmt: skip
        rows = [replace(each, scale=0.0, ratio=0.0) for each in rows]
        report = study_tables.Report(part, rows)
        assert report.seeds == {"p": seeds}
        draws = report.draws(["p"])[study.RECOVER]
        assert torch.equal(torch.tensor(draws[:, 0]), torch.tensor(draws[:, 1])), "both models have the same draws"
        return study_tables.estimate(draws[:, 0])

    single, both = interval([0]), interval([0, 1])
    assert single.value == pytest.approx(0.4)
    assert single.high - single.low == pytest.approx(2 * 1.96 * (0.4 * 0.6 / 100) ** 0.5, rel=0.1)
    assert both.value == pytest.approx(0.6)
    assert both.low < 0.42
    assert both.high > 0.78


@pytest.mark.parametrize("ability", smollm2._ABILITIES)
def test_generated_items_are_right_and_held_out(ability: str) -> None:
    splits = smollm2.rows(ability)
    assert (len(splits["test"]), len(splits["validation"])) == (400, 200)
    assert len(splits["train"]) > 1000
    facts = {}
    for split, of_split in splits.items():
        assert len({row["prompt"] for row in of_split}) == len(of_split)
        facts[split] = set()
        for row in of_split:
            numbers = tuple(sorted(map(int, re.findall(r"\d+", row["prompt"]))))
            match ability:
                case "words":
                    language = {"English": "en", "German": "de", "French": "fr", "Spanish": "es"}
                    expected = num2words(numbers[0], lang=language[row["prompt"].split()[-1].rstrip(".")])
                    assert re.sub(r"[\W_]", "", row["answer"]) == re.sub(r"[\W_]", "", expected)
                    fact: object = numbers
                case "json":
                    person = json.loads(row["answer"])
                    assert all(str(value) in row["prompt"] for value in person.values())
                    fact = tuple(person.values())
                case _:
                    article, noun, adjective = row["answer"].split()
                    assert article in ("el", "la", "un", "una")
                    assert not (adjective.endswith("a") and article in ("el", "un"))
                    assert not (adjective.endswith("o") and article in ("la", "una"))
                    fact = (noun, adjective)
            facts[split].add(fact)
    assert not facts["test"] & facts["validation"]
    assert not (facts["test"] | facts["validation"]) & facts["train"]


def test_siblings_train_on_the_tokens_that_are_evaluated(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(smollm2.TEMPLATE)
    save_model(tiny_model("llama"), tokenizer, tmp_path / "model")
    rows = smollm2.rows("json")["test"][:5]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = AbilityDataModule(
        target=str(tmp_path / "model"), evaluations={"rows": EvaluationData(str(path), role="keep")}
    )
    data.setup("test")
    encoded = encode(tokenizer, rows, [1.0] * 5, whole_text=False)
    for number, sample in enumerate(data.references["rows"]):
        length = int(encoded.lengths[number])
        assert sample.input_ids.tolist() == encoded.ids[number, :length].tolist()
        assert sample.labels.tolist() == encoded.labels[number, :length].tolist()


def test_laboratories_ask_other_sums_in_validation_than_in_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "model_folder", lambda name, recipe: Path(name))
    sums = study.laboratory(study.Recipe(), "lab", 1, Path()).rows[study.KEEP]
    pairs = {split: [frozenset(re.findall(r"\d+", row["prompt"])) for row in part] for split, part in sums.items()}
    assert len({row["prompt"] for row in sums[study.TEST]}) == len(sums[study.TEST]) == 400
    assert len({row["prompt"] for row in sums[study.VALIDATION]}) == len(sums[study.VALIDATION]) > 480
    assert pairs[study.TEST][::2] == pairs[study.TEST][1::2], "both orders stand together"
    held_out = [set(pairs[study.TEST]), set(pairs[study.VALIDATION])]
    assert not held_out[0] & held_out[1]
    assert not (held_out[0] | held_out[1]) & set(pairs[study.TRAIN])
    assert all(eval(row["prompt"].removesuffix("=")) == int(row["answer"]) for part in sums.values() for row in part)


def test_the_readme_shows_the_table_of_the_rows() -> None:
    folder = Path(study.__file__).parent / "study"
    table = (folder / "tiny-summary.md").read_text(encoding="utf-8")
    assert table.strip() in (folder.parent.parent / "README.md").read_text(encoding="utf-8")
    report = study_tables.Report(study.PARTS["tiny"], study.read_rows(folder / "tiny.csv"))
    assert "\n".join(study_tables.summary(report, list(report.seeds))) == table.strip()


def test_how_to_choose_shows_the_table_of_the_rows() -> None:
    folder = Path(study.__file__).parent / "study"
    report = study_tables.Report(study.PARTS["smollm2"], study.read_rows(folder / "smollm2.csv"))
    table = "\n".join(study_tables.summary(report, ["words-phrases, nearly"]))
    assert table in (folder.parent.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert table in (folder / "tables.md").read_text(encoding="utf-8")
