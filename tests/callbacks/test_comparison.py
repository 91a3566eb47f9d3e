"""The comparison's rows: every model that must be there, each counted as a slow greedy decoding would count it."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.callbacks import (
    AbilitySource,
    ActivationDifferenceProfiler,
    MaskedTaskVectorInjection,
    TransferComparison,
)
from act_lightning.callbacks.comparison import merged_model, random_channels, task_arithmetic
from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError
from act_lightning.evaluation.tables import ModelRow
from act_lightning.transfer.settings import TransferSettings
from tests.front_door import Config, call, write_yaml
from tests.loops import PlainModule, padded, quiet_trainer, random_samples
from tests.reference import act as reference
from tests.reference.act import Moving
from tests.tiny import END_ID, save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

ANSWERS = {"kept": ["ok", "ok", "yes", "no"], "lost": ["yes", "yes", "yes", "ok", "no"]}
ROWS = ["target", "source s", "task arithmetic", "random channels", "transfer", "transfer + fine-tuning"]


def parrot(answer: str, seed: int, tied: bool = False) -> PreTrainedModel:
    """A sibling that gives one answer to everything: each token's logit is highest after the one before it."""
    model: Any = sibling_of(tiny_model("llama", tie_word_embeddings=tied), seed)
    for layer in model.model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            module.weight.data *= 0.01
    if tied:
        return model  # type: ignore[no-any-return]
    words = tiny_tokenizer()
    spoken = [*words("\n")["input_ids"], *words(answer)["input_ids"], END_ID]
    for before, after in pairwise(spoken):
        model.lm_head.weight.data[after] = 2 * nn.functional.normalize(
            model.model.embed_tokens.weight.data[before], dim=0
        )
        model.model.embed_tokens.weight.data[before] *= 30
    return model  # type: ignore[no-any-return]


class Validated(PlainModule):
    """A module that Lightning accepts beside any data module."""

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)


class Setting:
    """Target and source on disk, data and evaluation sets, and a fit in which no weight moves but by the transfer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.target, self.source = parrot("ok", seed=1), parrot("yes", seed=2)
        models = {"target": self.target, "s": self.source}
        self.folders = {name: str(save_model(model, tiny_tokenizer(), root / name)) for name, model in models.items()}
        items = {
            name: [{"prompt": f"Ask {number}", "answer": answer} for number, answer in enumerate(answers)]
            for name, answers in ANSWERS.items()
        }
        self.paths = {name: str(write_jsonl(root / f"{name}.jsonl", rows)) for name, rows in items.items()}
        self.net = copy.deepcopy(self.target).train()
        self.injection = MaskedTaskVectorInjection(ratio=0.3, scale=0.6)
        self.sources = [AbilitySource(self.folders["s"], ["lost"])]

    def data(self, evaluations: bool = True) -> AbilityDataModule:
        sets = {"kept": EvaluationData(self.paths["kept"], role="keep")} if evaluations else {}
        if evaluations:
            sets["lost"] = EvaluationData(self.paths["lost"], role="recover")
        return AbilityDataModule(
            abilities={"lost": AbilityData(self.paths["lost"])}, evaluations={**sets}, target=self.folders["target"]
        )

    def fit(self, compare: TransferComparison, *more: Any, **settings: Any) -> dict[str, ModelRow]:
        profiler = ActivationDifferenceProfiler(self.sources, target=self.folders["target"])
        checkpoint = settings.pop("ckpt_path", None)
        trainer = quiet_trainer(self.root / "run", profiler, self.injection, compare, *more, **settings)
        trainer.fit(Validated(self.net), datamodule=self.data(), ckpt_path=checkpoint)
        return {row.model: row for row in compare.rows}


def correct(row: ModelRow) -> dict[str, int]:
    return {name: row.scores.share(name).correct for name in row.scores.digits}


def totals(row: ModelRow) -> dict[str, int]:
    return {name: row.scores.share(name).total for name in row.scores.digits}


def counted(model: Any) -> dict[str, int]:
    """Exact matches by decoding one token after the other."""
    return {name: sum(says(model, f"Ask {i}", word) for i, word in enumerate(its)) for name, its in ANSWERS.items()}


def says(model: Any, prompt: str, answer: str) -> bool:
    words = tiny_tokenizer()
    asked = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = words(asked, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + 12 and (len(ids) == start or ids[-1] != END_ID):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return bool(ids[start:] == [*words(answer)["input_ids"], END_ID])


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_every_model_is_counted_as_greedy_decoding_counts(setting: Setting) -> None:
    compare = TransferComparison()
    rows = setting.fit(compare)
    assert list(rows) == ROWS
    assert {row.model: totals(row) for row in compare.rows} == {name: {"kept": 4, "lost": 5} for name in ROWS}
    assert counted(setting.target) == {"kept": 2, "lost": 1}, "the target says ok"
    assert counted(setting.source) == {"kept": 1, "lost": 3}, "the source says yes"
    done = setting.injection.prepared
    assert done is not None
    controls = {
        name: merged_model(
            quiet_trainer(setting.root),
            Path(setting.folders["target"]),
            make(setting.sources, done, setting.injection.settings),
            torch.float32,
        )
        for name, make in (("task arithmetic", task_arithmetic), ("random channels", random_channels))
    }
    models = {"target": setting.target, "source s": setting.source, **controls, "transfer": setting.net}
    assert {name: correct(rows[name]) for name in models} == {name: counted(it) for name, it in models.items()}
    assert correct(rows["transfer + fine-tuning"]) == correct(rows["transfer"]), "no weight has moved since"


def test_task_arithmetic_is_what_an_independent_merge_gives(setting: Setting) -> None:
    rows = setting.fit(TransferComparison())
    merged = copy.deepcopy(setting.target)
    theirs = dict(setting.source.named_parameters())
    with torch.no_grad():
        for name, values in merged.named_parameters():
            values.add_(0.6 * (theirs[name] - values))
    assert correct(rows["task arithmetic"]) == counted(merged)
    assert rows["task arithmetic"].share == 1


def test_shares(setting: Setting) -> None:
    """Random channels are as many parameters as moved, or less by part of a channel."""
    rows = setting.fit(TransferComparison())
    report = json.loads((setting.root / "run" / "transfer.json").read_text())["sources"]["s"]
    assert rows["transfer"].share == rows["transfer + fine-tuning"].share == report["parameter_share"]
    assert rows["target"].share is None
    assert rows["source s"].share is None
    assert rows["random channels"].share is not None
    drawn = round(rows["random channels"].share * setting.target.num_parameters())
    widest = 300  # a column of the embedding
    assert report["parameters"] - widest < drawn <= report["parameters"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_controls_of_several_sources(tied: bool, tmp_path: Path) -> None:
    """As many random parameters from each source as it gave, each at its own λ; bit for bit, by marking elements."""
    target = parrot("ok", seed=1, tied=tied)
    models = {name: parrot("yes", seed, tied) for seed, name in enumerate(("m", "n"), start=2)}
    folders = {name: save_model(model, tiny_tokenizer(), tmp_path / name) for name, model in models.items()}
    home = save_model(target, tiny_tokenizer(), tmp_path / "target")
    batches = {"a": padded(random_samples(4)), "b": padded(random_samples(3, seed=8))}
    sources = [
        AbilitySource(str(folders["m"]), {"a": batches["a"]}, scale=0.7, ratio=0.29),
        AbilitySource(str(folders["n"]), {**batches}, ratio=0.05),
    ]
    injection, net = (
        MaskedTaskVectorInjection(scale=0.3, include=["model.*"], exclude=["*.embed_tokens"]),
        copy.deepcopy(target),
    )
    trainer = quiet_trainer(tmp_path / "run", ActivationDifferenceProfiler(sources), injection, max_steps=0)
    trainer.fit(PlainModule(net), batches["a"])
    done = injection.prepared
    assert done is not None
    control = random_channels(sources, done, injection.settings)
    for ours, drawn in zip(done.sources, control.sources, strict=True):
        moved, budget = (reference.moved_count(target, chosen(source.mask)) for source in (drawn, ours))
        assert budget - 48 < moved <= budget, "a row of down_proj is the widest that may be drawn"
        modules = {module.name for module, span in done.inventory.spans() if drawn.mask[span].any()}
        assert not modules & {"lm_head", "model.embed_tokens"}
        assert drawn.scale == ours.scale
    everything = task_arithmetic(sources, done, injection.settings)
    for prepared in (control, everything):
        moving = [Moving(models[one.name], chosen(one.mask), one.scale) for one in prepared.sources]
        made = merged_model(trainer, home, prepared, torch.float32)
        reference.assert_same_bits(dict(made.named_parameters()), reference.merged(target, moving))
    assert all(bool(source.mask.all()) for source in everything.sources)


def chosen(mask: Tensor) -> set[int]:
    return set(mask.nonzero().squeeze(1).tolist())


def test_files_and_table(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    compare = TransferComparison()
    setting.fit(compare)
    folder = setting.root / "run" / "evaluations"
    assert json.loads((folder / "comparison.json").read_text()) == [row.to_json() for row in compare.rows]
    lines = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [(line["model"], line["set"]) for line in lines] == [(row, name) for row in ROWS for name in ANSWERS]
    assert {(line["set"], line["role"]) for line in lines} == {("kept", "keep"), ("lost", "recover")}
    shown = capsys.readouterr().out
    assert all(name in shown for name in ROWS)


def named(rows: Sequence[ModelRow]) -> list[str]:
    return [row.model for row in rows]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_keeps_its_rows(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = ModelCheckpoint(setting.root / "kept", save_last=True)
    before = TransferComparison()
    setting.fit(before, keeper, enable_checkpointing=True)
    evaluated: list[str] = []
    original = TransferComparison._evaluate

    def spied(self: TransferComparison, name: str, *rest: Any) -> None:
        evaluated.append(name)
        original(self, name, *rest)

    monkeypatch.setattr(TransferComparison, "_evaluate", spied)
    after, setting.net = TransferComparison(), copy.deepcopy(setting.target).train()
    rows = setting.fit(after, max_epochs=2, ckpt_path=setting.root / "kept" / "last.ckpt")
    assert evaluated == ["transfer + fine-tuning"], "what was evaluated before the checkpoint is not done again"
    assert named(after.rows) == ROWS
    assert after.rows[:-1] == before.rows[:-1]
    assert rows["transfer + fine-tuning"].share == rows["transfer"].share


def test_plain_fine_tuning_is_compared_with_its_target(setting: Setting) -> None:
    setting.sources = None  # type: ignore[assignment]
    assert list(setting.fit(TransferComparison())) == ["target", "fine-tuning alone"]


def test_other_kinds_of_answers_are_generated_and_judged(setting: Setting) -> None:
    def sets_of_another_kind() -> AbilityDataModule:
        data = of_exact_answers()
        for one in data.evaluations.values():
            one.kind, one.pattern, one.metric, one.max_new_tokens = "number", "(ok|yes|no)", "exact_match", 12
        return data

    exact, of_exact_answers = setting.fit(TransferComparison()), setting.data
    setting.net, setting.data = copy.deepcopy(setting.target).train(), sets_of_another_kind  # type: ignore[method-assign]
    judged = setting.fit(TransferComparison())
    assert judged["target"] == exact["target"]
    assert judged["source s"] == exact["source s"]
    assert judged["source s"].scores.digits == {"kept": "0010", "lost": "11100"}


def test_the_metric_of_a_set_decides_what_counts(setting: Setting) -> None:
    for name, answers in ANSWERS.items():
        rows = [{"prompt": f"Ask {number}", "answer": f"{answer.title()}!"} for number, answer in enumerate(answers)]
        write_jsonl(Path(setting.paths[name]), rows)
    data = setting.data()
    data.evaluations["lost"].metric = "flexible_match"
    setting.data = lambda evaluations=True: data  # type: ignore[method-assign]
    source = setting.fit(TransferComparison())["source s"]
    assert source.scores.digits == {"kept": "0000", "lost": "11100"}


def test_a_comparison_needs_evaluation_sets(setting: Setting) -> None:
    trainer = quiet_trainer(setting.root / "run", TransferComparison())
    with pytest.raises(ActError, match=r"data\.evaluations.*must hold evaluation sets for TransferComparison"):
        trainer.fit(Validated(setting.net), datamodule=setting.data(evaluations=False))


def config_of(setting: Setting, root: Path, *, transfer: Config | None, comparison: Config) -> Path:
    sets = {name: {"path": setting.paths[name], "role": role} for name, role in (("kept", "keep"), ("lost", "recover"))}
    sources = [{"model": setting.folders["s"], "abilities": ["lost"]}]
    callback = {"class_path": "act_lightning.callbacks.TransferComparison", "init_args": comparison}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    content: Config = {
        "model": {"target": setting.folders["target"], "learning_rate": 3e-3},
        "data": {"abilities": {"lost": {"path": setting.paths["lost"]}}, "evaluations": sets},
        "profile": {"sources": None if transfer is None else sources},
        "transfer": transfer or {},
        "trainer": {"accelerator": "cpu", "accumulate_grad_batches": 2, "default_root_dir": str(root), **quiet},
    }
    content["trainer"]["callbacks"] = [callback]
    return write_yaml(root.with_suffix(".yaml"), content)


def rows_of(root: Path) -> dict[str, ModelRow]:
    rows = json.loads((root / "evaluations" / "comparison.json").read_text())
    return {row["model"]: ModelRow.from_json(row) for row in rows}


def test_other_fits_are_what_fits_of_their_own_give(setting: Setting) -> None:
    first, second, root = {"ratio": 0.3, "scale": 0.6}, {"ratio": 0.5, "scale": 0.9}, setting.root
    others = {"label": "first", "fine_tuning_alone": True, "selections": {"second, in words": second}}
    outcome = call("fit", "--config", config_of(setting, root / "all", transfer=first, comparison=others))
    assert outcome.status == 0, outcome.err
    rows = rows_of(root / "all")
    controls = ["target", "source s", "fine-tuning alone", "task arithmetic", "random channels"]
    transfers = ["first", "first + fine-tuning", "second, in words", "second, in words + fine-tuning"]
    assert list(rows) == controls + transfers
    assert "With fine-tuning: recover" in outcome.out
    for name, transfer in (("alone", None), ("one", first), ("two", second)):
        alone = call("fit", "--config", config_of(setting, root / name, transfer=transfer, comparison={}))
        assert alone.status == 0, alone.err
    one, two = rows_of(root / "one"), rows_of(root / "two")
    assert rows["fine-tuning alone"] == rows_of(root / "alone")["fine-tuning alone"]
    for mine, its in (("first", one), ("second, in words", two)):
        for end in ("", " + fine-tuning"):
            assert rows[f"{mine}{end}"].scores == its[f"transfer{end}"].scores
        assert rows[mine].share == its["transfer"].share
    assert not (root / "all" / "comparison" / "second-in-words" / "model").exists()
    assert (root / "all" / "model").is_dir()


def test_task_arithmetic_at_the_best_scale_that_keeps(setting: Setting) -> None:
    theirs, keeping = dict(setting.source.named_parameters()), {}
    scales = [0.05, 0.3, 0.6, 1.0]
    for scale in scales:
        merged = copy.deepcopy(setting.target)
        with torch.no_grad():
            for name, values in merged.named_parameters():
                values.add_(scale * (theirs[name] - values))
        right = counted(merged)
        if right["kept"] >= counted(setting.target)["kept"]:
            keeping[scale] = right["lost"]
    best = max(keeping, key=lambda scale: keeping[scale])
    rows = setting.fit(TransferComparison(scales=scales))
    assert rows[f"task arithmetic, λ {best:g}"].scores.share("lost").correct == keeping[best]


def test_other_fits_need_the_command_line(setting: Setting) -> None:
    with pytest.raises(ActError, match=r"must be left out where the Trainer is your own[\s\S]*act_lightning fit"):
        setting.fit(TransferComparison(fine_tuning_alone=True))


def test_settings_that_do_not_fit(setting: Setting) -> None:
    odd = {"a/b": TransferSettings(ratio=2), "a b": TransferSettings()}
    compare = TransferComparison(selections=odd, scales=[float("nan")], validation_sets=["absent"])
    with pytest.raises(ActError) as caught:
        setting.fit(compare)
    for text in ("validation_sets = 'absent'", "selections.a/b.ratio = 2", "differ in letters", "scales = nan"):
        assert text in str(caught.value)


@pytest.mark.slow
def test_other_fits_on_two_processes(setting: Setting) -> None:
    others = {"fine_tuning_alone": True, "selections": {"second": {"ratio": 0.5, "scale": 0.9}}}
    rows = []
    for name, options in (("one", []), ("two", ["--trainer.devices", "2", "--trainer.strategy", "ddp"])):
        path = config_of(setting, setting.root / name, transfer={"ratio": 0.3, "scale": 0.6}, comparison=others)
        command = [sys.executable, "-m", "act_lightning", "fit", "--config", str(path), *options]
        done = subprocess.run(command, text=True, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        rows.append(rows_of(setting.root / name))
    assert {name: row.scores for name, row in rows[0].items()} == {name: row.scores for name, row in rows[1].items()}
