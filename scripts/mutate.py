#!/usr/bin/env python3
"""Do the tests notice when the algorithm is wrong? Seeds one fault at a time and runs the tests that must fail.

    python scripts/mutate.py [number …]        by default all; takes about ten minutes

Works on a copy of the checkout. A fault that survives, or whose place in the code is gone, ends with status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """A fault: in a file of the package, the first ``old`` becomes ``new``; one of the tests must fail."""

    what: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = (
    # scores
    Fault("differences keep their sign", "scorers/activation.py", ".abs_()", "", "tests/profiling/test_pair.py"),
    Fault(
        "a token in each block is left out",
        "profiling/channel_means.py",
        "slice(start, start + step)",
        "slice(start, start + max(1, step - 1))",
        "tests/profiling/test_pair.py",
    ),
    Fault("prompt tokens count", "profiling/pair.py", "!= IGNORED", "!= IGNORED - 1", "tests/profiling/test_pair.py"),
    Fault(
        "the packed row's first token is an answer token",
        "training/loss.py",
        "!= 0",
        ">= 0",
        "tests/training/test_loss.py tests/training/test_finetuning.py",
    ),
    # masks
    Fault(
        "p is a binary fraction",
        "masks.py",
        "int(count * Fraction(str(ratio)))",
        "int(count * float(ratio))",
        "tests/test_masks.py",
    ),
    Fault(
        "ties go to the higher channel",
        "masks.py",
        "tied[: k - above.numel()]",
        "tied.flip(0)[: k - above.numel()]",
        "tests/test_masks.py",
    ),
    Fault(
        "excluded channels are counted",
        "masks.py",
        "ratio_count(numbers.numel(), ratio)",
        "ratio_count(scores.numel(), ratio)",
        "tests/test_masks.py",
    ),
    Fault(
        "masks of abilities intersect",
        "masks.py",
        "torch.stack(list(masks)).any(0)",
        "torch.stack(list(masks)).all(0)",
        "tests/test_masks.py tests/transfer",
    ),
    Fault("a tied element counts twice", "masks.py", "spent -= ", "spent -= 0 * ", "tests/test_masks.py"),
    # injection
    Fault(
        "λ is left out",
        "merging/arithmetic.py",
        "vector.restricted() * vector.weight",
        "vector.restricted()",
        "tests/merging/test_arithmetic.py",
    ),
    Fault(
        "the task vector is the source",
        "transfer/injection.py",
        "values - target[on_device]",
        "values",
        "tests/transfer",
    ),
    Fault(
        "columns of the embedding stay",
        "transfer/injection.py",
        "by_row.view(as_column) | columns",
        "by_row.view(as_column)",
        "tests/transfer",
    ),
    Fault(
        "the sum is rounded to the target's dtype before it is added",
        "merging/method.py",
        "target.float() + change",
        "target.float() + change.to(target.dtype)",
        "tests/transfer",
    ),
    Fault(
        "sources' rows are not matched by token",
        "transfer/injection.py",
        "vocabulary.rows[rows]",
        "rows",
        "tests/transfer",
    ),
    Fault("TIES divides by the number of sources", "merging/ties.py", "alpha=weight", "alpha=1.0", "tests/merging"),
    # loss
    Fault(
        "labels are not shifted",
        "training/loss.py",
        'batch["labels"][:, 1:]',
        'batch["labels"][:, :-1]',
        "tests/training/test_loss.py tests/training/test_finetuning.py",
    ),
    Fault(
        "chunks of logits are averaged",
        "training/loss.py",
        'cross_entropy(logits(leaf).float(), row_targets, reduction="sum")',
        "cross_entropy(logits(leaf).float(), row_targets)",
        "tests/training/test_loss.py",
    ),
    Fault(
        "an update divides by micro-batches",
        "module.py",
        "self._tokens += tokens",
        "self._tokens += 1",
        "tests/training/test_finetuning.py",
    ),
    # sharding
    Fault(
        "every process writes the first rows",
        "training/sharding.py",
        "offset[0] if offset else 0",
        "0",
        "tests/training/test_fsdp2.py",
    ),
    Fault(
        "sums of processes are not added",
        "profiling/channel_means.py",
        'dist_reduce_fx="sum"',
        'dist_reduce_fx="max"',
        "tests/training/test_processes.py",
    ),
    Fault(
        "a process drops its last batch",
        "data/loaders.py",
        "batches[rank::world_size]",
        "batches[rank::world_size][:-1]",
        "tests/data",
    ),
    Fault(
        "draws depend on where a shard begins",
        "merging/sparsify.py",
        "tensor_slice.row_numbers(shape[0], device)",
        "torch.arange(shape[0], device=device)",
        "tests/merging",
    ),
)


def survives(fault: Fault) -> str | None:
    """What is wrong with the tests, or with the fault itself; ``None`` if a test fails as it must."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(
            ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__")
        )
        file = copy / "act_lightning" / fault.file
        text = file.read_text(encoding="utf-8")
        if fault.old not in text:
            return f"{fault.file} no longer holds {fault.old!r}"
        file.write_text(text.replace(fault.old, fault.new, 1), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *fault.tests.split()]
        alone = {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=os.environ | alone, capture_output=True, text=True, check=False)
        return None if done.returncode == 1 else f"pytest ended with {done.returncode}: {done.stdout[-300:]}"


def main() -> int:
    """Seed the faults that are named by number, by default all."""
    chosen = [int(number) for number in sys.argv[1:]] or range(1, len(FAULTS) + 1)
    survivors = 0
    for number in chosen:
        problem = survives(FAULTS[number - 1])
        survivors += problem is not None
        print(f"{number:2d}. {FAULTS[number - 1].what}: {'caught' if problem is None else problem}", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
