"""Leaves out one move to the device at a time, and runs a scenario of ``compare`` on the device, which must notice.

    python -m tests.standin.mutants FOLDER

Writes ``FOLDER/<number>.json``. No file of the package is changed: each fault is put into the source that a child
process imports.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch  # noqa: F401 - so that children need not import it

from tests.standin.compare import run_steps
from tests.standin.records import PACKAGE, record_host_linears
from tests.standin.scenarios import SCENARIOS, write_models
from tests.standin.trainer import changed_source, cuda_as_standin, trainers_on_standin


class Mutant(NamedTuple):
    """A fault: in a module of the package ``old`` becomes ``new``, and the scenario must fail."""

    module: str
    old: str
    new: str
    scenario: str


MUTANTS = (
    Mutant("analysis.activation_patching", ".float64, device=device) for", ".float64) for", "causes"),
    Mutant("callbacks.answer_evaluation", ", back_on_device(trainer)", "", "resume what is complete"),
    Mutant("checkpoints.models", ', torch.device("cpu"):', ":", "validate"),
    Mutant("data.batches", "to_device(self.index, device)", "self.index", "profile resident"),
    Mutant("evaluation.evaluator", 'batch["labels"].to(model.device)', 'batch["labels"]', "fit with comparison"),
    Mutant("evaluation.generation", "(values.to(model.device) for values in", "(values for values in", "predict"),
    Mutant("merging.della", "size.shape[1], device=size.device)", "size.shape[1])", "inject della"),
    Mutant("merging.magnitudes", ", device=v.delta.device)", ")", "inject ties"),
    Mutant("merging.method", "self.rows.to(device)", "self.rows", "inject dare"),
    Mutant("merging.sparsify", "shape[1:].numel(), device=device)", "shape[1:].numel())", "inject dare"),
    Mutant("profiling.gradients", "return total.cpu(), tokens.cpu()", "return total, tokens", "select attribution"),
    Mutant(
        "profiling.gradients",
        "batch_to_device(collate([sample], 0), model.device)",
        "collate([sample], 0)",
        "inject fisher",
    ),
    Mutant(
        "profiling.layerwise",
        "partial(to_device, device=self._device), self._state",
        "lambda values: values, self._state",
        "profile layerwise",
    ),
    Mutant(
        "profiling.offload",
        "parameter.data = to_device(values, self._device)",
        "parameter.data = values",
        "profile offload",
    ),
    Mutant("profiling.pair", "name: to_device(values, device) for", "name: values for", "profile resident"),
    Mutant(
        "training.loss",
        "total = torch.zeros((), dtype=torch.float32, device=hidden.device)",
        "total = torch.zeros(())",
        "fit padded",
    ),
    Mutant(
        "training.loss",
        "loss = torch.zeros((), dtype=torch.float32, device=hidden.device)",
        "loss = torch.zeros(())",
        "validate",
    ),
    Mutant("transfer.injection", "mask.to(target.device)", "mask", "inject task_arithmetic"),
    Mutant(
        "transfer.injection",
        "rows(name, numbers[index]).to(target.device)",
        "rows(name, numbers[index])",
        "inject task_arithmetic",
    ),
    Mutant(
        "transfer.injection",
        "reader.rows(name, numbers).to(target.device)",
        "reader.rows(name, numbers)",
        "inject ties",
    ),
)


def run_mutant(number: int, models: Path, folder: Path) -> None:
    """Run a fault's scenario on the device, and write how often its place was found, and what came of it."""
    mutant, places = MUTANTS[number], 0

    def change(module: str, source: str) -> str:
        nonlocal places
        if module == f"{PACKAGE}.{mutant.module}":
            places = source.count(mutant.old)
            source = source.replace(mutant.old, mutant.new)
        return cuda_as_standin(module, source)

    with changed_source(change), record_host_linears() as linears:
        error = run_steps(SCENARIOS[mutant.scenario], models, folder / str(number), trainers_on_standin())
    result = {"mutant": mutant, "places": places, "error": error, "linears": list(linears)}
    (folder / f"{number}.json").write_text(json.dumps(result, indent=1))


def main(folder: Path) -> None:
    """Run all of them, each in a process of its own, which begins with the libraries that this one has imported."""
    os.environ["ACT_LIGHTNING_CACHE"] = str(folder / "cache")
    write_models(folder / "models")
    for number in range(len(MUTANTS)):
        child = multiprocessing.get_context("fork").Process(target=run_mutant, args=(number, folder / "models", folder))
        child.start()
        child.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
