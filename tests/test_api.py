"""The Python API: the numbers of the verbs to the bit, frames, files, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import act_lightning as act
from act_lightning.data.batches import collate
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError
from tests.front_door import Config, basic, run
from tests.reference import act as reference
from tests.tiny import tiny_model

# Two dozen samples make no stable mask, and tiny models have large heads: tests/transfer/test_summary.py.
pytestmark = pytest.mark.filterwarnings("ignore:.* (belong to|answer tokens are fewer)")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, target_folder: Path, source_folder: Path) -> Config:
    """A run that has merged, on 24 samples."""
    root = tmp_path_factory.mktemp("api")
    rows = [{"prompt": f"Say {i}", "answer": "one two " * (1 + 7 * i % 5)} for i in range(24)]
    (root / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = basic(root, target_folder, source_folder, root / "d.jsonl")
    outcome = run("merge", config)
    assert outcome.status == 0, outcome.err
    return config


@pytest.fixture(scope="module")
def batches(config: Config) -> list[dict[str, torch.Tensor]]:
    """What the run was profiled on, in batches of other sizes."""
    from act_lightning.data.ability_data import AbilityData

    target = config["model"]["target"]
    data = AbilityDataModule({"d": AbilityData(config["data"]["abilities"]["d"]["path"])}, target=target)
    data.prepare_data()
    data.setup("fit")
    samples = list(data.tokenized["d"].samples)
    return [dict(collate(samples[i : i + 5], 0)) for i in range(0, len(samples), 5)]


def run_folder(config: Config) -> Path:
    return Path(config["trainer"]["default_root_dir"])


def saved_scores(config: Config) -> Path:
    (path,) = run_folder(config).glob("scores/*/d.safetensors")
    return path


@pytest.fixture(scope="module")
def scores(config: Config, batches: list[dict[str, torch.Tensor]]) -> act.Scores:
    return act.score(config["model"]["target"], config["profile"]["sources"][0]["model"], batches)


def ratio_and_scale(config: Config) -> tuple[float, float]:
    transfer = config.get("transfer", {})
    return transfer.get("ratio", 0.01), transfer.get("scale", 0.4)


def test_scores_are_those_of_the_verb(config: Config, scores: act.Scores) -> None:
    expected = act.Scores.load(saved_scores(config), config["model"]["target"])
    assert torch.equal(scores.values, expected.values)
    assert scores.record.tokens == expected.record.tokens
    assert scores.record.models["source"] == config["profile"]["sources"][0]["model"]


def test_models_in_memory_give_the_same_and_stay_as_they_are(
    config: Config, scores: act.Scores, batches: list[dict[str, torch.Tensor]]
) -> None:
    target, source = (
        AutoModelForCausalLM.from_pretrained(folder).train()
        for folder in (config["model"]["target"], config["profile"]["sources"][0]["model"])
    )
    before = {name: values.clone() for name, values in target.state_dict().items()}
    assert torch.equal(act.score(target, source, batches).values, scores.values)
    assert target.training
    assert all(torch.equal(values, before[name]) for name, values in target.state_dict().items())


def test_merged_weights_are_those_of_the_verb(config: Config, scores: act.Scores, tmp_path: Path) -> None:
    ratio, scale = ratio_and_scale(config)
    source, mask = config["profile"]["sources"][0]["model"], scores.select(ratio)
    expected = load_file(run_folder(config) / "merged" / "model.safetensors")
    on_disk = act.merge(config["model"]["target"], source, mask, out=tmp_path / "out", scale=scale)
    reference.assert_same_bits(load_file(tmp_path / "out" / "model.safetensors"), expected)
    target = AutoModelForCausalLM.from_pretrained(config["model"]["target"])
    in_memory = act.merge_(target, source, mask, scale=scale)
    reference.assert_same_bits({name: target.state_dict()[name] for name in expected}, expected)
    written = json.loads((run_folder(config) / "transfer.json").read_text())
    ((_, moved),) = on_disk["sources"].items()
    ((_, verb),) = written["sources"].items()
    assert moved["parameters"] == verb["parameters"] > 0
    assert in_memory["channels"] == written["channels"]
    assert json.loads((tmp_path / "out" / "transfer.json").read_text()) == on_disk


def test_a_merge_without_effect_warns(config: Config, scores: act.Scores, tmp_path: Path) -> None:
    target, source = config["model"]["target"], config["profile"]["sources"][0]["model"]
    with pytest.warns(UserWarning, match="nothing was transferred"):
        act.merge(target, source, scores.select(0.1), out=tmp_path / "out", scale=0.0)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"of [\d,]+ selected values .* stay, because rounding"):
        act.merge_(model, source, scores.select(0.1), scale=0.001)


@pytest.mark.parametrize("scorer", ["attribution", "local", "activation_module_mean", "weight"])
def test_every_selection_scores(scorer: str, config: Config, batches: list[dict[str, torch.Tensor]]) -> None:
    source = config["profile"]["sources"][0]["model"]
    scores = act.score(config["model"]["target"], source, batches, scorer=scorer)
    outcome = run("profile", config, "--transfer.selection", scorer)
    assert outcome.status == 0, outcome.err
    (path,) = (
        run_folder(config).glob(f"scores.{scorer}/*/d.safetensors")
        if scorer != "activation_module_mean"
        else [saved_scores(config)]
    )
    assert torch.equal(scores.values, act.Scores.load(path, config["model"]["target"]).values)
    assert len(scores.select(0.1)) == scores.values.numel() // 10


def test_frames_name_every_channel(scores: act.Scores) -> None:
    frame, mask = scores.to_frame(), scores.select(0.05, exclude=["lm_head"])
    assert list(frame) == ["module", "layer", "module_type", "channel", "score"]
    assert len(frame) == scores.channels.total
    assert frame["score"].tolist() == scores.values.tolist()
    selected = mask.to_frame()
    assert len(selected) == len(mask) == int(mask.selected.sum())
    assert "lm_head" not in set(selected["module"])
    rest = frame[(frame["module"] != "lm_head") & ~frame.index.isin(selected.index)]
    assert selected["score"].min() >= rest["score"].max()
    assert set(scores.select(0.3, include=["*.mlp.*"], exclude=["*.up_proj"]).to_frame()["module_type"]) == {
        "gate_proj",
        "down_proj",
    }
    row = frame[frame["module"] == "model.layers.1.mlp.down_proj"].iloc[3]
    assert (row["layer"], row["module_type"], row["channel"]) == ("1", "down_proj", 3)


def test_a_saved_file_is_read_with_and_without_the_model(config: Config, scores: act.Scores, tmp_path: Path) -> None:
    scores.save(tmp_path / "s" / "d.safetensors")
    loaded = act.Scores.load(tmp_path / "s" / "d.safetensors")
    assert torch.equal(loaded.values, scores.values)
    assert torch.equal(loaded.select(0.1).selected, scores.select(0.1).selected)
    with pytest.raises(ActError, match=r"select\.share"):
        loaded.select(0.1, share="parameters")
    whole = act.Scores.load(tmp_path / "s" / "d.safetensors", config["model"]["target"])
    assert 0 < len(whole.select(0.1, share="parameters")) != len(whole.select(0.1))


def test_masks_of_abilities_join(scores: act.Scores) -> None:
    small, other = scores.select(0.02), scores.select(0.02, scope="module")
    assert torch.equal((small | other).selected, small.selected | other.selected)


def test_the_ccdf_is_a_figure(scores: act.Scores) -> None:
    figure = scores.plot_ccdf()
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_yscale() == "log"


def test_what_does_not_fit_is_refused(config: Config, scores: act.Scores, tmp_path: Path) -> None:
    target, source = config["model"]["target"], config["profile"]["sources"][0]["model"]
    with pytest.raises(ActError, match=r"select\.ratio"):
        scores.select(0)
    with pytest.raises(ActError, match="must be a selection that ranks by scores"):
        act.score(target, source, [], scorer="random")
    other: Any = tiny_model("llama", num_hidden_layers=1)
    with pytest.raises(ActError, match="must select channels of the target"):
        act.merge_(other, source, scores.select(0.1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ActError, match="out"):
        act.merge(target, source, scores.select(0.1), out=tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_the_package_imports_nothing_heavy_until_it_is_used() -> None:
    heavy = "[name for name in ('torch', 'lightning', 'transformers') if name in sys.modules]"
    code = f"import sys, act_lightning; print({heavy}, act_lightning.score)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("[] <function score")
