"""Runs with saved scores for the tests of reports: tiny, with what a report must tell apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.weight_files import identify
from act_lightning.scores import ScoreRecord, score_path, write_scores
from tests.model_types import tiny_type_config
from tests.tiny import tiny_model

ABILITIES = ("math-en", "science-en", "math-ar", "science-ar")
QWEN = ("Qwen/Qwen2.5-Math-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct")


def tiny_channels() -> ChannelInventory:
    return inventory(tiny_model("llama"))


def record(models: tuple[str, str] = QWEN, **changes: Any) -> ScoreRecord:
    """What scores of these models say of themselves."""
    digests = [identify(Path(name)).digest if Path(name).is_dir() else f"digest of {name}" for name in models]
    values = ScoreRecord(
        tokens=1000,
        samples=50,
        dropped=0,
        models={"target": models[0], "source": models[1]},
        identities={"target": {"digest": digests[0]}, "source": {"digest": digests[1]}},
        data="d",
        dtype="float32",
        versions={"torch": "2.13"},
    )
    return dataclasses.replace(values, **changes)


def write_run(
    run: Path,
    models: tuple[str, str] = QWEN,
    source: str = "source",
    abilities: Sequence[str] = ABILITIES,
    seed: int = 0,
    scorer: str = "activation",
) -> Path:
    """A run with heavy-tailed scores, those of one language more alike than others; by attribution some are below 0."""
    folder = run / ("scores" if scorer == "activation" else f"scores.{scorer}")
    channels = tiny_channels()
    for i, ability in enumerate(abilities):
        generator = torch.Generator().manual_seed(seed * 100 + i)
        language = torch.Generator().manual_seed(sum(ability.split("-")[-1].encode()))
        noise = torch.randn(channels.total, generator=language) + 0.4 * torch.randn(channels.total, generator=generator)
        values = noise.exp() - (1.0 if scorer == "attribution" else 0.0)
        measured = record(models, data=ability, scorer={"name": scorer})
        write_scores(score_path(folder, source, ability), channels, values, measured)
    return run


def write_mixture_run(run: Path, layers: int, experts: int) -> Path:
    """A run with scores of a mixture of experts; an expert that more tokens are routed to has larger ones."""
    config = tiny_type_config("qwen3_moe", num_hidden_layers=layers, num_experts=experts, num_local_experts=experts)
    with torch.device("meta"):
        channels = inventory(AutoModelForCausalLM.from_config(config))
    generator = torch.Generator().manual_seed(0)
    values, usage = torch.randn(channels.total, generator=generator).exp(), {}
    for module, span in channels.spans():
        if module.experts:
            drawn = (1000 * torch.rand(experts, generator=generator) ** 3).long()
            counts = usage.setdefault(module.name.rpartition(".")[0], torch.stack([drawn] * 3))
            values[span] *= (counts[0] / 300).repeat_interleave(module.count // experts)
    write_scores(score_path(run / "scores", "source", "math-en"), channels, values, record(), usage)
    return run
