"""What may stand in one report: damaged, foreign and mixed scores are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from act_lightning.analysis import read_abilities, read_runs
from act_lightning.analysis.paper import PAPER_PAIRS, paper_pair
from act_lightning.analysis.saved import saved_channels
from act_lightning.errors import ActError
from act_lightning.scores import ScoreRecord, encode_record, read_scores, score_path, write_scores
from tests.analysis.runs import QWEN, record, tiny_channels, write_run

CODER = ("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Save a score file again, its tensors or its record changed."""
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["act"])
    tensors = load_file(path)
    change(tensors, told)
    others = {name: value for name, value in told.items() if name != "sha256"}
    save_file(tensors, path, {"act": encode_record(ScoreRecord.from_json(others), tensors, others)})


def test_runs_are_read_in_the_models_order(run: Path) -> None:
    saved, channels = read_runs([run]), tiny_channels()
    assert [module.name for module in saved.inventory.modules] == [module.name for module in channels.modules]
    assert saved.ordered
    (pair,) = saved.pairs
    assert pair.label == "Qwen2.5-Math-7B-Instruct vs. Qwen2.5-7B-Instruct"
    for name, scores in pair.scores.items():
        assert torch.equal(scores, read_scores(score_path(run / "scores", "source", name), channels))


def test_without_an_order_in_the_files_the_usual_one_is_taken(run: Path) -> None:
    for path in run.glob("scores/*/*"):
        rewrite(path, lambda _, told: told.pop("modules"))
    saved = read_runs([run])
    names = [module.name for module in saved.inventory.modules]
    assert not saved.ordered
    assert (names[0], names[-2:]) == ("model.embed_tokens", ["model.norm", "lm_head"])
    assert names.index("model.layers.0.mlp.down_proj") < names.index("model.layers.1.self_attn.q_proj")


def test_parts_of_scores_are_no_ability(run: Path) -> None:
    whole = score_path(run / "scores", "source", "math-en")
    whole.with_name("math-en.chunks.safetensors").write_bytes(b"parts")
    assert "math-en.chunks" not in read_runs([run]).names


def test_pairs_of_one_label_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=1)]
    labels = [pair.label for pair in read_runs(runs).pairs]
    assert labels[0].endswith("(one/source)")
    assert labels[1].endswith("(two/source)")


def test_damaged_files_are_refused_by_name(run: Path) -> None:
    path = score_path(run / "scores", "source", "science-ar")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ActError, match=r"science-ar\.safetensors.*readable score file"):
        read_runs([run])


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_impossible_scores_are_refused_by_name(value: float, run: Path) -> None:
    path = score_path(run / "scores", "source", "math-ar")
    rewrite(path, lambda tensors, _: tensors["lm_head"].__setitem__(3, value))
    with pytest.raises(ActError, match=r"math-ar"):
        read_runs([run])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"),
        ({"identities": {"target": {"digest": "other"}, "source": {"digest": "x"}}}, "target was digest of Q"),
        ({"format": 2}, "format was 1, is 2"),
        ({"versions": {"torch": "2.14"}}, "must come from the versions of"),
    ],
)
def test_scores_that_were_not_measured_alike_are_refused_by_name(
    change: dict[str, object], message: str, run: Path
) -> None:
    path = score_path(run / "scores", "source", "science-en")
    write_scores(path, tiny_channels(), torch.rand(tiny_channels().total), record(**change))
    with pytest.raises(ActError, match=r"science-en.*") as raised:
        read_runs([run])
    assert message in str(raised.value)


def test_other_versions_are_allowed_on_request(run: Path) -> None:
    path = score_path(run / "scores", "source", "science-en")
    changed = record(versions={"torch": "2.14"})
    write_scores(path, tiny_channels(), torch.rand(tiny_channels().total), changed)
    assert len(read_runs([run], mixed_versions=True).names) == 4


def test_other_channels_and_other_orders_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", CODER)
    path = score_path(other / "scores", "source", "math-en")

    def reverse(_: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        told["modules"] = told["modules"][::-1]

    rewrite(path, reverse)
    with pytest.raises(ActError, match=r"other/scores/source/math-en.*in another order"):
        read_runs([run, other])
    rewrite(path, lambda tensors, told: [tensors.pop("lm_head"), told.pop("modules")] and None)
    with pytest.raises(ActError, match=r"other/scores/source/math-en.*must have the .* channels of"):
        read_runs([run, other])


def test_an_order_of_other_modules_is_damage(run: Path) -> None:
    path = score_path(run / "scores", "source", "math-en")
    rewrite(path, lambda _, told: told.update(modules=["lm_head"]))
    with pytest.raises(ActError, match=r"its order of modules names others"):
        saved_channels(path)


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ActError, match=r"RUN.*must be the folder of a run"):
        read_runs([tmp_path])


def test_two_names_of_one_meaning_keep_their_names() -> None:
    assert list(read_abilities(["math-en", "en_math", "math-zh"])) == ["en_math", "math-en", "ZH-Math"]
    with pytest.raises(ActError, match=r"--ability.*must be one of math-en"):
        read_abilities(["math-en"], {"maths": "math-en"})


def test_abilities_stand_in_the_papers_order() -> None:
    names = ["science-xh", "words", "science-vi", "math-vi", "code-en", "science-en", "math-en", "math-zh"]
    ordered = [ability.name for ability in read_abilities(names).values()]
    assert ordered == ["math-en", "science-en", "code-en", "math-zh", "math-vi", "science-vi", "science-xh", "words"]


def test_the_papers_numbers_are_found_by_the_models_names() -> None:
    math = paper_pair(*QWEN)
    assert math is not None
    assert math.overlaps["EN-Math", "AR-Math"] == 0.253
    assert math.weight["AR-Science"] == 0.0383
    found = {
        pair.name: paper_pair(target, source) for pair in PAPER_PAIRS for target, source in [pair.name.split(" vs. ")]
    }
    assert all(pair is not None and pair.name == name for name, pair in found.items())
    tulu_dpo, tulu = (paper_pair(f"allenai/tulu-2-{name}", "meta-llama/Llama-2-13b-hf") for name in ("dpo-13b", "13b"))
    assert tulu_dpo is not None
    assert tulu is not None
    assert (tulu_dpo.weight_table, tulu_dpo.overlap_table, tulu_dpo.overlaps) == ("Table 10a", "", {})
    assert (tulu.weight_table, tulu.weight, tulu.overlap_table) == ("", {}, "Table 5a")
    assert tulu.overlaps["EN-Math", "EN-Code"] == 0.875
    assert paper_pair("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B") is None
