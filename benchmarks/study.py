"""The study: what each way of choosing channels recovers, and at what cost, over laboratories, pairs and seeds.

    python -m benchmarks.study run --part tiny --minutes 55          # goes on where it stopped
    python -m benchmarks.study run --part smollm2 --minutes 55
    python -m benchmarks.study tables                                # from the committed rows alone

Everything below was decided before results were looked at, and is not changed afterwards.

*Pairs.* A *source* has two abilities. Its sibling, the *target*, was trained on one of them, to *keep*, and forgot the
other, to *recover*. Part ``tiny``: three laboratories of five seeds each. Part ``smollm2``: three pairs of abilities on
SmolLM2-135M, each with a target that forgot in part and one that forgot nearly all, of three seeds each
(``benchmarks/smollm2.py``).

*Splits.* Samples for scores and fine-tuning come from what the models were trained on; validation and test items are
disjoint from them and from each other. Choices are made on validation only. What is reported is measured on 400 + 400
test items. An item counts when greedy decoding would give exactly the reference and end the turn. The laboratory holds
out 460 pairs of summands; both orders of 200 are test, of all others validation.

*Methods.* Entries of ``METHODS``. p is a share of the parameters for all, so that methods are compared at equal cost;
of TIES and DARE it is the density.

*Choice of λ and p.* Of the method's grid, the point with the best recover among those whose keep is at most one point
below the target's; of equal ones the one that moves fewer parameters, then the smaller λ. If no point keeps, that is
reported as *none keeps*, and the point with the best keep stands for the method.

*Fine-tuning.* One epoch, an update every 16 samples, on the first n = 64 or 480 samples of the ability to recover and
always 160 of the one to keep. Scores for it are measured on the same n samples; transfer alone (n = 0) uses 480. The
learning rate is the best one of *fine-tuning alone*, by the rule above, and is used for every method, which favors
fine-tuning alone. Fine-tuning repairs some of what a transfer costs, so two points are fine-tuned: the one chosen
above, and the one with the best recover among those whose keep is at most ten points below the target's. By
validation after fine-tuning, the rule above chooses between both. Part ``smollm2`` fine-tunes the first only, and not
after every method.

*Intervals.* 95 %, from 2,000 paired bootstrap draws: seeds with replacement within each pair, and items, the same for
all seeds, since these have the same items; both orders of a sum together; the same draws for all methods.

*A first design* was given up after 1 of 15 laboratories, and its rows were deleted: it validated on 60 pairs of
summands, and most methods lost 2 to 7 points of keep on test at points that lost none on these.

A row of ``benchmarks/study/<part>.csv`` is one model on one split: counts, and for test the outcome of every item as
a bit, the first item in the highest. Rows are appended as they are measured, so that a run may be killed at any time.
Several processes may run one part: each takes a pair that no other is working on.
"""

from __future__ import annotations

import argparse
import copy
import csv
import fcntl
import hashlib
import io
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.evaluation.evaluator import score_model
from act_lightning.lab import abilities as lab_abilities
from act_lightning.lab.models import Recipe, model_folder
from act_lightning.lab.training import Stage
from act_lightning.merging import DARE, TIES
from act_lightning.merging.method import MergingMethod
from act_lightning.module import AbilityTransferModule
from act_lightning.profiling.measurement import find_target
from act_lightning.scorers import Attribution, Scorer, recorded_scorer
from act_lightning.scores import scores_folder
from act_lightning.sweep.runner import Stopwatch, apply_and_revert
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan, prepare
from act_lightning.transfer.settings import AbilitySource, TransferSettings
from benchmarks import smollm2

FOLDER = Path("benchmarks/study")  # rows, tables and figure
WORK = Path("runs/study")  # models, scores and samples, which can be made again

TARGET, SOURCE, ALONE = "target", "source", "fine-tuning alone"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
KEEP, RECOVER = ROLES = ("keep", "recover")

TEST_PAIRS = 200  # of summands: the laboratory holds out 460, of which 8 or so are twice the same number
SCORED_SAMPLES, KEEP_SAMPLES = 480, 160
TUNED_SAMPLES = (64, 480)
SAMPLES_AN_UPDATE = 16
KEEPS, REPAIRABLE = 0.01, 0.10  # how far keep may fall, transferred for good and before fine-tuning

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Row:
    """One model on one split; everything before ``share`` identifies it.

    Attributes:
        scale: λ; 0 without a transfer.
        ratio: p; 1 where all parameters may move, 0 without a transfer.
        samples: Samples of the ability that it was fine-tuned on.
        learning_rate: Of the fine-tuning; 0 without one.
        share: Share of the parameters that the transfer may change.
        keep: Correct items of the ability to keep.
        keep_bits: Their outcomes, hexadecimal.
        weights: Digest of source and target, so that rows of other models are noticed.
        seconds: Time that it took.
    """

    pair: str
    seed: int
    method: str
    scale: float
    ratio: float
    samples: int
    learning_rate: float
    split: str
    share: float
    keep: int
    keep_items: int
    recover: int
    recover_items: int
    keep_bits: str
    recover_bits: str
    weights: str
    seconds: float

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies it."""
        return self.pair, self.seed, self.method, self.scale, self.ratio, self.samples, self.learning_rate, self.split

    @property
    def keep_share(self) -> float:
        """Accuracy of the ability to keep."""
        return self.keep / self.keep_items

    @property
    def recover_share(self) -> float:
        """Accuracy of the ability to recover."""
        return self.recover / self.recover_items


_CONVERSIONS: Mapping[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}


class Table:
    """The rows of a part, in a CSV file to which several processes append.

    Args:
        path: The file; its header is written if it is not there. A last line that a killed process has not completed is
            cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._locked() as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            if not content:
                self._append(file, [[item.name for item in fields(Row)]])
        self.rows = read_rows(path)

    def append(self, *rows: Row) -> None:
        """Write rows together, or none of them."""
        with self._locked() as file:
            self._append(file, [list(asdict(row).values()) for row in rows])
        self.rows += rows

    @contextmanager
    def _locked(self) -> Iterator[io.BufferedRandom]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file

    @staticmethod
    def _append(file: io.BufferedRandom, lines: Sequence[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """The rows of a part's CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(**{item.name: _CONVERSIONS[str(item.type)](line[item.name]) for item in fields(Row)})
            for line in csv.DictReader(file)
        ]


@dataclass(frozen=True)
class Pair:
    """Source and target on disk, and where their samples come from.

    Attributes:
        name: The laboratory, or the abilities and how much was forgotten.
        rows: Rows with ``prompt`` and ``answer``, by role and split.
    """

    name: str
    seed: int
    source: Path
    target: Path
    rows: Mapping[str, Mapping[str, Rows]]


class Point(NamedTuple):
    """λ and p."""

    scale: float
    ratio: float


@dataclass(frozen=True)
class Method:
    """How channels are selected and merged: an entry of ``METHODS``.

    Attributes:
        selection: As ``transfer.selection``; the samples of both roles are the abilities ``keep`` and ``recover``.
        exclude: As ``transfer.exclude``.
        merging: The merging method at a density p, with all channels; by default task arithmetic with a mask.
        dense: Whether everything moves, so that only λ is chosen.
        prepare: Makes the transfer of a point in some other way, from scores measured on that many samples.
    """

    selection: str | Scorer = "all"
    exclude: Sequence[str] = ()
    merging: Callable[[float], MergingMethod] | None = None
    dense: bool = False
    prepare: Callable[[Bench, Point, int], PreparedTransfer] | None = None

    def grid(self, part: Part) -> list[Point]:
        """All points that are tried."""
        if self.dense:
            return [Point(scale, 1.0) for scale in part.dense_scales]
        ratios = part.densities if self.merging else part.ratios
        return [Point(scale, ratio) for ratio in ratios for scale in part.scales]


METHODS: dict[str, Method] = {
    "task arithmetic": Method(dense=True),
    "TIES": Method(merging=lambda density: TIES(density=density)),
    "DARE": Method(merging=lambda density: DARE(density=density)),
    "random": Method("random"),
    "ACT": Method("activation"),
    "ACT without head": Method("activation", exclude=["lm_head", "model.embed_tokens"]),
    "activation_relative": Method("activation_relative"),
    "local": Method("local"),
    "weight": Method("weight"),
    "weight_rms": Method("weight_rms"),
    "attribution": Method("attribution"),
    "attribution, keep": Method(Attribution(keep=[KEEP], penalty=4.0)),
}
"""Every method by its name in the tables; a rule that is to be compared is one more entry, below ``BASELINES``."""
BASELINES = tuple(METHODS)
"""What a run must have to be in the tables; any other method is shown once all these runs have it."""


@dataclass(frozen=True)
class Part:
    """One half of the study.

    Attributes:
        pairs: Makes a pair by name, from a seed, in a folder for what can be made again.
        learning_rates: Among which fine-tuning alone chooses.
        tuned_methods: Methods that are fine-tuned, too.
        tuned_points: How far keep may fall at the points that are fine-tuned.
        keep_group: Items to keep that are drawn together, such as both orders of a sum.
    """

    pairs: Mapping[str, Callable[[int, Path], Pair]]
    seeds: Sequence[int]
    learning_rates: Sequence[float]
    scales: Sequence[float] = (0.3, 0.5, 0.7, 1.0)
    dense_scales: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ratios: Sequence[float] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.3)
    densities: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8)
    methods: Sequence[str] = tuple(METHODS)
    tuned_methods: Sequence[str] = tuple(METHODS)
    tuned_samples: Sequence[int] = TUNED_SAMPLES
    tuned_points: Sequence[float] = (KEEPS, REPAIRABLE)
    keep_group: int = 1
    threads: int = 1


def laboratory(recipe: Recipe, name: str, seed: int, folder: Path) -> Pair:
    """A laboratory with another seed, and its questions; of sums, both orders of the held-out pairs of summands."""
    recipe = replace(recipe, seed=seed)
    held_out = [row for split in (TEST, VALIDATION) for row in lab_abilities.rows("arithmetic", split)]
    in_both_orders = []
    for row in held_out:
        first, second = row["prompt"].removesuffix(" =").split(" + ")
        if first != second:
            in_both_orders.append([{**row, "prompt": f"{a} + {b} ="} for a, b in ((first, second), (second, first))])
    words = {split: lab_abilities.rows("words", split) for split in lab_abilities.SPLITS}
    sums = {
        TRAIN: lab_abilities.rows("arithmetic"),
        TEST: [row for rows in in_both_orders[:TEST_PAIRS] for row in rows],
        VALIDATION: [row for rows in in_both_orders[TEST_PAIRS:] for row in rows],
    }
    rows = {KEEP: sums, RECOVER: words | {TEST: words[TEST][: len(sums[TEST])]}}
    return Pair(name, seed, model_folder("generalist", recipe), model_folder("specialist", recipe), rows)


STAGES = {
    "base": Stage(1200, 32, 3e-3, 0.5, whole_text=True),
    "generalist": Stage(240, 32, 1.5e-3, 0.25),
    "specialist": Stage(300, 32, 8e-4, 1.0),
}
LABORATORIES = {
    "lab": Recipe(),
    # in the shape that the laboratory once had: its head has 17 % of the channels, which crowd out the rest
    "shallow": Recipe(vocabulary=512, hidden_size=64, layers=3, **STAGES),
    "deep": Recipe(vocabulary=300, hidden_size=64, layers=8, **STAGES),
}


def smollm2_pair(abilities: str, forgotten: str, seed: int, folder: Path) -> Pair:
    """Siblings of SmolLM2-135M: all pairs of a seed share the source."""
    source, targets = smollm2.make_siblings(abilities, seed, folder.parent / "models")
    recover, keep = smollm2.PAIRS[abilities]
    to_recover = smollm2.rows(recover)
    to_recover = to_recover | {VALIDATION: to_recover[VALIDATION][:100]}  # keep is what has to be known to a point
    rows = {KEEP: smollm2.rows(keep), RECOVER: to_recover}
    return Pair(f"{abilities}, {forgotten}", seed, source, targets / forgotten, rows)


PARTS: dict[str, Part] = {
    "tiny": Part(
        pairs={name: partial(laboratory, recipe, name) for name, recipe in LABORATORIES.items()},
        seeds=range(5),
        learning_rates=(1e-4, 3e-4, 1e-3),
        keep_group=2,
    ),
    "smollm2": Part(  # 14 hours of two cores
        pairs={
            f"{abilities}, {forgotten}": partial(smollm2_pair, abilities, forgotten)
            for abilities in smollm2.PAIRS
            for forgotten in smollm2.FORGOTTEN
        },
        seeds=smollm2.SEEDS,
        learning_rates=(2e-5, 1e-4),
        scales=(0.5, 1.0),
        dense_scales=(0.3, 0.5, 0.7),
        ratios=(0.01, 0.1),
        densities=(0.2,),
        tuned_methods=(
            "task arithmetic",
            "random",
            "ACT",
            "ACT without head",
            "attribution",
            "attribution, keep",
        ),
        tuned_points=(KEEPS,),
        threads=2,
    ),
}

_SILENT: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


class Step(NamedTuple):
    """What is measured at once: one row for each split."""

    method: str
    point: Point = Point(0.0, 0.0)
    samples: int = 0
    learning_rate: float = 0.0
    splits: tuple[str, ...] = (VALIDATION,)

    def keys(self, pair: str, seed: int) -> list[tuple[object, ...]]:
        """The rows that it gives."""
        return [
            (pair, seed, self.method, *self.point, self.samples, self.learning_rate, split) for split in self.splits
        ]


class Bench:
    """One pair, loaded once: makes transfers, fine-tunes and evaluates in memory.

    Attributes:
        model: The target, unchanged between measurements.
        weights: Digest of source and target.
    """

    def __init__(self, part: Part, pair: Pair, folder: Path) -> None:
        self.part, self.pair, self.folder = part, pair, folder
        for role, splits in pair.rows.items():
            for split, rows in splits.items():
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (folder / f"{role}-{split}.jsonl").write_text(text, encoding="utf-8")
        target = find_target(AbilityTransferModule(str(pair.target)), None, None)
        source = find_target(AbilityTransferModule(str(pair.source)), None, None)
        self.channels, self.digests = target.inventory(), target.digests()
        self.weights = hashlib.sha256("".join([*self.digests, *source.digests()]).encode()).hexdigest()[:8]
        self.model = load_on_device(pair.target, torch.float32, torch.device("cpu"))
        self.score_root = cache(self._score_root)
        self.select = cache(self._select)
        self.evaluation_data = cache(self._evaluation_data)
        self.training_data = cache(self._training_data)

    def _data(self, **settings: Any) -> AbilityDataModule:
        return AbilityDataModule(
            target=str(self.pair.target),
            batch_size=SAMPLES_AN_UPDATE,
            cache_dir=str(self.folder / "tokens"),
            num_proc=1,
            **settings,
        )

    def _evaluation_data(self, split: str) -> AbilityDataModule:
        paths = {role: str(self.folder / f"{role}-{split}.jsonl") for role in ROLES}
        data = self._data(evaluations={role: EvaluationData(path, role=role) for role, path in paths.items()})
        data.setup("test")
        return data

    def _training_data(self, samples: int) -> AbilityDataModule:
        limits = {RECOVER: samples, KEEP: KEEP_SAMPLES}
        paths = {role: str(self.folder / f"{role}-train.jsonl") for role in limits}
        return self._data(abilities={role: AbilityData(paths[role], limit=limit) for role, limit in limits.items()})

    def _score_root(self, scorer: Scorer, samples: int) -> Path:
        """The folder below which a scorer's scores on some samples are, measured unless they are there."""
        digest = hashlib.sha256(recorded_scorer(scorer.record()).encode()).hexdigest()[:8]
        root = self.folder / "scores" / f"{scorer.label}-{digest}-{samples}"
        module = AbilityTransferModule(str(self.pair.target))
        trainer = L.Trainer(accelerator="cpu", devices=1, default_root_dir=root, **_SILENT)
        trainer.strategy.setup_environment()
        profiler = ActivationDifferenceProfiler([self.source], tokens_per_batch=2048)
        profiler.profile(trainer, module, self.training_data(samples), TransferSettings(selection=scorer))
        return scores_folder(root, scorer)

    @property
    def source(self) -> AbilitySource:
        """The source and what is to be recovered from it."""
        return AbilitySource(str(self.pair.source), [RECOVER], name="source")

    def transfer(self, method: str, point: Point, samples: int) -> PreparedTransfer:
        """The transfer of a point, ready to be applied, by scores on ``samples`` samples."""
        make = METHODS[method].prepare
        if make is not None:
            return make(self, point, samples)
        selected = self.select(method, point.ratio, samples)
        sources = [replace(source, scale=point.scale) for source in selected.sources]
        return replace(selected, sources=sources, scale=point.scale)

    def _select(self, name: str, ratio: float, samples: int) -> PreparedTransfer:
        """The transfer of a method at λ = 1."""
        method = METHODS[name]
        selection = TransferSettings(ratio, "parameters", 1.0, method.selection, exclude=method.exclude)
        if method.merging is not None or method.dense:
            selection = replace(selection, ratio=1.0, share="channels")
        if method.merging is not None:
            selection = replace(selection, method=method.merging(ratio))
        scorer = selection.scorer
        scores = None if scorer is None else self.score_root(scorer, samples)
        target, seed = self.pair.target, self.pair.seed
        return prepare(TransferPlan(selection, [self.source], self.channels, self.digests, seed, target, scores))

    def measure(self, step: Step) -> list[Row]:
        """Transfer if there is a λ, fine-tune if there are samples for it, and evaluate; the target stays as it is."""
        method, point, samples, learning_rate, splits = step
        start, share = time.perf_counter(), 0.0
        with ExitStack() as stack:
            model = self.model
            if method == SOURCE:
                model = load_on_device(self.pair.source, torch.float32, torch.device("cpu"))
            if point.scale:
                transfer = self.transfer(method, point, samples or SCORED_SAMPLES)
                share = transfer.parameter_share * (point.ratio if METHODS[method].merging else 1.0)
                stack.enter_context(apply_and_revert(model, lambda: transfer, Stopwatch(torch.device("cpu"))))
            if samples:
                model = self._fine_tuned(model, samples, learning_rate)
            digits = {split: score_model(self.evaluation_data(split), model, 2048).digits for split in splits}
        seconds = round((time.perf_counter() - start) / len(splits), 2)
        return [
            Row(
                self.pair.name, self.pair.seed, method, point.scale, point.ratio, samples, learning_rate, split,
                round(share, 5), *_counts(digits[split][KEEP]), *_counts(digits[split][RECOVER]),
                *(_bits(digits[split][role]) if split == TEST else "" for role in ROLES), self.weights, seconds,
            )
            for split in splits
        ]  # fmt: skip

    def _fine_tuned(self, model: PreTrainedModel, samples: int, learning_rate: float) -> PreTrainedModel:
        """A copy that was fine-tuned as ``fit`` does it."""
        module = AbilityTransferModule(str(self.pair.target), learning_rate=learning_rate)
        module.model = copy.deepcopy(model).train()
        L.seed_everything(self.pair.seed, verbose=False)
        settings = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1}
        trainer = L.Trainer(default_root_dir=self.folder, **settings, **_SILENT)
        trainer.fit(module, datamodule=self.training_data(samples))
        return module.model


def _counts(digits: str) -> tuple[int, int]:
    return digits.count("1"), len(digits)


def _bits(digits: str) -> str:
    return f"{int(digits, 2):0{-(-len(digits) // 4)}x}"


class Choice(NamedTuple):
    """The row that stands for a method, and whether its keep is within a point of the target's."""

    row: Row
    keeps: bool


def choose(rows: Sequence[Row], target: Row, tolerance: float = KEEPS) -> Choice:
    """The best recover among validation rows that keep; if none does, the best keep (see the module's docstring)."""
    keeping = [row for row in rows if row.keep_share >= target.keep_share - tolerance - 1e-9]
    if not keeping:
        return Choice(min(rows, key=lambda row: (-row.keep_share, -row.recover_share, row.share, row.scale)), False)
    return Choice(min(keeping, key=lambda row: (-row.recover_share, row.share, row.scale)), True)


def steps(part: Part, rows: Callable[[], Sequence[Row]]) -> Iterator[Step]:
    """All that is measured of a pair, in order; ``rows`` gives those so far, from which points are chosen."""
    both = (VALIDATION, TEST)
    yield Step(TARGET, splits=both)
    yield Step(SOURCE, splits=both)
    for samples in part.tuned_samples:
        for rate in part.learning_rates:
            yield Step(ALONE, Point(0.0, 0.0), samples, rate, both)
    for method in part.methods:
        for point in METHODS[method].grid(part):
            yield Step(method, point)
        chosen = chosen_row(rows(), method).row
        yield Step(method, Point(chosen.scale, chosen.ratio), splits=(TEST,))
        for samples in part.tuned_samples if method in part.tuned_methods else ():
            rate = chosen_row(rows(), ALONE, samples).row.learning_rate
            for point in candidates(part, rows(), method):
                yield Step(method, point, samples, rate, both)


def of(rows: Sequence[Row], method: str, samples: int = 0, split: str = VALIDATION) -> list[Row]:
    """The rows of a method."""
    return [row for row in rows if (row.method, row.samples, row.split) == (method, samples, split)]


def chosen_row(rows: Sequence[Row], method: str, samples: int = 0) -> Choice:
    """The validation row that is chosen, among the rows of one pair and seed."""
    return choose(of(rows, method, samples), of(rows, TARGET)[0])


def candidates(part: Part, rows: Sequence[Row], method: str) -> list[Point]:
    """The points that are fine-tuned, each once."""
    before, target = of(rows, method), of(rows, TARGET)[0]
    chosen = [choose(before, target, tolerance).row for tolerance in part.tuned_points]
    return list(dict.fromkeys(Point(row.scale, row.ratio) for row in chosen))


def run(name: str, part: Part, folder: Path, work: Path, minutes: float, only: Sequence[str] = ()) -> bool:
    """Measure what is missing until the time is over; returns whether all is there.

    Raises:
        SystemExit: Rows of other models are in the table.
    """
    torch.set_num_threads(part.threads)
    warnings.filterwarnings("ignore", module="lightning")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    end, complete = time.monotonic() + 60 * minutes, True
    for seed in part.seeds:
        for pair_name in part.pairs if not only else only:
            pair_folder = work / name / f"{pair_name}-{seed}"
            pair_folder.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(pair_folder / ".lock", timeout=0):
                    table = Table(folder / f"{name}.csv")
                    print(f"{pair_name}, seed {seed}; {forecast(part, table.rows)}", flush=True)
                    if not _run_pair(part, pair_name, seed, pair_folder, table, end):
                        return False
            except Timeout:
                complete = False
                print(f"{pair_name}, seed {seed}: another process is working on it", flush=True)
    return complete


def _run_pair(part: Part, pair_name: str, seed: int, folder: Path, table: Table, end: float) -> bool:
    def rows() -> list[Row]:
        return [row for row in table.rows if (row.pair, row.seed) == (pair_name, seed)]

    bench: Bench | None = None
    for step in steps(part, rows):
        if {row.key for row in rows()}.issuperset(step.keys(pair_name, seed)):
            continue
        if time.monotonic() > end:
            return False
        if bench is None:
            bench = Bench(part, part.pairs[pair_name](seed, folder), folder)
            if strangers := {row.weights for row in rows()} - {bench.weights}:
                problem = f"{table.path} has rows of other models for {pair_name}, seed {seed}: {', '.join(strangers)}"
                raise SystemExit(f"{problem}. Delete them to measure it anew.")
        table.append(*bench.measure(step))
    return True


def forecast(part: Part, rows: Sequence[Row]) -> str:
    """How long the rest takes, by the median time of a row of each kind so far."""
    kinds: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        kinds.setdefault((row.samples, row.split), []).append(row.seconds)
    points = sum(len(METHODS[method].grid(part)) for method in part.methods)
    tuned = len(part.tuned_points) * len({*part.methods} & {*part.tuned_methods}) + len(part.learning_rates)
    expected = {(0, VALIDATION): points + 2, (0, TEST): len(part.methods) + 2}
    expected |= {(samples, split): tuned for samples in part.tuned_samples for split in (VALIDATION, TEST)}
    pairs, seconds = len(part.pairs) * len(part.seeds), 0.0
    for kind, number in expected.items():
        if kind not in kinds:
            return f"{len(rows)} rows so far"
        seconds += max(0, number * pairs - len(kinds[kind])) * statistics.median(kinds[kind])
    return f"{len(rows)} rows so far, at most {seconds / 3600:.1f} h of measuring left, without making models"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("run", help="measure what is missing")
    measuring.add_argument("--part", choices=PARTS, required=True)
    measuring.add_argument("--minutes", type=float, default=55.0)
    measuring.add_argument("--threads", type=int, help="by default as many as the part is forecast for")
    measuring.add_argument("--pairs", nargs="*", default=(), help="only these pairs of the part")
    verbs.add_parser("tables", help="make tables and figure from the rows")
    for command in verbs.choices.values():
        command.add_argument("--folder", type=Path, default=FOLDER, help="rows, tables and figure")
    measuring.add_argument("--work", type=Path, default=WORK, help="models, scores and samples")
    options = parser.parse_args()
    if options.verb == "tables":
        from benchmarks.study_tables import write_tables  # which imports this module

        print(write_tables(PARTS, options.folder))
        return
    part = PARTS[options.part]
    part = replace(part, threads=options.threads or part.threads)
    if not run(options.part, part, options.folder, options.work, options.minutes, options.pairs):
        print("not complete: run the same command again to go on")


if __name__ == "__main__":
    main()
