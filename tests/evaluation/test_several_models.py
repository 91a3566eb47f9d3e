"""Evaluations of several models in one folder: none replaces another's, and each is read by name and digest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from act_lightning.checkpoints.weight_files import identify, identify_module
from tests.front_door import Config, basic, call, changed, left, run
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A merge of two models of one name, and a set of six items."""
    target = tiny_model("llama")
    folders = [
        save_model(model, tiny_tokenizer(), tmp_path / name / "tiny")
        for name, model in (("t", target), ("s", sibling_of(target, seed=1)))
    ]
    items = write_jsonl(tmp_path / "w.jsonl", [{"prompt": f"Say {number}", "answer": "one"} for number in range(6)])
    config = basic(tmp_path, *folders, items)
    return changed(config, "data.evaluations", {"w": {"path": str(items), "role": "keep", "max_new_tokens": 3}})


def test_none_replaces_another(config: Config, tmp_path: Path) -> None:
    root, folder = tmp_path / "run", tmp_path / "run" / "evaluations"
    files = ["results.csv", "results.json", "results.md", "w.jsonl"]
    assert run("merge", config).status == 0
    models = [str(root / "merged"), *(config["model"]["target"], config["profile"]["sources"][0]["model"])]
    digests = [identify(Path(model), verify=True).full_digest for model in models]
    places = ["", *(f"tiny-{digest[:8]}" for digest in digests[1:])]
    contents = []
    for model, place, digest in zip(models, places, digests, strict=True):
        assert run("test", changed(config, "model.target", model)).status == 0
        results = json.loads((folder / place / "results.json").read_text())
        assert (results["model"], results["digest"]) == (model, digest)
        contents.append({name: (folder / place / name).read_bytes() for name in files})
    for model, place in zip(models, places, strict=True):
        assert run("predict", changed(config, "model.target", model)).status == 0
        assert (folder / place / "predictions" / "w.jsonl").read_text().count("\n") == 6
    assert run("test", changed(config, "model.target", models[1])).status == 0  # in its own place again
    assert [{name: (folder / place / name).read_bytes() for name in files} for place in places] == contents
    own = [*files, "predictions", "predictions/model.json", "predictions/w.jsonl"]
    assert left(folder) == sorted([*own, *places[1:], *(f"{place}/{name}" for place in places[1:] for name in own)])

    assert call("card", root).status == 0
    text = (root / "merged" / "README.md").read_text()
    rows = re.findall(r"^\| w \| (.*?) \| exact match", text, re.MULTILINE)
    assert sorted(rows) == sorted(["merged", *(place.replace("-", " (") + ")" for place in places[1:])])

    outcome = call("compare", root, folder / places[1])  # the model that the run made, and another
    assert outcome.status == 0, outcome.err
    (root / "merged").rename(root / "moved")
    refused = call("compare", root, folder / places[1])
    assert refused.status == 1
    assert all(str(folder / place) in refused.err for place in places)
    assert "Name one of these folders" in refused.err


def test_models_that_differ_in_one_late_value(tmp_path: Path) -> None:
    """As after a transfer whose channels are rows of lm_head far from its beginning."""
    models = [tiny_model("llama", vocab_size=2_000), tiny_model("llama", vocab_size=2_000)]
    with torch.no_grad():
        models[1].lm_head.weight[-1, -1] += 1
    folders = [save_model(model, tiny_tokenizer(), tmp_path / str(i)) for i, model in enumerate(models)]
    assert identify(folders[0]).digest == identify(folders[1]).digest
    assert identify_module(models[0]).digest == identify_module(models[1]).digest
    digests = {identify_module(model, verify=True).digest for model in models}
    digests |= {identify(folder, verify=True).full_digest for folder in folders}
    assert len(digests) == 4
    items = write_jsonl(tmp_path / "w.jsonl", [{"prompt": "Say", "answer": "one"}])
    config = basic(tmp_path, folders[0], folders[1], items)
    config = changed(config, "data.evaluations", {"w": {"path": str(items), "role": "keep", "max_new_tokens": 1}})
    for folder in folders:
        assert run("test", changed(config, "model.target", str(folder))).status == 0
    assert len(list((tmp_path / "run" / "evaluations").rglob("results.json"))) == 2


def test_predictions_come_first(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluations"
    assert run("predict", config).status == 0
    assert left(folder) == ["predictions", "predictions/model.json", "predictions/w.jsonl"]
    other = changed(config, "model.target", config["profile"]["sources"][0]["model"])
    assert run("test", other).status == 0
    (own,) = [path for path in folder.iterdir() if path.name != "predictions"]
    assert (own / "results.json").is_file()
    assert run("compare", config).status == 2  # one run
    assert call("compare", tmp_path / "run", tmp_path / "run").status == 0


def test_results_of_an_earlier_version_are_kept(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluations"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"model": config["model"]["target"], "sets": {}, "means": {}}))
    before = (folder / "results.json").read_bytes()
    outcome = run("test", config)
    assert outcome.status == 0
    assert "results.json is of an earlier version, which recorded no digest: it is kept" in outcome.out
    assert (folder / "results.json").read_bytes() == before
    assert len(list(folder.glob("tiny-*/results.json"))) == 1
