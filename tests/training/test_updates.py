"""Updates of several processes under DDP, FSDP2 and FSDP1 against those of one, which takes four samples at a time.

Tied and untied, clipped and not. SGD moves weights in proportion to the gradient; Adam would hide a wrong factor, and
clipping with it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.front_door import Config, basic, run, write_yaml
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import call_program, strategy_of, weights

pytestmark = pytest.mark.slow
SAMPLES_OF_AN_UPDATE = 8
CLIPPED = 0.05  # far below the norm of these gradients


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs and 16 rows, whose answers have one word or forty: a mean of means is far from the mean."""
    root = tmp_path_factory.mktemp("updates")
    for architecture in ("qwen2", "gemma3_text"):
        target = tiny_model(architecture)
        save_model(target, tiny_tokenizer(), root / architecture)
        save_model(sibling_of(target, seed=1), tiny_tokenizer(), root / f"{architecture}-source")
    rows = ({"prompt": f"Say {n}", "answer": "one " * (40 if n % 3 == 0 else 1)} for n in range(16))
    write_jsonl(root / "d.jsonl", rows)
    return root


def config_of(place: Path, architecture: str, strategy: str, processes: int, clip: float | None) -> Config:
    folder = place / f"{architecture}-{strategy}-{processes}-{clip}"
    folder.mkdir()
    config = basic(folder, place / architecture, place / f"{architecture}-source", place / "d.jsonl")
    rows = 4 if processes == 1 else 1
    config["data"]["batch_size"] = rows
    config["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    config["trainer"] |= {
        "accumulate_grad_batches": SAMPLES_OF_AN_UPDATE // (rows * processes),
        "devices": processes,
        "gradient_clip_val": clip,
    }
    config["trainer"]["strategy"] = strategy_of(strategy, processes)
    return config


def fitted(place: Path, architecture: str, strategy: str, processes: int, clip: float | None) -> dict[str, Tensor]:
    config = config_of(place, architecture, strategy, processes, clip)
    root = Path(config["trainer"]["default_root_dir"])
    if processes == 1:
        outcome = run("fit", config)
        assert outcome.status == 0, outcome.err
    else:
        file = write_yaml(root.with_name("config.yaml"), config)
        call_program("-m", "act_lightning", "fit", "--config", file)
    return weights(root / "model")


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[tuple[str, float | None], dict[str, Tensor]]:
    """What one process makes of each pair, without clipping and with it."""
    cases = [(architecture, clip) for architecture in ("qwen2", "gemma3_text") for clip in (None, CLIPPED)]
    return {(architecture, clip): fitted(place, architecture, "auto", 1, clip) for architecture, clip in cases}


def test_clipping_changes_the_update(alone: dict[tuple[str, float | None], dict[str, Tensor]]) -> None:
    """Else what follows would show nothing of it."""
    for architecture in ("qwen2", "gemma3_text"):
        free, clipped = alone[architecture, None], alone[architecture, CLIPPED]
        assert max(float((free[name] - values).abs().max()) for name, values in clipped.items()) > 1e-3


@pytest.mark.parametrize(
    ("strategy", "processes", "architecture", "clip"),
    [
        ("fsdp2", 2, "qwen2", CLIPPED),
        ("fsdp2", 2, "gemma3_text", CLIPPED),
        ("ddp", 2, "qwen2", CLIPPED),
        ("fsdp1", 2, "gemma3_text", None),
        ("fsdp1", 2, "qwen2", CLIPPED),
        ("fsdp2", 4, "gemma3_text", None),
        ("fsdp2", 4, "qwen2", CLIPPED),
        ("ddp", 4, "gemma3_text", CLIPPED),
        ("ddp", 4, "qwen2", None),
    ],
)
def test_the_update_of_one_process(
    strategy: str,
    processes: int,
    architecture: str,
    clip: float | None,
    place: Path,
    alone: dict[tuple[str, float | None], dict[str, Tensor]],
) -> None:
    together, expected = fitted(place, architecture, strategy, processes, clip), alone[architecture, clip]
    assert together.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(together[name], values, rtol=0, atol=1e-5, msg=name)
