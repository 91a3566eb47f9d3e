"""What is run on the stand-in device: verbs with a config for all, and what each scenario changes in it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.front_door import Config
from tests.model_types import tiny_type_config
from tests.tiny import perturb, save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

Steps = list[tuple[str, Config]]
"""Verbs, each with what changes in the config, which all of them share with the run's folder."""
METHODS = ("task_arithmetic", "ties", "dare", "dare_ties", "breadcrumbs", "della", "fisher")
SELECTIONS = ("local", "activation_relative", "activation_module_mean", "weight", "weight_rms", "attribution")
_CALLBACKS = "act_lightning.callbacks"
_ONCE = {"trainer": {"max_steps": 1}}
_PACKED = {"data": {"batch_size": 4, "packing": True}}
_PADDED = {"data": {"batch_size": 4, "packing": False}}
_CLIPPED = {"gradient_clip_val": 1.0}


def merged(config: Any, changes: Any) -> Any:
    """A config with changes merged by key; a slice takes a part of a list."""
    if isinstance(changes, slice):
        return config[changes]
    if not (isinstance(config, dict) and isinstance(changes, dict)):
        return changes
    return config | {key: merged(config.get(key), value) for key, value in changes.items()}


def _callbacks(*names: str, **trainer: Any) -> Config:
    paths = [name if "." in name else f"{_CALLBACKS}.{name}" for name in names]
    return {"trainer": {"callbacks": [{"class_path": path} for path in paths], **trainer}}


def _plain_fit(updates: int, micro_batches: int, size: int = 1, packing: bool = False) -> Config:
    limited = {"abilities": {"d": {"limit": updates * micro_batches * size}}, "validation": []}
    return {
        "profile": {"sources": None},
        "data": limited | {"batch_size": size, "packing": packing},
        "trainer": _callbacks("TokenThroughput", accumulate_grad_batches=micro_batches)["trainer"],
    }


def _small_profile(samples: int, changes: Config) -> Config:
    return merged({"profile": {"sources": slice(1)}, "data": {"abilities": {"d": {"limit": samples}}}}, changes)


def _endless_answers(tokens: int) -> Config:
    """Of a random model, which hardly ever ends one."""
    return {"data": {"evaluations": {"exact": {"max_new_tokens": tokens}, "number": None}}}


_ATTRIBUTION = {
    "class_path": "act_lightning.scorers.Attribution",
    "init_args": {"alpha": [0.25, 0.75], "keep": ["e"], "rounds": 2, "first_share": 0.01},
}
_SGD = {"class_path": "torch.optim.SGD"}  # Adam divides by an ε that is zero in float16
_HALF = {  # given "16-mixed", Lightning would compute in bfloat16 on the CPU
    "class_path": "lightning.pytorch.plugins.MixedPrecision",
    "init_args": {
        "precision": "16-mixed",
        "device": "cpu",
        "scaler": {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cpu"}},
    },
}
_COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 8}}
_PLACES = ("resident", "offload", "layerwise")
_TOKENS = {"profile": {"tokens_per_batch": 120}}
PROFILES: dict[str, Config] = {
    "alone": {"profile": {"tokens_per_batch": 1}},
    "packed": _TOKENS | {"data": {"packing": True}},
    **{place: {"profile": {"placement": place, "tokens_per_batch": 120}} for place in _PLACES},
    "by attribution": _TOKENS | {"transfer": {"selection": "attribution"}},
    "by layerwise attribution": {
        "profile": {"tokens_per_batch": 120, "placement": "layerwise"},
        "transfer": {"selection": "attribution"},
    },
    "mixture": _TOKENS,
}
"""How samples are profiled where waits are counted."""
SCENARIOS: dict[str, Steps] = {
    **{f"profile {place}": [("profile", {"profile": {"placement": place}})] for place in ("resident", "offload")},
    "profile layerwise": [("profile", {"profile": {"placement": "layerwise"}, "model": {"dtype": "bfloat16"}})],
    **{f"profile {place} of a mixture": [("profile", {"profile": {"placement": place}})] for place in _PLACES},
    "fit of a mixture": [("fit", _PADDED | {"model": {"router_aux_loss_coef": 0.1}})],
    "profile packed": [("profile", {"data": {"packing": True}, "profile": {"chunks": 2}})],
    "profile until stable": [
        ("profile", {"profile": {"stop_when_stable": 0.5}, "data": {"abilities": {"d": {"limit": 160}}}})
    ],
    **{f"select {name}": [("profile", {"transfer": {"selection": name}})] for name in SELECTIONS},
    "select attribution in rounds": [("profile", {"transfer": {"selection": _ATTRIBUTION}})],
    **{f"inject {method}": [("fit", _ONCE | {"transfer": {"method": method}})] for method in METHODS},
    "merge": [("merge", {"transfer": {"method": "ties"}})],
    "fit packed": [("fit", _PACKED | {"trainer": _CLIPPED | {"logger": None}})],
    "fit padded": [("fit", _PADDED | {"trainer": _CLIPPED | {"logger": None}})],
    "fit bf16-mixed": [("fit", _PACKED | {"trainer": _CLIPPED | {"precision": "bf16-mixed"}})],
    "fit bf16-true": [("fit", _PACKED | _callbacks("LostUpdates", precision="bf16-true"))],
    "fit 16-mixed": [("fit", _PADDED | {"trainer": {"plugins": [_HALF]}})],
    "fit 16-true": [("fit", _PADDED | {"model": {"optimizer": _SGD}, "trainer": {"precision": "16-true"}})],
    "fit 64-true": [("fit", _PADDED | {"trainer": {"precision": "64-true"}})],
    "fit with a schedule": [
        ("fit", {"model": {"optimizer": "adamw", "lr_scheduler": _COSINE, "gradient_checkpointing": True}})
    ],
    "fit with eager attention": [("fit", _PACKED | {"model": {"attention": "eager"}})],
    "fit with comparison": [("fit", _callbacks("TransferComparison"))],
    "fit with evaluations": [
        (
            "fit",
            {"data": {"validation": ["d", "e"]}}
            | _callbacks("BestRecovery", "AnswerEvaluation", val_check_interval=0.5),
        )
    ],
    "fit with throughput": [("fit", _PACKED | _callbacks("TokenThroughput", log_every_n_steps=1))],
    "fit with an average": [("fit", _callbacks("lightning.pytorch.callbacks.EMAWeightAveraging", "AnswerEvaluation"))],
    "resume": [("fit", {}), ("fit", {"trainer": {"max_epochs": 2}, "ckpt_path": "last"})],
    "resume what is complete": [("fit", {}), ("fit", _callbacks("AnswerEvaluation") | {"ckpt_path": "last"})],
    "validate": [("validate", {})],
    "test": [("test", {})],
    "test with vllm": [("test", {"model": {"generator": "vllm"}})],
    "predict": [("predict", {})],
    # what differs in the number of batches or tokens only, so that the waits in one can be counted
    **{f"predict {count} tokens": [("predict", _endless_answers(count))] for count in (8, 72)},
    **{f"fit {u} updates of {m}": [("fit", _plain_fit(u, m))] for u, m in ((1, 4), (1, 12), (3, 4))},
    **{
        f"fit {m} {layout} micro-batches": [("fit", _plain_fit(1, m, 3, layout == "packed"))]
        for layout in ("padded", "packed")
        for m in (2, 4)
    },
    **{
        f"profile {kind} of {samples} samples": [("profile", _small_profile(samples, changes))]
        for kind, changes in PROFILES.items()
        for samples in (8, 24)
    },
    "causes": [("causes", {"causes": {"samples": 6, "repeats": 2}, "profile": {"sources": slice(1, 2)}})],
    "sweep": [("sweep", {"sweep": {"scales": [0.2, 0.4], "ratios": [0.1]}})],
}


def base_config(folder: Path, root: Path, mixture: bool = False) -> Config:
    """Two sources, two abilities, and evaluation sets of two kinds; of dense models, or of mixtures of experts."""
    models = folder / "mixtures" if mixture else folder
    sources = [
        {"model": str(models / "source1"), "abilities": ["d"], "name": "s1"},
        {"model": str(models / "source2"), "abilities": ["d", "e"], "name": "s2", "scale": 0.3},
    ]
    abilities = {
        "d": {"path": str(folder / "d.jsonl"), "limit": 40, "role": "recover"},
        "e": {"path": str(folder / "e.jsonl"), "limit": 24, "role": "keep"},
    }
    evaluations = {
        "exact": {"path": str(folder / "d.jsonl"), "limit": 6, "role": "recover", "max_new_tokens": 6},
        "number": {"path": str(folder / "n.jsonl"), "kind": "number", "role": "keep", "max_new_tokens": 6},
    }
    return {
        "seed_everything": 7,
        "model": {"target": str(models / "target"), "learning_rate": 1e-3, "attention": "sdpa"},
        "data": {"abilities": abilities, "train": ["d"], "validation": ["e"], "evaluations": evaluations},
        "profile": {"sources": sources},
        "transfer": {"ratio": 0.1},
        "trainer": {
            "accumulate_grad_batches": 8,
            "max_epochs": 1,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": False,
            "default_root_dir": str(root / "run"),
        },
    }


def write_models(folder: Path) -> None:
    """The models and data files of all scenarios."""
    target, draw, words = tiny_model("qwen2"), random.Random(0), ("one", "два", "三", "four,", "पाँच")
    torch.manual_seed(0)
    mixture = AutoModelForCausalLM.from_config(tiny_type_config("qwen3_moe"), dtype=torch.float32)
    perturb(mixture, 0, 0.15)
    for place, first in ((folder, target), (folder / "mixtures", mixture)):
        save_model(first, tiny_tokenizer(), place / "target")
        for seed in (1, 2):
            save_model(sibling_of(first, seed), tiny_tokenizer(), place / f"source{seed}")
    for name in ("d", "e"):
        rows = [
            {"prompt": f"Say {draw.choice(words)} {i} times", "answer": " ".join(draw.choices(words, k=1 + i % 9))}
            for i in range(200)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "n.jsonl", [{"prompt": f"What is {i} and one?", "answer": str(i + 1)} for i in range(6)])
