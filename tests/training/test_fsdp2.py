"""FSDP2 on two processes against one, beyond the matrix (tests/test_matrix.py): ties, resuming, loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.callbacks.test_comparison import ROWS, parrot
from tests.front_door import Config, basic, changed
from tests.programs import PROGRAMS
from tests.programs.validated_fit import fit_both
from tests.reference.act import assert_same_bits
from tests.tiny import DISTINCT, END_ID, save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import fit, on_processes, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fsdp2")
    for architecture in ("qwen2", "gemma3_text"):
        target = tiny_model(architecture)
        save_model(target, tiny_tokenizer(), root / architecture)
        save_model(sibling_of(target, seed=1), tiny_tokenizer(), root / f"{architecture}-source")
    rows = ({"prompt": f"Say {number}", "answer": "one " * (1 + 7 * number % 23)} for number in range(32))
    write_jsonl(root / "d.jsonl", rows)
    return root


def config_of(place: Path, architecture: str, name: str, processes: int) -> Config:
    folder = place / f"{architecture}-{name}"
    folder.mkdir(exist_ok=True)
    config = basic(folder, place / architecture, place / f"{architecture}-source", place / "d.jsonl")
    config["data"]["validation"] = 0.3
    config["trainer"]["accumulate_grad_batches"] = 16 // processes
    return config


def test_every_process_holds_its_own_rows_of_the_same_model(tmp_path: Path) -> None:
    folders = [tmp_path / architecture for architecture in (*DISTINCT, "gemma4_text")]
    for folder in folders:
        model = tiny_model(folder.name)
        model.generation_config.eos_token_id = [END_ID, 7]  # as Qwen2.5's names more than its config
        save_model(model, tiny_tokenizer(), folder)
    on_processes(2, PROGRAMS / "fsdp2_load.py", *folders)


def assert_the_same_fit(alone: Path, together: Path) -> None:
    reports = [json.loads((root / "transfer.json").read_text()) for root in (alone, together)]
    assert reports[0] == reports[1]
    single, sharded = (weights(root / "model") for root in (alone, together))
    assert single.keys() == sharded.keys()
    for name, values in single.items():
        torch.testing.assert_close(sharded[name], values, rtol=0, atol=1e-6)


def test_the_same_of_tied_weights(place: Path) -> None:
    assert_the_same_fit(*(fit(config_of(place, "gemma3_text", str(count), count), count) for count in (1, 2)))


def test_a_fit_that_goes_on_injects_no_second_time(place: Path) -> None:
    """And ends where one without a break ends; two epochs begin as one does."""
    root = fit(config_of(place, "qwen2", "2", 2), 2)
    before = (root / "transfer.json").read_text()
    (root / "transfer.json").unlink()
    further = changed(config_of(place, "qwen2", "2", 2), "trainer.max_epochs", 2)
    fit(further, 2, "--ckpt_path", root / "checkpoints" / "last.ckpt")
    assert (root / "transfer.json").read_text() == before
    whole = fit(changed(config_of(place, "qwen2", "whole", 2), "trainer.max_epochs", 2), 2)
    assert_same_bits(weights(root / "model"), weights(whole / "model"))


@pytest.mark.parametrize(("strategy", "processes"), [("fsdp2", 3), ("fsdp1", 2)])
def test_a_comparison_of_sets_that_processes_cannot_share_evenly(strategy: str, processes: int, tmp_path: Path) -> None:
    """Every model needs all processes for every batch, and there are 1 and 5 batches."""
    folders = {"target": "ok", "source": "7"}
    for seed, (name, answer) in enumerate(folders.items(), start=1):
        save_model(parrot(answer, seed), tiny_tokenizer(), tmp_path / name)
    data = write_jsonl(tmp_path / "d.jsonl", ({"prompt": f"Ask {n}", "answer": "7"} for n in range(20)))
    exact = write_jsonl(tmp_path / "exact.jsonl", ({"prompt": f"Ask {n}", "answer": "ok"} for n in range(5)))
    number = write_jsonl(tmp_path / "n.jsonl", ({"prompt": f"Ask {n}", "answer": "7"} for n in range(5)))
    evaluations = {
        "exact": {"path": str(exact), "role": "keep"},
        "number": {"path": str(number), "role": "recover", "kind": "number", "max_new_tokens": 1100},
    }
    tables = []
    for count in (1, processes):
        (tmp_path / str(count)).mkdir()
        config = basic(tmp_path / str(count), tmp_path / "target", tmp_path / "source", data)
        config["data"]["evaluations"] = evaluations
        config["model"]["learning_rate"] = 1e-30
        config["transfer"] = {"ratio": 0.3, "scale": 0.6}
        config["trainer"] |= {"max_steps": 1, "callbacks": ["act_lightning.callbacks.TransferComparison"]}
        tables.append(
            json.loads((fit(config, count, strategy=strategy) / "evaluations" / "comparison.json").read_text())
        )
    assert tables[0] == tables[1]
    assert [row["model"] for row in tables[0]] == ROWS
    assert len({json.dumps(row["correct"]) for row in tables[0]}) > 1, "models differ"


def test_compiled_layers(place: Path) -> None:
    """Even though FSDP2 gives layers other classes."""
    compiled = config_of(place, "qwen2", "compiled", 2)
    compiled["model"]["compile"] = {"backend": "aot_eager"}
    assert_the_same_fit(fit(config_of(place, "qwen2", "plain", 1), 1), fit(compiled, 2))


def test_a_fit_after_a_forward_pass(place: Path) -> None:
    """FSDP2 leaves embedding, last norm and head gathered, where a transfer, optimizer and export would see them."""
    arguments = [place / "qwen2", place / "qwen2-source", place / "d.jsonl"]
    on_processes(2, PROGRAMS / "validated_fit.py", place / "after", *arguments)
    fit_both(place / "before", *map(str, arguments))
    for name in ("trained", "injected"):
        alone, together = (place / root / name for root in ("before", "after"))
        assert_the_same_fit(alone, together)
        before, after = weights(place / "qwen2"), weights(together / "model")
        for parameter in ("lm_head.weight", "model.norm.weight"):
            assert not torch.equal(after[parameter], before[parameter]), f"{name} leaves {parameter}"
    assert_same_bits(after, weights(alone / "model"))
    assert_same_bits(weights(together / "best"), after)
