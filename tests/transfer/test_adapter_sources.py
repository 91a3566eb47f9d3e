"""An adapter as source, in every verb: the results of the model that PEFT merges from it and its base."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import act_lightning as act
from tests.adapters import save_adapter
from tests.front_door import Config, basic, call, changed, run
from tests.reference.act import assert_same_bits
from tests.sweep.folders import make_config
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer
from tests.training.processes import fit, weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, an adapter of it, what PEFT merges from both, and a target tuned from the same base."""
    root = tmp_path_factory.mktemp("adapters")
    base = tiny_model("llama", dtype=torch.bfloat16)
    save_model(base, tiny_tokenizer(), root / "base", "30KB")
    save_model(sibling_of(base, seed=3), tiny_tokenizer(), root / "target")
    merged = save_adapter(root / "base", root / "adapter", use_rslora=True, modules_to_save=["lm_head"])
    save_model(merged, tiny_tokenizer(), root / "merged")
    for name, license_ in (("base", "mit"), ("adapter", "mit"), ("target", "mit")):
        (root / name / "README.md").write_text(f"---\nlicense: {license_}\n---\n")
    return root


@pytest.fixture
def config(models: Path, ability_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    source = f"{models / 'base'}+{models / 'adapter'}"
    config = basic(tmp_path / "a", models / "target", Path("x"), ability_file)
    (tmp_path / "a").mkdir()
    return changed(config, "profile.sources", [{"model": source, "abilities": ["d"]}])


def twin(config: Config, models: Path, tmp_path: Path) -> Config:
    """The same run with the merged model."""
    source = {"model": str(models / "merged"), "abilities": ["d"], "name": "adapter"}
    (tmp_path / "b").mkdir(exist_ok=True)
    return changed(
        changed(config, "profile.sources", [source]), "trainer.default_root_dir", str(tmp_path / "b" / "run")
    )


KEYS = ("method", "scale", "ratio", "keep", "recover", "parameters", "parameter_share")
SELECTIONS = ("activation", "local", "attribution", "weight")


@pytest.mark.slow
def test_every_selection_and_merge_agree_with_the_merged_model(models: Path, config: Config, tmp_path: Path) -> None:
    other = twin(config, models, tmp_path)
    for number, selection in enumerate(SELECTIONS):
        options = ["--transfer.selection", selection, *(["--overwrite"] if number else [])]
        if number:
            options += ["--profile.placement", "layerwise"] if selection != "attribution" else []
        for one in (config, other):
            outcome = run("merge", one, *options)
            assert outcome.status == 0, outcome.err
        roots = [Path(one["trainer"]["default_root_dir"]) for one in (config, other)]
        folder = "scores" if selection == "activation" else f"scores.{selection}"
        scores = [load_file(root / folder / "adapter" / "d.safetensors") for root in roots]
        assert all(torch.equal(scores[0][name], values) for name, values in scores[1].items())
        files = [root / "merged" / "model.safetensors" for root in roots]
        assert files[0].read_bytes() == files[1].read_bytes()
    report = json.loads((roots[0] / "merged" / "transfer.json").read_text())
    assert report["sources"]["adapter"]["model"].endswith("/base+" + str(models / "adapter"))
    report = call("report", roots[0], "--out", tmp_path / "report")
    assert report.status == 0, report.err


@pytest.mark.slow
def test_fit_and_replay(models: Path, config: Config, tmp_path: Path) -> None:
    other = twin(config, models, tmp_path)
    for one in (config, other):
        outcome = run("fit", one)
        assert outcome.status == 0, outcome.err
    roots = [Path(one["trainer"]["default_root_dir"]) for one in (config, other)]
    weights = [load_file(root / "model" / "model.safetensors") for root in roots]
    assert all(torch.equal(weights[0][name], values) for name, values in weights[1].items())
    card = (roots[0] / "model" / "README.md").read_text()
    assert "license: mit" in card
    assert "base+adapter" in card
    assert str(tmp_path) not in card
    assert str(models) not in card
    outcome = call(
        *("replay", "--card", roots[0] / "model" / "README.md", "--yes", "--out", tmp_path / "again"),
        *("--from", models, "--from", Path(config["data"]["abilities"]["d"]["path"]).parent),
    )
    assert outcome.status == 0, outcome.err
    assert "the same bits as recorded" in outcome.out

    shutil.copytree(models / "adapter", tmp_path / "adapter")
    changed_path = tmp_path / "adapter" / "adapter_config.json"
    changed_path.write_text(json.dumps(json.loads(changed_path.read_text()) | {"lora_alpha": 11}))
    source = f"{models / 'base'}+{tmp_path / 'adapter'}"
    merged = changed(changed(config, "profile.sources.0.model", source), "transfer.scores", str(roots[0] / "scores"))
    outcome = run("merge", merged)
    assert outcome.status == 1
    assert "must have been measured on the source of this run, but was on other weights" in outcome.err


@pytest.mark.slow
def test_a_sweep_with_every_kind_of_method(models: Path, tmp_path: Path) -> None:
    """The same answers at every point, and the same model after a fit of it."""
    made = make_config(tmp_path, {"target": models / "target", "source": models / "merged"})
    of_adapter = changed(made, "profile.sources.0.model", f"{models / 'base'}+{models / 'adapter'}")
    methods = "act,ties,dare,attribution,local,weight"
    grid = ("--sweep.scales", "1.5", "--sweep.ratios", "0.1,0.5", "--sweep.methods", methods)
    tables, fitted = [], []
    for name, config in (("merged", made), ("adapter", of_adapter)):
        root = tmp_path / name / "run"
        root.parent.mkdir()
        outcome = run("sweep", changed(config, "trainer.default_root_dir", str(root)), *grid)
        assert outcome.status == 0, outcome.err
        tables.append(list(csv.DictReader((root / "sweep" / "results.csv").read_text().splitlines())))
        few = ("--sweep.scales", 1.5, "--sweep.ratios", 0.5, "--sweep.fit", "true", "--sweep.keep_models", "true")
        again = changed(config, "trainer.default_root_dir", str(tmp_path / name / "fit"))
        assert run("sweep", again, *few).status == 0
        files = (tmp_path / name / "fit" / "sweep" / "points").glob("*/model/model.safetensors")
        fitted.append({file.parents[1].name: file.read_bytes() for file in files})
    assert len({(row["kept_correct"], row["lost_correct"]) for row in tables[0]}) > 2, "points that all score alike"
    results = [[{key: row[key] for key in row if "correct" in key or key in KEYS} for row in table] for table in tables]
    assert results[0] == results[1]
    assert fitted[0]
    assert fitted[0] == fitted[1]


@pytest.mark.slow
@pytest.mark.parametrize(("selection", "method"), [("activation", "dare_ties"), ("attribution", "fisher")])
def test_fsdp2_on_two_processes(selection: str, method: str, models: Path, config: Config, tmp_path: Path) -> None:
    """To the bit as with the merged model."""
    roots = []
    for one in (config, twin(config, models, tmp_path)):
        one["transfer"] = {"ratio": 0.2, "selection": selection, "method": method}
        one["trainer"]["accumulate_grad_batches"] = 8
        roots.append(fit(one, 2))
    assert_same_bits(*(weights(root / "model") for root in roots))
    counts = [json.loads((root / "transfer.json").read_text())["sources"]["adapter"] for root in roots]
    assert counts[0].pop("model") != counts[1].pop("model")
    assert counts[0] == counts[1]


def test_plan_tells_what_the_run_will_do(models: Path, config: Config, tmp_path: Path) -> None:
    outcome = run("plan", config, "--json")
    assert outcome.status == 0, outcome.err
    assert "adapter" in json.loads(outcome.out)["parameters"]["siblings"]
    alone = run("plan", changed(config, "profile.sources.0.model", str(models / "adapter")))
    assert "must hold a config.json, and holds an adapter. Write BASE+" in " ".join(alone.out.split())
    wrong = run("plan", changed(config, "profile.sources.0.model", f"{models / 'target'}+{models / 'adapter'}"))
    assert f"the model that the adapter was trained on, {models / 'base'}" in wrong.out
    target = run("plan", changed(config, "model.target", config["profile"]["sources"][0]["model"]))
    assert "only a source may be an adapter" in target.out
    quantized = run("plan", changed(config, "profile.quantization", "8bit"))
    assert "cannot be combined with an adapter as source" in quantized.out


@pytest.mark.filterwarnings("ignore:.* (belong to|answer tokens are fewer)")
def test_in_python(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    ids = torch.arange(3, 40).view(1, -1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    names = {"adapter": f"{models / 'base'}+{models / 'adapter'}", "merged": models / "merged"}
    files = {}
    for name, source in names.items():
        mask = act.score(models / "target", source, [batch]).select(0.2)
        act.merge(models / "target", source, mask, out=tmp_path / name)
        files[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert files["adapter"] == files["merged"] != (models / "target" / "model.safetensors").read_bytes()
