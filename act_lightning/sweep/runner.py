"""The run of a sweep: one model in memory on every process, to which points are applied, evaluated and reverted."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from act_lightning.analysis.report.page import require_report_folder
from act_lightning.channels import as_matrix
from act_lightning.checkpoints.lock import lock_output
from act_lightning.checkpoints.models import locate
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.checkpoints.weight_files import identify
from act_lightning.console import progress_bar
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError
from act_lightning.evaluation.evaluator import score_model
from act_lightning.profiling.measurement import Target
from act_lightning.scores import read_record, score_path, scores_folder
from act_lightning.sweep.results import Outcome, equal_points, reference_outcome
from act_lightning.sweep.study import Suggestion, TrialStore
from act_lightning.sweep.sweep_settings import ACT, UNMODIFIED, Point, SweepSettings, count_points, grid, has_ratio
from act_lightning.sweep.transfers import Transfers, read_recipe
from act_lightning.transfer.injection import Rounding
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan
from act_lightning.transfer.saved_fisher import FISHER_FOLDER
from act_lightning.transfer.settings import AbilitySource, TransferSettings

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Sweep:
    """Everything that a sweep is made of.

    Attributes:
        settings: Section ``sweep``, without issues.
        transfer: The run's own settings.
        root: The run's folder.
        scores: Folder of saved scores; by default the run's own.
        recipe: The run's config as YAML.
    """

    settings: SweepSettings
    transfer: TransferSettings
    sources: Sequence[AbilitySource]
    data: AbilityDataModule
    target: Target
    root: Path
    scores: Path | None
    seed: int
    recipe: str

    @property
    def folder(self) -> Path:
        """Where the sweep writes."""
        return self.root / "sweep"

    def score_folders(self) -> dict[str, Path]:
        """The folders of saved scores of the methods that select by scores."""
        scorers = self.settings.scorers(self.transfer)
        folders = {method: scores_folder(self.root, scorer) for method, scorer in scorers.items()}
        return folders if self.scores is None else folders | {ACT: self.scores}

    def plan(self) -> TransferPlan:
        """The run's own transfer, which points override."""
        channels, digests, fisher = self.target.inventory(), self.target.digests(), self.root / FISHER_FOLDER
        folder = self.target.folder
        return TransferPlan(self.transfer, self.sources, channels, digests, self.seed, folder, fisher=fisher)

    def ignored_settings(self) -> list[str]:
        """Messages about settings of sources that a sweep ignores."""
        end = "plays no part: every point of a sweep sets λ and p of all sources"
        return [
            f"profile.sources[{index}].{key} = {value} {end}"
            for index, source in enumerate(self.sources)
            for key, value in (("scale", source.scale), ("ratio", source.ratio))
            if value is not None
        ]

    def explore(self, trainer: L.Trainer) -> None:
        """Evaluate all points, on every process of the strategy, once data is set up and scores are saved.

        Raises:
            ActError: If the storage holds a sweep of something else, or scores are missing.
        """
        workers, device = Workers(trainer.global_rank, trainer.world_size), trainer.strategy.root_device
        assert self.target.folder is not None, "the target of a sweep is always a checkpoint"

        def open_store() -> None:
            require_report_folder(self.folder / "report")  # before hours of work
            stores.append(stack.enter_context(self.open_store()))

        with ExitStack() as stack:
            stores: list[TrialStore] = []  # only the first process has one
            workers.run_on_first(open_store)
            model = load_on_device(self.target.folder, self.target.dtype, device)
            transfers = Transfers(self.plan(), self.score_folders())
            TrialRunner(self, workers, stores[0] if stores else None, model, transfers).run()

    @contextmanager
    def open_store(self) -> Iterator[TrialStore]:
        """All points that were tried, which no other sweep can change meanwhile.

        Raises:
            ActError: If the storage holds a sweep of something else, or another sweep is using it.
        """
        made_from, tuned_from = self._made_from(), self._tuned_from() if self.settings.fit else None
        storage = self.settings.storage or str(self.folder / "journal.log")
        with lock_output(Path(storage.removeprefix("sqlite:///")).expanduser(), "sweep", "sweep.storage"):
            others = [method for method in self.settings.compared if method != ACT]
            by_method = {method: {f"scores of {method}": self._score_digests(method)} for method in others}
            yield TrialStore(storage, made_from, by_method, tuned_from, self.settings, self.seed)

    def _made_from(self) -> dict[str, Any]:
        """What the points depend on besides method, λ and p, as fingerprints and settings."""
        names = {"selection": str(self.transfer.selection), "method": repr(self.transfer.method)}
        sources = self.sources
        transfer = asdict(replace(self.transfer, selection="all", method="")) | names
        evaluations = {}
        for name, settings in self.data.evaluations.items():
            rules = [settings.role, settings.kind, settings.max_new_tokens, settings.pattern, settings.language]
            rules.append(settings.main_metric)
            prompts = [[prompt.text, prompt.item.identity] for prompt in self.data.prompts[name]]
            evaluations[name] = _digest([rules, *prompts])
        return {
            "target": self.target.digests()[-1],
            "sources": {
                source.label: identify(locate(source.model, source.revision, "profile.sources", adapters=True)).digest
                for source in sources
            },
            "scores": self._score_digests(ACT),
            "evaluations": evaluations,
            "transfer": {key: value for key, value in transfer.items() if key not in ("ratio", "scale")},
            "dtype": str(self.target.dtype),
            "seed": self.seed,
        }

    def _tuned_from(self) -> dict[str, str]:
        """What fine-tuned points depend on besides that: the settings of a fit."""
        recipe = read_recipe(self.recipe)
        data = {key: value for key, value in recipe["data"].items() if key != "evaluations"}
        irrelevant = ("default_root_dir", "callbacks", "logger", "enable_progress_bar", "enable_model_summary")
        trainer = {key: value for key, value in recipe.get("trainer", {}).items() if key not in irrelevant}
        return {"fit": _digest([recipe["model"], data, trainer])}

    def _score_digests(self, method: str) -> dict[str, str]:
        """Fingerprints of the scores of a method, for each ability of each source."""
        folder = self.score_folders().get(method)
        if folder is None:
            return {}
        paths = [score_path(folder, source.label, name) for source in self.sources for name in source.abilities]
        return {f"{path.parent.name}/{path.stem}": _digest(read_record(path).fingerprint()) for path in paths}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Workers:
    """The processes of a run; several must share a process group."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        # A group of its own: a process without a point waits as long as the others need for theirs, and the strategy's
        # group gives up after half an hour.
        timeout = timedelta(days=30)
        self._group: Any = distributed.new_group(backend="gloo", timeout=timeout) if size > 1 else None

    def run_on_all(self, work: Callable[[], _Result]) -> list[_Result]:
        """The results of ``work`` on all processes in their order, the same on all of them.

        Raises:
            ActError: On all processes, if ``work`` raised it on one of them.
        """
        if self.size == 1:
            return [work()]
        result: Any
        try:
            result = work()
        except ActError as error:
            result = error
        except Exception as error:
            # as text, because other exceptions may not be picklable
            result = RuntimeError("".join(traceback.format_exception(error)))
        results: list[Any] = [None] * self.size
        distributed.all_gather_object(results, result, group=self._group)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def run_on_first(self, work: Callable[[], _Result]) -> _Result:
        """The result of ``work`` on the first process, on all processes."""
        nothing: Any = None
        result: _Result = self.run_on_all(work if self.rank == 0 else lambda: nothing)[0]
        return result


@dataclass
class Stopwatch:
    """Seconds of each part of a point, with the work that the part has queued on the device."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time spent inside to a part."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@contextmanager
def apply_and_revert(
    model: PreTrainedModel, prepare: Callable[[], PreparedTransfer], stopwatch: Stopwatch
) -> Iterator[Rounding]:
    """The model with a transfer applied; afterwards, and after an error, every bit is as it was.

    The original values of all rows that change are kept on the model's device, as much memory as a transfer has rows.
    ``stopwatch`` gets the seconds of ``selecting``, ``applying`` and ``reverting``. Yields what rounding did.
    """
    originals: list[tuple[Tensor, Tensor | slice, Tensor]] = []
    try:
        with stopwatch.timing("selecting"):
            prepared = prepare()
        with stopwatch.timing("applying"), prepared.injection() as injection:
            for name in injection.names:
                parameter, numbers = model.get_parameter(name).data, injection.rows(name)
                values = as_matrix(parameter)
                whole = len(numbers) == len(values)
                rows = slice(None) if whole else numbers.to(values.device)
                originals.append((values, rows, values.clone() if whole else values[rows]))
                injection.apply_(name, parameter)
        yield injection.rounding
    finally:
        with stopwatch.timing("reverting"):
            for values, changed, original in originals:
                values[changed] = original


@dataclass(frozen=True)
class TrialRunner:
    """Evaluates all points of a sweep, each on one of the processes; only the first process has the store."""

    sweep: Sweep
    workers: Workers
    store: TrialStore | None
    model: PreTrainedModel
    transfers: Transfers

    def evaluate(self, point: Point) -> Outcome:
        """Apply a point, score the model, and revert the point."""
        data, stopwatch, share = self.sweep.data, Stopwatch(torch.device(self.model.device)), 0.0
        rounding = Rounding()
        with ExitStack() as stack:
            if point != UNMODIFIED:
                prepare = partial(self.transfers.prepare, point)
                rounding = stack.enter_context(apply_and_revert(self.model, prepare, stopwatch))
                share = self.transfers.parameter_share(point)
            with stopwatch.timing("evaluating"):
                scores = score_model(data, self.model, data.evaluation_tokens)
        roles = {name: settings.role for name, settings in data.evaluations.items()}
        return Outcome(point, roles, scores, share, stopwatch.seconds, rounding)

    def run(self) -> None:
        """Evaluate the target, then every point that is missing, then those where the methods are compared."""
        settings, transfer, done = self.sweep.settings, self.sweep.transfer, 0
        if self.store is not None and settings.sampler == "grid":
            done = len({outcome.point for outcome in self.store.outcomes()} & {*grid(settings, transfer)})
        elif self.store is not None:
            done = sum(map(self.store.count_sampled, settings.compared))
        self._run_rounds(self._sweep_points, "sweeping", count_points(settings, transfer), done)
        self._run_rounds(self._comparison_points, "comparing")

    def _sweep_points(self, store: TrialStore) -> Iterator[Suggestion]:
        settings, transfer = self.sweep.settings, self.sweep.transfer
        if store.target() is None:
            yield Suggestion(UNMODIFIED)
        points = grid(settings, transfer)
        if settings.sampler != "grid":
            for method in [method for method in settings.compared if has_ratio(method, transfer)]:
                for _ in range((settings.trials or 0) - store.count_sampled(method)):
                    yield store.suggest(method)
            points = [point for point in points if not has_ratio(point.method, transfer)]
        yield from _missing(points, store)

    def _comparison_points(self, store: TrialStore) -> Iterator[Suggestion]:
        """The points where other methods are compared with the first: at its λ, and at its share of parameters."""
        target = store.target()
        assert target is not None, "the target is evaluated first"
        reference = reference_outcome(store.outcomes(), target, self.sweep.settings)
        by_method = equal_points(reference, self.sweep.settings, self.sweep.transfer)
        yield from _missing(chain.from_iterable(points.values() for points in by_method.values()), store)

    def _run_rounds(
        self, suggest: Callable[[TrialStore], Iterator[Suggestion]], title: str, total: int = 0, done: int = 0
    ) -> None:
        """In each round, every process takes a point, and all wait for each other; until there are none left."""
        workers, store = self.workers, self.store
        queue = iter(()) if store is None else suggest(store)
        with progress_bar(desc=title, unit="point", total=total or None, delay=0.1, disable=store is None) as bar:
            bar.update(min(total, done))
            while True:
                suggestions = list(islice(queue, workers.size))
                chosen = [suggestion.point for suggestion in suggestions]
                points: list[Point] = workers.run_on_first(partial(list, chosen))
                if not points:
                    return
                own = points[workers.rank : workers.rank + 1]  # none, where there are fewer points than processes
                outcomes: list[list[Outcome]] = workers.run_on_all(partial(list, map(self.evaluate, own)))
                if store is None:
                    continue
                for suggestion, outcome in zip(suggestions, chain.from_iterable(outcomes), strict=True):
                    store.record(suggestion, outcome)
                bar.update(sum(point != UNMODIFIED for point in points))


def _missing(points: Iterable[Point], store: TrialStore) -> Iterator[Suggestion]:
    """Those that were not evaluated, each once."""
    done = {outcome.point for outcome in store.outcomes()}
    return (Suggestion(point) for point in dict.fromkeys(points) if point not in done)
