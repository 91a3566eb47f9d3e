"""Every merging method through ``merge`` and ``fit``, with masks and without: what a slow re-statement merges."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import act_lightning
from act_lightning.merging import METHODS
from tests.front_door import Config, basic, changed, run
from tests.reference import act, merging
from tests.reference.channels import channels, moved
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

SCALES = {"m": 0.4, "n": 0.7}
RATIOS = {"m": "0.2", "n": "0.3"}
OVERLAYS = list((Path(act_lightning.__file__).parent.parent / "configs" / "methods").glob("*.yaml"))


@dataclass
class Case:
    """A tied target, two sources, and a run that has measured their scores."""

    target: PreTrainedModel
    sources: dict[str, PreTrainedModel]
    config: Config
    root: Path

    def offers(self, name: str, masked: bool) -> list[merging.Offer]:
        """What each source offers for a parameter, with the information that the run has gathered."""
        before, offers = self.target.get_parameter(name).detach(), []
        for source, model in self.sources.items():
            file = self.root / "fisher" / "sources" / source / "d.safetensors"
            fisher = load_file(file)[name].double().numpy() if file.is_file() else None
            delta = (model.get_parameter(name).detach() - before).double().numpy()
            mask = self.marks(source, masked)[name].numpy()
            offers.append(merging.Offer(delta, SCALES[source], mask, source, fisher))
        return offers

    def marks(self, source: str, masked: bool) -> dict[str, Tensor]:
        numbers = set(range(len(channels(self.target))))
        if masked:
            scores = self.root / "scores" / source / "d.safetensors"
            numbers = act.union_of([scores], self.target, RATIOS[source])
        return moved(self.target, numbers)

    def expected(self, method: str, masked: bool) -> dict[str, Tensor]:
        fisher = {
            name: values
            for file in (self.root / "fisher" / "target").glob("*.safetensors")
            for name, values in load_file(file).items()
        }
        weights = {}
        for name, values in self.target.named_parameters():
            target_fisher = fisher[name].double().numpy() if fisher else None
            drawing = merging.Drawing(name, 42)
            change = merging.change_by(method, self.offers(name, masked), 0.4, drawing, target_fisher)
            weights[name] = values.detach() + torch.from_numpy(change)
        return weights


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("methods")
    target = tiny_model("llama", tie_word_embeddings=True)
    sources = {name: sibling_of(target, seed) for seed, name in enumerate(SCALES, start=1)}
    models = {"target": target, **sources}
    folders = {name: save_model(model, tiny_tokenizer(), root / name) for name, model in models.items()}
    data = write_jsonl(root / "d.jsonl", [{"prompt": f"Say {i}", "answer": "two words"} for i in range(5)])
    config = basic(root, folders["target"], folders["m"], data)
    config["profile"]["sources"] = [
        {"model": str(folders[name]), "abilities": ["d"], "ratio": float(RATIOS[name]), "scale": scale}
        for name, scale in SCALES.items()
    ]
    config["transfer"] = {"scale": 0.4}
    config["trainer"] |= {"max_steps": 0, "logger": False, "enable_checkpointing": False}
    outcome = run("profile", config)
    assert outcome.status == 0, outcome.err
    return Case(target, sources, config, root / "run")


@pytest.mark.parametrize(
    "masked", [pytest.param(True, id="masked"), pytest.param(False, id="whole", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("method", METHODS)
def test_merge_and_fit(method: str, masked: bool, case: Case) -> None:
    selection = {"selection": "activation" if masked else "all"}
    config = changed(case.config, "transfer", {**case.config["transfer"], "method": method, **selection})
    for verb in ("merge", "fit"):
        outcome = run(verb, config, "--overwrite")
        assert outcome.status == 0, outcome.err
    merged, fitted = (load_file(case.root / part / "model.safetensors") for part in ("merged", "model"))
    act.assert_same_bits(fitted, merged)
    expected = case.expected(method, masked)
    assert set(merged) == set(expected)
    marks = [case.marks(source, masked) for source in case.sources]
    for name, before in case.target.named_parameters():
        torch.testing.assert_close(merged[name].double(), expected[name], rtol=1e-6, atol=1e-7)
        stays = ~torch.stack([mark[name] for mark in marks]).any(0)
        assert torch.equal(merged[name][stays], before[stays])
    assert any(not torch.equal(merged[name], before) for name, before in case.target.named_parameters())


def test_methods_with_settings_of_their_own(case: Case) -> None:
    config = changed(case.config, "transfer.selection", "all")
    before = dict(case.target.named_parameters())
    everything = {"class_path": "act_lightning.merging.TIES", "init_args": {"density": 1.0, "average": False}}
    first = {"class_path": "tests.programs.own_methods.First", "init_args": {"share": 0.5}}
    for method in (everything, first):
        outcome = run("merge", changed(config, "transfer.method", method), "--overwrite")
        assert outcome.status == 0, outcome.err
    for name, values in load_file(case.root / "merged" / "model.safetensors").items():
        source = case.sources["m"].get_parameter(name)
        torch.testing.assert_close(values, before[name] + 0.4 * 0.5 * (source - before[name]))


@pytest.mark.parametrize(("name", "gives"), [("Short", r"float32 \[1"), ("Wide", r"float64 \[300")])
def test_a_method_that_gives_something_else_than_a_change_is_named(
    name: str, gives: str, case: Case, tmp_path: Path
) -> None:
    config = changed(changed(case.config, "transfer.selection", "all"), "trainer.default_root_dir", str(tmp_path / "r"))
    outcome = run("merge", changed(config, "transfer.method", {"class_path": f"tests.programs.own_methods.{name}"}))
    assert outcome.status == 1
    assert re.search(f"transfer.method = '{name}': must give a float32 .*weight, but gives {gives}", outcome.err)
    assert not (tmp_path / "r" / "merged").exists()


@pytest.mark.parametrize("overlay", sorted(OVERLAYS), ids=lambda file: file.stem)
def test_shipped_overlays(overlay: Path, case: Case) -> None:
    """Each names its method with the defaults of its class."""
    outcome = run("merge", case.config, "--config", overlay, "--overwrite")
    assert outcome.status == 0, outcome.err
    method = json.loads((case.root / "transfer.json").read_text())["method"]
    assert method == repr(METHODS[overlay.stem]())


def test_a_plan_tells_what_fisher_information_takes(case: Case) -> None:
    outcome = run("plan", changed(case.config, "transfer.method", "fisher"), "--json")
    plan, parameters = json.loads(outcome.out), case.target.num_parameters()
    assert plan["memory"]["fisher"] == parameters * (4 + 4)
    assert plan["disk"]["fisher"] == parameters * 4 * 3, "of two sources and the target"
    assert json.loads(run("plan", case.config, "--json").out)["disk"]["fisher"] == 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("tiez", "transfer.method = 'tiez': must name a merging method: task_arithmetic, ties, "),
        ({"class_path": "act_lightning.merging.TIES", "init_args": {"density": 2}}, "TIES.density = 2.0: must lie in"),
        (
            {"class_path": "act_lightning.merging.TIES", "init_args": {"dens": 0.2}},
            "Did you mean density?",
        ),
        ({"class_path": "act_lightning.merging.NOPE"}, "there is no NOPE in act_lightning.merging"),
        ({"class_path": "torch.nn.Linear"}, "torch.nn.Linear"),
    ],
)
def test_a_bad_method_is_refused_by_what_is_wrong_with_it(method: object, message: str, case: Case) -> None:
    outcome = run("merge", changed(case.config, "transfer.method", method), "--overwrite")
    assert outcome.status != 0
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("method", "scale", "own", "message"),
    [
        (
            "ties",
            0.0,
            0.7,
            "scale = 0.7: must be transfer.scale times a weight, and that scale is 0",
        ),
        (
            "fisher",
            0.4,
            -0.7,
            "profile.sources[1].scale = -0.7: must have the sign of transfer.scale, 0.4, because the method averages. "
            "Change its sign, or choose another method than Fisher.",
        ),
    ],
)
def test_scales_that_make_no_weights(method: str, scale: float, own: float, message: str, case: Case) -> None:
    config = changed(case.config, "transfer", {"method": method, "scale": scale})
    outcome = run("merge", changed(config, "profile.sources.1.scale", own), "--overwrite")
    assert outcome.status == 1
    assert message in outcome.err
