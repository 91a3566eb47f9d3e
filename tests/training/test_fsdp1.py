"""FSDP1, which flattens parameters, as torch runs it on two CPU processes: written to and gathered unit by unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.front_door import basic
from tests.programs import PROGRAMS
from tests.tiny import END_ID, save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import fit, on_processes, weights

pytestmark = pytest.mark.slow


def test_no_process_holds_more_than_its_part_and_a_unit(tmp_path: Path) -> None:
    """A unit, and the flat copy that is sharded; untied and tied."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma3_text")]
    for folder in folders:
        save_model(tiny_model(folder.name, num_hidden_layers=16), tiny_tokenizer(), folder)
    on_processes(2, PROGRAMS / "fsdp1_load.py", *folders)


def test_what_is_written_unit_by_unit_stays(tmp_path: Path) -> None:
    """With biases, tied, and with matrices stored the other way round."""
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma2", "gpt2")]
    for folder in folders:
        save_model(tiny_model(folder.name), tiny_tokenizer(), folder)
    on_processes(2, PROGRAMS / "fsdp1_write.py", *folders)


def test_an_update_in_mixed_precision_is_that_of_one_process(tmp_path: Path) -> None:
    """Buffers are not rounded; gradients are added up over micro-batches and processes in float32, in shards.

    Gemma 4 has buffers that its checkpoint holds: they are read.
    """
    folders = [tmp_path / architecture for architecture in ("qwen2", "gemma3_text", "gemma4_text")]
    for folder in folders:
        save_model(tiny_model(folder.name, dtype=torch.bfloat16), tiny_tokenizer(), folder)
    on_processes(2, PROGRAMS / "fsdp1_update.py", tmp_path, *folders)


def test_callbacks_evaluate_the_model_that_is_trained(tmp_path: Path) -> None:
    """Before the transfer, after it, and after training; sets that the processes can't share evenly."""
    talker = tiny_model("qwen2", tie_word_embeddings=False)
    talker.get_output_embeddings().weight.data[END_ID] *= 2.5
    save_model(talker, tiny_tokenizer(), tmp_path / "target")
    save_model(sibling_of(talker, seed=1), tiny_tokenizer(), tmp_path / "source")
    rows = [{"prompt": f"Say {number}", "answer": "one " * (1 + 7 * number % 23)} for number in range(32)]
    data, sets = write_jsonl(tmp_path / "d.jsonl", rows), dict[str, object]()
    for kind, count in (("number", 5), ("exact", 7)):
        path = write_jsonl(tmp_path / f"{kind}.jsonl", [{"prompt": f"Say {n}", "answer": "3"} for n in range(count)])
        sets[kind] = {"path": str(path), "role": "keep", "kind": kind, "max_new_tokens": 12}
    roots = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        config = basic(tmp_path / str(processes), tmp_path / "target", tmp_path / "source", data)
        config["data"] |= {
            "abilities": {"d": {"path": str(data), "role": "keep"}, "r": {"path": str(data), "role": "recover"}},
            "validation": ["d", "r"],
            "train": ["d"],
            "evaluations": sets,
            "max_length": 64,
        }
        names = ("BestRecovery", "TransferComparison", "AnswerEvaluation")
        callbacks = [{"class_path": f"act_lightning.callbacks.{name}"} for name in names]
        callbacks[0] |= {"init_args": {"keep_within": 100}}
        config["trainer"] |= {"accumulate_grad_batches": 16 // processes, "callbacks": callbacks}
        roots.append(fit(config, processes, strategy="fsdp1"))
    alone, together = (root / "evaluations" for root in roots)
    lengths = {json.loads(row)["tokens"] for row in (alone / "number.jsonl").read_text().splitlines()}
    assert len(lengths) > 1, "else no process would have to wait for the other"
    for name in ("number.jsonl", "exact.jsonl", "results.csv", "comparison.json"):
        assert (together / name).read_bytes() == (alone / name).read_bytes(), name
    for folder in ("best", "model"):
        single, sharded = (weights(root / folder) for root in roots)
        for name, values in single.items():
            torch.testing.assert_close(sharded[name], values, rtol=0, atol=1e-5)
