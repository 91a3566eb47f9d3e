"""``plan``: golden counts, problems and warnings, from configs, headers and a few rows, without a Trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from act_lightning.planning.checks import process_count
from act_lightning.planning.plan import Plan, print_plan
from act_lightning.planning.training_forecast import optimizer_bytes, shares
from tests.front_door import Config, basic, changed, left, run
from tests.tiny import save_model, sibling_of, tiny_config, tiny_model, tiny_tokenizer

# https://huggingface.co/Qwen/Qwen2.5-Math-7B-Instruct/blob/main/config.json; the source differs in the last two.
QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
MATH, INSTRUCT = {"max_position_embeddings": 4096}, {"max_position_embeddings": 32768}
EIGHT_GPUS = {
    "accelerator": "gpu",
    "devices": 8,
    "strategy": "fsdp",
    "precision": "bf16-mixed",
    "accumulate_grad_batches": 2,
}
Problems = list[dict[str, str]]


@pytest.fixture(autouse=True)
def no_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan builds no Trainer; the first thing that one does is to look for its accelerator."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a Trainer was built")

    monkeypatch.setattr("lightning.pytorch.trainer.trainer._AcceleratorConnector", refuse)


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return basic(tmp_path, target_folder, source_folder, ability_file)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, ``math`` and ``instruct``, that hold a config and nothing else."""
    root = tmp_path_factory.mktemp("qwen")
    for name, own in (("math", MATH), ("instruct", INSTRUCT)):
        AutoConfig.for_model("qwen2", **QWEN2_7B, **own).save_pretrained(root / name)
    return root


def planned(config: Config, *arguments: str, status: int = 0) -> dict[str, Any]:
    outcome = run("plan", config, "--json", *arguments)
    assert outcome.status == status, outcome.out + outcome.err
    plan: dict[str, Any] = json.loads(outcome.out)  # one object and nothing else
    assert set(plan) == {"channels", "parameters", "memory", "disk", "problems"}
    errors = [problem for problem in plan["problems"] if problem["level"] == "error"]
    assert bool(errors) == bool(status)
    return plan


def about(plan: dict[str, Any], setting: str, level: str) -> Problems:
    problems: Problems = plan["problems"]
    return [problem for problem in problems if (problem["setting"], problem["level"]) == (setting, level)]


def test_the_papers_pair_on_eight_gpus_planned_on_this_machine(config: Config, qwen: Path) -> None:
    config["model"]["target"], config["profile"]["sources"][0]["model"] = str(qwen / "math"), str(qwen / "instruct")
    config["trainer"] = {"default_root_dir": config["trainer"]["default_root_dir"], **EIGHT_GPUS}
    config["transfer"] = {"ratio": 0.01, "scale": 0.4}
    plan = planned(config)
    assert plan["channels"] == {"total": 1750528, "per_ability": {"d": 17505}}
    parameters = 7_615_616_512
    assert plan["parameters"]["total"] == parameters
    assert plan["parameters"]["per_ability"]["d"]["expected"] == pytest.approx(parameters * 0.01, rel=1e-4)
    memory, eighth = plan["memory"], 4 * parameters // 8
    assert memory["profiling_weights"] == 2 * 2 * parameters
    assert memory["profiling_outputs"] == 2 * 8192 * (1750528 + 152064), "those of one batch, and logits"
    config["profile"]["placement"] = "layerwise"
    staged = planned(config)["memory"]
    assert staged["profiling_weights"] == 2 * 2 * (152064 * 3584 + 3584), "head and final norm of two models"
    assert staged["profiling_outputs"] == 2 * 8192 * (2 * 152064 + 2 * 3584)
    held = [memory[f"training_{name}"] for name in ("weights", "gradients", "optimizer")]
    assert held == [eighth, eighth, 2 * eighth], "float32 weights, gradients and two moments, over eight ranks"
    vocabulary = 152064 * 3584
    gathered = 2 * vocabulary + 2 * (parameters - 2 * vocabulary) // 28
    assert memory["training_gathered"] == pytest.approx(2 * gathered, rel=1e-6), "two layers and the ends, in bfloat16"
    assert memory["training_copies"] == 0
    others = sum(memory[f"training_{name}"] for name in ("gathered", "activations", "passing"))
    assert memory["training"] == sum(held) + others
    assert (plan["disk"]["model"], plan["disk"]["scores"]) == (2 * parameters, 4 * 1750528)
    assert plan["disk"]["checkpoint"] == 12 * parameters
    for setting in ("model.target", "profile.sources[0].model"):
        assert "no weights" in about(plan, setting, "note")[0]["message"]
    assert "max_position_embeddings: 4096" in about(plan, "profile.sources[0].model", "note")[1]["message"]
    assert not about(plan, "trainer.accumulate_grad_batches", "warning")
    assert not [one for one in about(plan, "trainer.strategy", "warning") if "takes" not in one["message"]]


def test_a_strategy_given_as_a_class_is_not_built(config: Config) -> None:
    fsdp = "lightning.pytorch.strategies.FSDPStrategy"
    strategy = {"class_path": fsdp, "init_args": {"sharding_strategy": "FULL_SHARD", "cpu_offload": True}}
    config["trainer"] |= EIGHT_GPUS | {"strategy": strategy, "accumulate_grad_batches": 1}
    plan = planned(config)
    assert plan["memory"]["training_weights"] == 4 * plan["parameters"]["total"] // 8
    assert plan["memory"]["training_optimizer"] == 0, "it lies in the host's memory"


def test_warns_of_a_strategy_that_does_not_do_what_is_wanted(config: Config) -> None:
    given = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
    config["trainer"] |= EIGHT_GPUS | {"strategy": given}
    assert "shards nothing" in about(planned(config), "trainer.strategy", "warning")[0]["message"]


@pytest.mark.parametrize(
    "given", ["deepspeed_stage_3", {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}]
)
def test_deepspeed_is_refused_for_a_transfer(config: Config, given: object) -> None:
    """By ``fit`` as by its plan, before Lightning looks for the package; plain fine-tuning is Lightning's affair."""
    config["trainer"] |= EIGHT_GPUS | {"strategy": given}
    (problem,) = about(planned(config, status=1), "trainer.strategy", "error")
    assert "copies them for its optimizer" in problem["message"]
    outcome = run("fit", config)
    assert outcome.status == 1
    assert "copies them for its optimizer" in outcome.err
    assert not about(planned(changed(config, "profile", ...)), "trainer.strategy", "error")


def test_moments_whose_precision_depends_on_shards_are_refused(config: Config) -> None:
    sizes = {"data_parallel_size": 8, "tensor_parallel_size": 1}
    given = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": sizes}
    config["trainer"] |= EIGHT_GPUS | {"strategy": given}
    for strategy in (given, "fsdp"):
        config["trainer"] |= {"strategy": strategy}
        for optimizer in ("bitsandbytes.optim.AdamW8bit", "torchao.optim.AdamW8bit"):
            config["model"]["optimizer"] = {"class_path": optimizer}
            (issue,) = about(planned(config, status=1), "model.optimizer", "error")
            assert "unquantized" in issue["message"]
        config["model"]["optimizer"] = "adamw"
        assert not about(planned(config), "model.optimizer", "error")


def test_nothing_is_written_and_only_a_few_rows_are_read(config: Config, tmp_path: Path) -> None:
    pair = spoiled(
        config, tmp_path, lambda name, one: one if ".0.self_attn" in name else torch.full_like(one, torch.nan)
    )
    before = left(tmp_path)
    assert planned(config, "--for", "merge", status=1)["problems"][0]["message"].count("NaN") == 1
    assert [path for path in left(tmp_path) if path not in before] == ["config.yaml"]
    for folder in pair:  # headers tell the rest
        (folder / "model.safetensors").unlink()
    assert {problem["level"] for problem in planned(config)["problems"]} == {"note"}


def spoiled(config: Config, root: Path, edit: Callable[[str, torch.Tensor], torch.Tensor]) -> list[Path]:
    """Copies of both models, the source with other weights, named in ``config``."""
    copies = []
    for name, place in (("target", config["model"]), ("source", config["profile"]["sources"][0])):
        key = "target" if name == "target" else "model"
        shutil.copytree(place[key], root / name)
        place[key] = str(root / name)
        copies.append(root / name)
    weights = load_file(copies[1] / "model.safetensors")
    save_file({name: edit(name, one) for name, one in weights.items()}, copies[1] / "model.safetensors")
    return copies


@pytest.mark.parametrize(
    ("edit", "level", "words"),
    [
        (lambda name, one: torch.randn_like(one), "error", "no sibling of the target"),
        (lambda name, one: one + 0.5 * torch.randn_like(one), "warning", "distant relative"),
        (lambda name, one: one + 1e-3 * torch.randn_like(one), None, ""),
    ],
)
def test_strangers_are_told_from_siblings(
    config: Config, tmp_path: Path, edit: Callable[[str, torch.Tensor], torch.Tensor], level: str | None, words: str
) -> None:
    spoiled(config, tmp_path, edit)
    plan = planned(config, status=int(level == "error"))
    found = plan["parameters"]["siblings"]["s"]
    assert abs(found["chance"]) < 0.1
    problems = [one for one in plan["problems"] if one["setting"] != "transfer.selection"]
    assert [(one["level"], words in one["message"]) for one in problems] == ([(level, True)] if level else [])
    if level == "error":
        assert abs(found["cosine"]) < 0.1
        assert found["difference"] > 1


def test_a_scale_beyond_the_source_is_noticed(config: Config) -> None:
    for setting, scale, verb in (("transfer.scale", "40", "fit"), ("sweep.scales", "0.5,1.5", "sweep")):
        plan = json.loads(run("plan", config, "--json", "--for", verb, f"--{setting}", scale).out)
        (warning,) = about(plan, setting, "warning")
        assert "times as far as the source" in warning["message"]
    assert not about(planned(config), "transfer.scale", "warning")


def test_one_model_under_two_names_is_refused(config: Config, target_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(target_folder, tmp_path / "other")
    for name in (target_folder, other):
        plan = planned(changed(config, "profile.sources.0.model", str(name)), status=1)
        (problem,) = about(plan, "profile.sources[0].model", "error")
        assert "must not hold the target's own weights" in problem["message"]
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"][-1] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    plan = planned(changed(config, "profile.sources.0.model", str(other)))
    assert plan["parameters"]["siblings"]["s"]["difference"] == 0
    assert "hardly anything to transfer" in about(plan, "profile.sources[0].model", "warning")[0]["message"]


def test_what_configs_alone_tell_of_a_pair(config: Config, qwen: Path, tmp_path: Path) -> None:
    """The differences of the paper's pair and of its padded relatives, without weights or tokenizers."""
    others = {"vocab_size": 151936, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "dtype": "float32"}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    AutoConfig.for_model("qwen2", **(QWEN2_7B | MATH | others | rope)).save_pretrained(tmp_path / "other")
    config["model"]["target"], config["profile"]["sources"][0]["model"] = (
        str(qwen / "instruct"),
        str(tmp_path / "other"),
    )
    notes = [problem["message"] for problem in about(planned(config), "profile.sources[0].model", "note")]
    for words in (
        "a vocabulary of 151,936 entries, and the target's has 152,064",
        "tie_word_embeddings: False in the target, True in the source",
        "rms_norm_eps: 1e-06 in the target, 1e-05 in the source",
        "max_position_embeddings: 32768 in the target, 4096 in the source",
        "rope_parameters: ",
        "stored as float32, the target as bfloat16",
    ):
        assert sum(words in note for note in notes) == 1, (words, notes)


def test_buffers_that_stay_the_targets_are_named(config: Config, tmp_path: Path) -> None:
    """Gemma 4 stores a factor of each layer, which no channel owns."""
    target = tiny_model("gemma4_text")
    folders = [save_model(target, tiny_tokenizer(), tmp_path / "gemma4")]
    folders.append(save_model(sibling_of(target, seed=1), tiny_tokenizer(), tmp_path / "other"))
    config["model"]["target"], config["profile"]["sources"][0]["model"] = map(str, folders)
    notes = [problem["message"] for problem in about(planned(config), "profile.sources[0].model", "note")]
    assert "2 stored buffers differ: model.layers.0.layer_scalar, model.layers.1.layer_scalar" in notes


def test_differences_of_tokenizers_templates_and_dtypes(config: Config, tmp_path: Path) -> None:
    _, source = spoiled(config, tmp_path, lambda name, one: one.bfloat16())
    tokenizer = tiny_tokenizer("{{ messages }}")
    tokenizer.add_tokens(["brand-new"])
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(source)
    notes = [problem["message"] for problem in about(planned(config), "profile.sources[0].model", "note")]
    for words in ("chat templates differ", "eos_token:", "1 tokens are the source's alone: 'brand-new'", "as bfloat16"):
        assert sum(words in note for note in notes) == 1, words
    content = json.loads((source / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (source / "tokenizer.json").write_text(json.dumps(content))
    warned = about(planned(config), "profile.sources[0].model", "warning")
    assert "2 tokens have another number in the source: 'A', 'B'" in warned[0]["message"]


@pytest.mark.parametrize(
    ("verb", "works"),
    [("profile", ["profiling"]), ("merge", ["profiling", "merge"]), ("fit", ["profiling", "training"])],
)
def test_each_verb_is_planned_for_what_it_does(config: Config, verb: str, works: list[str]) -> None:
    plan = planned(changed(config, "trainer.accumulate_grad_batches", 4), "--for", verb)
    assert [name for name in ("profiling", "merge", "training") if plan["memory"][name]] == works
    written = {"profile": ["scores"], "merge": ["scores", "model"], "fit": ["scores", "model", "checkpoint"]}
    assert [name for name in ("scores", "model", "checkpoint") if plan["disk"][name]] == written[verb]
    assert bool(about(plan, "trainer.accumulate_grad_batches", "warning")) == (verb == "fit")
    assert (
        len(
            about(
                planned(changed(config, "profile", ...), "--for", verb, status=int(verb != "fit")),
                "profile.sources",
                "note" if verb == "fit" else "error",
            )
        )
        == 1
    )


@pytest.mark.parametrize(
    ("asked", "models"), [([], 0), (["--sweep.fit", "true"], 1), (["--sweep.keep_models", "true"], 6)]
)
def test_a_sweep_holds_one_model_and_trains_where_it_is_told_to(config: Config, asked: list[str], models: int) -> None:
    grid = ["--sweep.scales", "0.2,0.4,0.6", "--sweep.ratios", "0.01,0.1", *asked]
    if models > 1:
        grid += ["--sweep.fit", "true"]
    plan = json.loads(run("plan", config, "--json", "--for", "sweep", *grid).out)
    parameters = plan["parameters"]["total"]
    assert plan["memory"]["sweep"] == 4 * parameters
    assert bool(plan["memory"]["training"]) == bool(models) == bool(plan["disk"]["checkpoint"])
    assert plan["disk"]["model"] == models * 4 * parameters
    broken = run("plan", config, "--json", "--for", "sweep", *grid, "--sweep.scales", "many")
    assert broken.status == 1
    assert about(json.loads(broken.out), "sweep.scales", "error")


def strategy(name: str, **arguments: object) -> Config:
    return {"class_path": f"lightning.pytorch.strategies.{name}", "init_args": arguments}


@pytest.mark.parametrize(
    ("trainer", "weights", "gradients", "state"),
    [
        ({"strategy": "auto"}, 1, 1, 1),
        ({"strategy": "ddp"}, 1, 2, 1),
        ({"strategy": "fsdp"}, 1 / 8, 1 / 8, 1 / 8),
        ({"strategy": strategy("FSDPStrategy", sharding_strategy="SHARD_GRAD_OP")}, 1, 1 / 8, 1 / 8),
        ({"strategy": strategy("FSDPStrategy", sharding_strategy="NO_SHARD")}, 1, 1, 1),
        ({"strategy": strategy("FSDPStrategy", sharding_strategy="HYBRID_SHARD"), "num_nodes": 2}, 1 / 8, 1 / 8, 1 / 8),
        ({"strategy": strategy("ModelParallelStrategy")}, 1, 1, 1),
        ({"strategy": strategy("ModelParallelStrategy", data_parallel_size=8)}, 1 / 8, 1 / 8, 1 / 8),
        ({"strategy": "deepspeed_stage_1"}, 1, 1, 1 / 8),
        ({"strategy": strategy("DeepSpeedStrategy", stage=3)}, 1 / 8, 1 / 8, 1 / 8),
    ],
)
def test_what_a_rank_holds_under_each_strategy(trainer: Config, weights: float, gradients: float, state: float) -> None:
    held = shares({"devices": 8, **trainer})
    assert (held.weights, held.gradients, held.optimizer) == (weights, gradients, state)
    assert shares({"strategy": "deepspeed_stage_2_offload"}).offloaded


def test_optimizer_state_is_measured() -> None:
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    assert [optimizer_bytes(one, torch.float32) for one in ("adamw", sgd)] == [8, 4]
    assert optimizer_bytes("adam", torch.bfloat16) == 4
    assert optimizer_bytes({"class_path": "torch.optim.Adafactor"}, torch.float32) < 0.1
    assert optimizer_bytes({"class_path": "bitsandbytes.optim.Adam8bit"}, torch.float32) == pytest.approx(2, abs=0.1)
    assert optimizer_bytes({"class_path": "torch.optim.LBFGS"}, torch.float32) == 8, "it cannot be tried like this"
    assert optimizer_bytes({"class_path": "torchao.optim.Absent4bit"}, torch.float32) == 1, "told by its name"


def test_a_state_that_is_made_of_other_tensors_counts_as_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchao's moments of 8 bits do; they say that they are float32."""

    class Eight(torch.Tensor):
        @staticmethod
        def __new__(cls: type[Eight], codes: torch.Tensor) -> Eight:
            return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

        def __init__(self, codes: torch.Tensor) -> None:
            self.codes = codes

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["codes"], None

        __torch_dispatch__ = None  # type: ignore[assignment]

    class Quantized(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            (matrix,) = self.param_groups[0]["params"]
            self.state[matrix] = {"moment": Eight(torch.zeros(matrix.shape, dtype=torch.uint8))}

    make = "act_lightning.planning.training_forecast.make_optimizer"
    monkeypatch.setattr(make, lambda _, parameters, lr: Quantized(parameters, lr))
    assert optimizer_bytes({"class_path": "ours"}, torch.bfloat16) == 1


def test_memory_that_is_not_there_is_foreseen(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act_lightning.planning.forecast.host_memory", lambda: 1000)
    found = planned(config)["problems"]
    settings = [problem["setting"] for problem in found if problem["level"] == "warning"]
    assert settings == ["profile.placement", "trainer.strategy"]
    assert "this machine's host has 1.00 kB" in found[0]["message"]


def test_time_is_told_when_asked_for(config: Config) -> None:
    outcome = run("plan", config, "--json", "--calibrate")
    time = json.loads(outcome.out)["time"]
    assert min(time["training"], time["profiling"]) > 0
    assert time["profiled_tokens"] == time["trained_tokens"] > 1000
    assert "time: training" in run("plan", config, "--calibrate").out
    broken = changed(config, "data.max_length", 1)
    assert about(json.loads(run("plan", broken, "--json", "--calibrate").out), "data.abilities.d", "error")


def test_validation_sets_that_are_trained_on_are_noted(config: Config) -> None:
    config["data"]["validation"] = ["d"]
    assert "d: validated on, and trained on" in about(planned(config), "data.validation", "note")[0]["message"]


def test_counts_follow_ratio_scope_exclusion_and_selection(config: Config) -> None:
    def counts(**transfer: Any) -> dict[str, int | None]:
        found: dict[str, int | None] = planned(changed(config, "transfer", transfer))["channels"]["per_ability"]
        return found

    # A tiny Llama: embedding 32; twice q 32, k 16, v 16, o 32, gate 48, up 48, down 32 and two norms of 32; 32; 300.
    total = 32 + 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32 + 64) + 32 + 300
    assert planned(config)["channels"]["total"] == total
    assert counts(ratio=0.29) == {"d": int(total * 29 / 100)}
    assert counts(ratio=0.29, exclude=["lm_head"]) == {"d": int((total - 300) * 29 / 100)}
    assert counts(ratio=0.29, include=["*.[qo]_proj"], exclude=["*.1.*"]) == {"d": int(64 * 29 / 100)}
    per_module = [32, *2 * [32, 16, 16, 32, 48, 48, 32, 32, 32], 32, 300]
    assert counts(ratio=0.03, scope="module") == {"d": sum(int(count * 3 / 100) for count in per_module)}
    assert counts(selection="all") == {"d": total}
    assert counts(ratio=0.1, share="parameters") == {"d": None}


def test_an_ability_of_two_sources_is_told_by_source(config: Config, source_folder: Path, tmp_path: Path) -> None:
    other = save_model(sibling_of(tiny_model("llama"), seed=2), tiny_tokenizer(), tmp_path / "other")
    one = {"model": str(source_folder), "abilities": ["d"], "name": "one", "ratio": 0.5}
    two = {"model": str(other), "abilities": ["d"], "name": "two"}
    plan = planned(changed(config, "profile.sources", [one, two]))
    total = plan["channels"]["total"]
    assert plan["channels"]["per_ability"] == {"one/d": total // 2, "two/d": total // 10}
    assert plan["memory"]["profiling_weights"] == 3 * 4 * plan["parameters"]["total"]


@pytest.mark.parametrize(
    ("data", "trainer", "level", "samples"),
    [
        ({}, {"accumulate_grad_batches": 4}, "warning", 4),
        ({"batch_size": 4}, {"accumulate_grad_batches": 4, "devices": 2}, "warning", 32),
        ({"batch_size": 4}, {"accumulate_grad_batches": 2, "devices": 1, "num_nodes": 2}, None, 16),
        ({}, {"accelerator": "gpu", "devices": [0, 3], "accumulate_grad_batches": 8}, None, 16),
        ({}, {"accelerator": "auto", "devices": "auto"}, None, 16),
        ({}, {"accelerator": "auto", "devices": "auto", "num_nodes": 2}, "warning", 32),
        ({}, {"accelerator": "gpu", "accumulate_grad_batches": 1}, "warning", 1),
        ({}, {"accelerator": "gpu", "devices": "auto"}, "note", 16),
    ],
)
def test_says_when_an_update_is_not_sixteen_samples(
    config: Config, data: Config, trainer: Config, level: str | None, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    config["data"] |= data
    config["trainer"] |= trainer
    problems = [problem for problem in planned(config)["problems"] if problem["setting"].startswith("trainer.")]
    assert [problem["level"] for problem in problems] == ([] if level is None else [level])
    assert all(f"covers {samples} samples" in problem["message"] for problem in problems)


@pytest.mark.parametrize(("precision", "warned"), [("bf16-true", True), ("16-true", True), ("bf16-mixed", False)])
def test_warns_of_weights_too_coarse_for_the_rate(config: Config, precision: str, warned: bool) -> None:
    config["trainer"]["precision"] = precision
    assert bool(about(planned(config), "trainer.precision", "warning")) is warned


def test_an_optimizer_that_rounds_at_random_is_not_warned_of(config: Config) -> None:
    config["trainer"]["precision"] = "bf16-true"
    rounding = {"class_path": "torchao.optim.AdamW8bit", "init_args": {"bf16_stochastic_round": True}}
    config["model"]["optimizer"] = rounding
    assert not about(planned(config), "trainer.precision", "warning")


def test_plain_fine_tuning_is_noted(config: Config) -> None:
    plan = planned(changed(config, "profile", ...))
    assert "plain fine-tuning" in about(plan, "profile.sources", "note")[0]["message"]
    assert plan["channels"]["per_ability"] == {}
    assert plan["memory"]["profiling"] == 0


def test_no_name_is_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    name, relation = "a" + "b" * 90, {"cosine": 0.99, "chance": 0.1, "difference": 0.01}
    parameters = {"total": 100, "per_ability": {}, "siblings": {name: relation}}
    print_plan(Plan({"total": 10, "per_ability": {"d": 3}}, parameters), as_json=False)
    printed = capsys.readouterr().out
    assert name in printed


@pytest.mark.parametrize(
    ("verb", "changes", "noted"),
    [
        ("merge", {}, True),
        ("merge", {"transfer.exclude": ["lm_head"]}, False),
        ("merge", {"transfer.scope": "module"}, False),
        ("merge", {"transfer.selection": "local"}, False),
        ("fit", {"trainer.callbacks": [{"class_path": "act_lightning.callbacks.TransferComparison"}]}, False),
    ],
)
def test_the_papers_rule_is_left_with_a_hint(verb: str, changes: dict[str, Any], noted: bool, config: Config) -> None:
    """Only where it ranks all modules together, and nothing is compared with it."""
    for path, value in changes.items():
        config = changed(config, path, value)
    notes = about(planned(config, "--for", verb), "transfer.selection", "note")
    assert ["the paper's rule" in note["message"] for note in notes] == [True] * noted
    assert all("configs/recommended.yaml" in note["remedy"] for note in notes)


def test_errors_come_together_and_first(config: Config, tmp_path: Path) -> None:
    config["transfer"] = {"ratio": 2, "scale": float("nan"), "exclude": ["nothing*"], "selection": "norms"}
    config["trainer"]["precision"] = "bf16-true"
    config["model"]["learning_rate"] = -1
    config["data"]["abilities"]["d"]["path"] = str(tmp_path / "nowhere.jsonl")
    plan = planned(config, status=1)
    levels = [problem["level"] for problem in plan["problems"]]
    assert levels == sorted(levels)
    expected = ["model.learning_rate", "data.abilities.d.path"]
    expected += [f"transfer.{name}" for name in ("ratio", "scale", "selection", "exclude")]
    assert [problem["setting"] for problem in plan["problems"] if problem["level"] == "error"] == expected
    assert all(problem["message"] and problem["remedy"] for problem in plan["problems"])


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: tiny_config("llama", hidden_size=64).save_pretrained(folder), "shapes"),
        (lambda folder: save_model(tiny_model("qwen2"), tiny_tokenizer(), folder), "architecture"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "readable safetensors"),
    ],
)
def test_a_source_that_does_not_fit_is_an_error(
    config: Config, tmp_path: Path, source_folder: Path, spoil: Spoil, words: str
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(source_folder, folder)
    spoil(folder)
    config["profile"]["sources"][0]["model"] = str(folder)
    plan = planned(config, status=1)
    assert words in plan["problems"][0]["message"]
    assert all(problem["level"] != "note" for problem in plan["problems"]), "of strangers nothing more is told"


def test_tables_for_the_terminal_say_the_same(config: Config) -> None:
    outcome = run("plan", changed(config, "transfer.ratio", 2))
    assert outcome.status == 1
    assert "error: transfer.ratio = 2.0: must lie in (0, 1]. Write the share" in outcome.out
    outcome = run("plan", changed(config, "transfer.exclude", ["lm_head"]))
    assert outcome.status == 0
    assert "selected for d" in outcome.out
    assert "no problems found" in outcome.out
    assert "note: transfer.selection is the paper's rule" in " ".join(run("plan", config).out.split())


def test_a_full_disk_is_foreseen(config: Config, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2, 1, 1))
    assert about(planned(config), "trainer.default_root_dir", "warning")


def test_saved_scores_are_looked_at(config: Config, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    config["transfer"]["scores"] = str(tmp_path / "scores")
    plan = planned(config, status=1)
    assert "s/d.safetensors" in about(plan, "transfer.scores", "error")[0]["message"]


def test_devices_as_lightning_reads_them() -> None:
    given = {3: 3, "3": 3, "0,2": 2, "auto": None, -1: None, (1, 2, 4): 3}
    for devices, count in given.items():
        assert process_count({"devices": list(devices) if isinstance(devices, tuple) else devices}) == count
