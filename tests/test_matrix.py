"""Every verb under every strategy, with every callback, scorer, placement and method, equals one process or is refused.

Cells are chosen so that every two values that can meet do meet in one of them.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from act_lightning import callbacks
from act_lightning.merging import METHODS
from act_lightning.scorers import SCORERS, UNSCORED
from tests.front_door import Config, basic, write_yaml
from tests.model_types import tiny_type_config
from tests.programs import PROGRAMS
from tests.reference.act import assert_same_bits
from tests.tiny import END_ID, perturb, save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import call_program, strategy_of

PROCESSES = {"one": 1, "ddp-2": 2, "fsdp2-2": 2, "fsdp2-3": 3, "fsdp1-2": 2}
STRATEGIES = tuple(PROCESSES)[1:]
CALLBACKS: dict[str, dict[str, Any]] = {
    "AnswerEvaluation": {},
    "BestRecovery": {},
    "TransferComparison": {},
    "LostUpdates": {},
    "TokenThroughput": {},
    "PreemptionCheckpoint": {},
    "LastCheckpoint": {"every_n_updates": 1},
    "HuggingFaceExport": {"dtype": "bfloat16"},
    "FisherInformation": {},  # of the run's own source
    "EMAWeightAveraging": {},
}
VERBS = ("profile", "merge", "fit", "validate", "test", "predict", "sweep", "causes")
SELECTIONS = (*SCORERS, *UNSCORED)
PLACEMENTS = ("resident", "offload", "layerwise")
MICRO_BATCHES = 6  # of an update, on all processes together
REFUSALS = {  # what is refused under strategies whose name begins so, and the reason
    ("EMAWeightAveraging", "fsdp"): "must not be combined with a strategy that shards",
}


@dataclass(frozen=True)
class Cell:
    """One run; a verb that does not use a setting leaves it at its default."""

    verb: str
    strategy: str = "one"
    callback: str = ""
    selection: str = "activation"
    placement: str = "auto"
    method: str = "task_arithmetic"
    rate: str = ""
    model: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, astuple(self)))

    @property
    def alone(self) -> Cell:
        """The same on one process."""
        return replace(self, strategy="one")

    def pairs(self) -> Iterable[tuple[Any, ...]]:
        return combinations(((field.name, getattr(self, field.name)) for field in fields(self)), 2)


DEFAULTS = [Cell(verb, strategy) for verb in VERBS for strategy in STRATEGIES]
STILL = "1e-30"  # so low a rate that what was injected stays
INJECTIONS = [Cell("fit", strategy, method=method, rate=STILL) for strategy in STRATEGIES for method in METHODS]


def every_cell() -> Iterable[Cell]:
    """All that can meet, about nine thousand cells."""
    yield from DEFAULTS + INJECTIONS
    for settings in product(("profile", "causes"), STRATEGIES, [""], SELECTIONS, PLACEMENTS):
        yield Cell(*settings)
    for settings in product(("merge", "sweep"), STRATEGIES, [""], SELECTIONS, PLACEMENTS, METHODS):
        yield Cell(*settings)
    for settings in product(STRATEGIES, ["", *CALLBACKS], SELECTIONS, PLACEMENTS, METHODS):
        yield Cell("fit", *settings)


def pairwise(cells: Sequence[Cell], first: Sequence[Cell]) -> list[Cell]:
    """The ``first`` cells, and as few others as it takes to find every pair of values that is found in all."""
    pairs, draw, chosen = {cell: {*cell.pairs()} for cell in cells}, random.Random(0), [*first]
    found = set().union(*(pairs[cell] for cell in first))
    missing = dict.fromkeys(pair for cell in cells for pair in cell.pairs() if pair not in found)
    while missing:
        pair = next(iter(missing))
        having = [cell for cell in cells if pair in pairs[cell]]
        drawn = draw.sample(having, min(len(having), 40))
        chosen.append(max(drawn, key=lambda cell: len(pairs[cell] & missing.keys())))
        missing = {pair: None for pair in missing if pair not in pairs[chosen[-1]]}
    return chosen


CELLS = pairwise([*every_cell()], first=DEFAULTS + INJECTIONS)
MIXTURE = "qwen3_moe"
MIXTURES = [replace(cell, model=MIXTURE) for cell in DEFAULTS if cell.strategy in ("ddp-2", "fsdp2-2")]
MIXTURES += [
    Cell("profile", s, placement=p, model=MIXTURE) for s, p in zip(("ddp-2", "fsdp2-2"), PLACEMENTS[1:], strict=True)
]
MIXTURES += [Cell("merge", "fsdp2-2", method=method, model=MIXTURE) for method in METHODS]
MIXTURES += [Cell("fit", "fsdp2-2", method=method, rate=STILL, model=MIXTURE) for method in METHODS]
MIXTURES += [Cell("merge", "ddp-2", selection=selection, model=MIXTURE) for selection in SELECTIONS]
MIXTURES = [*dict.fromkeys(MIXTURES)]


def answers_of(model: PreTrainedModel, count: int) -> list[str]:
    """What the model says to ``Say 0``, ``Say 1`` and so on, greedily; a question mark where it goes on."""
    tokenizer, answers = tiny_tokenizer(), []
    for number in range(count):
        turns = [{"role": "user", "content": f"Say {number}"}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(ids, skip_special_tokens=True) if ids[-1] == END_ID else "?")
    return answers


def prepare(root: Path) -> None:
    """Two models with biases; 13, 5 and 7 rows, which neither two nor three processes divide, some answered right.

    Of the 5 rows the target answers some as asked, text for text; of the 7 the source some, number for number.
    """
    torch.manual_seed(0)
    mixture = AutoModelForCausalLM.from_config(tiny_type_config(MIXTURE), dtype=torch.float32)
    perturb(mixture, 0, 0.15)
    save_model(mixture, tiny_tokenizer(), root / f"target-{MIXTURE}", "50KB")
    save_model(sibling_of(mixture, seed=1), tiny_tokenizer(), root / f"source-{MIXTURE}", "50KB")
    target = tiny_model("qwen2")
    head: Any = target.get_output_embeddings()
    head.weight.data[END_ID] *= 3  # so that answers end, where the other process may have to go on
    source = sibling_of(target, seed=1)
    save_model(target, tiny_tokenizer(), root / "target")
    save_model(source, tiny_tokenizer(), root / "source")
    write_jsonl(root / "d.jsonl", ({"prompt": f"Say {i}", "answer": "one " * (1 + 7 * i % 23)} for i in range(20)))
    texts = answers_of(target, 5)
    assert len({*map(len, texts)}) > 2
    numbers = ["".join(re.findall(r"\d+", text)) or "3" for text in answers_of(source, 12)[5:]]
    rows = [{"prompt": f"Say {i}", "answer": answer} for i, answer in enumerate(texts + numbers)]
    write_jsonl(root / "asked.jsonl", rows)


def config_of(root: Path, cell: Cell) -> Config:
    processes, asked = PROCESSES[cell.strategy], {"path": str(root / "asked.jsonl")}
    pair = (root / f"{role}-{cell.model}".strip("-") for role in ("target", "source"))
    config = basic(root / cell.name, *pair, root / "d.jsonl")
    sets = {"kept": asked | {"limit": 5, "role": "keep"}, "lost": asked | {"skip": 5, "role": "recover"}}
    config["data"] |= {
        "abilities": {"d": {"path": str(root / "d.jsonl"), "limit": 13}} | sets,
        "train": ["d"],
        "validation": ["kept", "lost"],
        "evaluations": {
            "kept": sets["kept"] | {"max_new_tokens": 12},
            "lost": sets["lost"] | {"max_new_tokens": 12, "kind": "number"},
        },
        "tokens_per_batch": 40,
    }
    config["model"]["learning_rate"] = float(cell.rate or 1e-3)
    if cell.model:
        config["model"]["router_aux_loss_coef"] = 0.1
    config["profile"] |= {"tokens_per_batch": 100, "placement": cell.placement}
    config["transfer"] |= {"selection": cell.selection, "method": cell.method}
    config["trainer"] |= {
        "devices": processes,
        "strategy": strategy_of(cell.strategy.partition("-")[0], processes) if processes > 1 else "auto",
        "accumulate_grad_batches": MICRO_BATCHES // processes,
    }
    if cell.callback:
        home = "act_lightning" if cell.callback in callbacks.__all__ else "lightning.pytorch"
        arguments = CALLBACKS[cell.callback]
        if cell.callback == "FisherInformation":
            arguments = {"sources": config["profile"]["sources"]}
        config["trainer"]["callbacks"] = [{"class_path": f"{home}.callbacks.{cell.callback}", "init_args": arguments}]
    if cell.verb == "sweep":
        config["sweep"] = {"scales": [0.4, 0.8], "ratios": [0.1], "methods": ["act", "weight"]}
    if cell.verb == "causes":
        config["causes"] = {"samples": 7, "repeats": 1}
    return config


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of all cells, and of one process beside them."""
    return run_cells(tmp_path_factory.mktemp("matrix"), CELLS)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the cells with a mixture of experts."""
    return run_cells(tmp_path_factory.mktemp("mixtures"), MIXTURES)


def run_cells(root: Path, cells: Sequence[Cell]) -> Path:
    prepare(root)
    pending = []
    for cell in dict.fromkeys(cell for each in cells for cell in (each.alone, each)):
        (root / cell.name).mkdir()
        write_yaml(root / cell.name / "config.yaml", config_of(root, cell))
        pending.append((str(root / cell.name), cell.verb, PROCESSES[cell.strategy]))
    (root / "cells.json").write_text(json.dumps(pending))
    call_program(PROGRAMS / "cells.py", root / "cells.json", seconds=3600)
    return root


def refusal(folder: Path) -> str:
    """The message by which every process has refused a run; nothing if every process has ended well."""
    statuses = json.loads((folder / "outcome.json").read_text())["statuses"]
    outputs = [file.read_text(errors="replace") for file in sorted(folder.glob("rank-*.txt"))]
    messages = {re.sub(r"^.*?^error: ", "", text, flags=re.DOTALL | re.MULTILINE) for text in outputs}
    if len({*statuses}) > 1 or not {*statuses} <= {0, 1} or (1 in statuses and len(messages) > 1):
        pytest.fail("\n".join([str(statuses), *(text[-3000:] for text in outputs)]))
    return messages.pop() if 1 in statuses else ""


def files_of(run: Path) -> dict[str, Path]:
    """What is compared: all but checkpoints, figures, logs of times, hashes, and texts with the run's own settings."""
    found = {str(file.relative_to(run)): file for file in run.rglob("*") if file.is_file()}
    skipped = re.compile(r"/(checkpoints|report)/|/events\.|journal|(README\.md|\.act_lightning\.json|\.yaml)$")
    return {name: file for name, file in found.items() if not skipped.search("/" + name)}


def assert_equal_values(found: Any, expected: Any, where: str) -> None:
    """The same, but for times; and for the last digits of numbers that processes sum up in another order."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            if not name.startswith("seconds") and name != "digest":  # of trained weights, last digits and all
                assert_equal_values(found[name], value, f"{where}: {name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            assert_equal_values(found[i], value, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True), where
    else:
        assert found == expected, where


def values_of(file: Path) -> Any:
    """The content of a JSON, JSONL or CSV file; of any other its text."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return json.loads(text)
    if file.suffix == ".jsonl":
        return list(map(json.loads, text.splitlines()))
    if file.suffix == ".csv":
        rows = [{name: as_number(value) for name, value in row.items()} for row in csv.DictReader(text.splitlines())]
        return rows if file.name != "metrics.csv" else [values for row in rows if (values := of_all_processes(row))]
    return text


def of_all_processes(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of logged values without those of the logging process alone: its speed, memory and batches."""
    own = ("train/", "validate/")
    values = {name: value for name, value in row.items() if value != "" and not name.startswith(own)}
    return values if values.keys() - {"epoch", "step"} else {}


def as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def assert_equal_files(found: Path, expected: Path, bits: bool) -> None:
    if expected.suffix != ".safetensors":
        return assert_equal_values(values_of(found), values_of(expected), str(found))
    tensors, others = load_file(expected), load_file(found)
    assert others.keys() == tensors.keys()
    if bits:
        return assert_same_bits(others, tensors)
    tolerance = 1e-6 if "scores" in expected.parts else 1e-5
    for name, values in tensors.items():
        if values.dtype != torch.bfloat16:
            torch.testing.assert_close(others[name], values, rtol=1e-6, atol=tolerance)
            continue
        # Last digits that differ take few values, those on a border, to the other side when an export rounds them.
        torch.testing.assert_close(others[name], values, rtol=torch.finfo(values.dtype).eps, atol=tolerance)
        assert (others[name] != values).sum() <= 1 + values.numel() // 1000


def test_every_callback_is_tried() -> None:
    in_every_fit = "AbilitySource ActivationDifferenceProfiler FailTogether LoopProgress MaskedTaskVectorInjection"
    assert {*callbacks.__all__} <= {*CALLBACKS, *in_every_fit.split()}


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_cell(cell: Cell, matrix: Path) -> None:
    """To the bit where processes sum nothing up: scores by weights alone; and what is merged, or injected and stays.

    Fisher information is a sum over processes, so that of a merge by it the last digits differ.
    """
    check_cell(cell, matrix)


@pytest.mark.slow
@pytest.mark.parametrize("cell", MIXTURES, ids=lambda cell: cell.name)
def test_cell_with_experts(cell: Cell, mixtures: Path) -> None:
    """The same, of packed experts that the hub stores one by one, fine-tuned with the loss that balances them."""
    check_cell(cell, mixtures)


def check_cell(cell: Cell, matrix: Path) -> None:
    alone, together = matrix / cell.alone.name, matrix / cell.name
    for (value, strategy), reason in REFUSALS.items():
        if value in astuple(cell) and cell.strategy.startswith(strategy):
            assert reason in refusal(together)
            return
    refused = refusal(alone)
    assert refusal(together) == refused.replace(str(alone), str(together))
    if refused:
        return
    expected, found = files_of(alone / "run"), files_of(together / "run")
    assert found.keys() == expected.keys()
    exact = ["scores/"] * cell.selection.startswith("weight")
    if cell.method != "fisher":
        exact += ["merged/"] + ["model/"] * (cell.rate == STILL)
    for name, file in expected.items():
        assert_equal_files(found[name], file, bits=name.startswith(tuple(exact)))
