"""A sweep from a run's sections through its points, in rounds in which every process takes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from act_lightning.analysis.report.page import require_report_folder
from act_lightning.checkpoints.models import load_model, locate
from act_lightning.checkpoints.weight_files import identify
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.profiling.target import Target
from act_lightning.scores import read_record, score_path, scores_folder
from act_lightning.sweep.configs import read_recipe
from act_lightning.sweep.points import UNTOUCHED, Point, count_points, grid, has_ratio
from act_lightning.sweep.results import Outcome, equal_points, reference_of
from act_lightning.sweep.settings import ACT, SweepSettings
from act_lightning.sweep.study import Suggested, TrialStore, alone
from act_lightning.sweep.transfers import SweepContext, Transfers
from act_lightning.sweep.workers import Questions, Watch, Workers, apply_and_revert
from act_lightning.transfer.saved_fisher import FISHER_FOLDER
from act_lightning.transfer.settings import AbilitySource, TransferSettings


@dataclass(frozen=True)
class TrialContext:
    """What a process needs to evaluate a point.

    Attributes:
        model: The target, to which points are applied.
        transfers: Gives the transfer of a point.
        data: The data module, set up for testing.
        questions: Its evaluation sets.
    """

    model: PreTrainedModel
    transfers: Transfers
    data: AbilityDataModule
    questions: Questions

    def evaluate(self, point: Point) -> Outcome:
        """Apply a point, ask all questions, and take it back."""
        watch = Watch(torch.device(self.model.device))
        roles = {name: one.role for name, one in self.data.evaluations.items()}
        if point == UNTOUCHED:
            with watch.timing("evaluating"):
                right = self.questions.ask(self.model)
            return Outcome(point, roles, right, 0.0, watch.seconds)
        with (
            apply_and_revert(self.model, lambda: self.transfers.prepared(point), watch),
            watch.timing("evaluating"),
        ):
            right = self.questions.ask(self.model)
        return Outcome(point, roles, right, self.transfers.share(point), watch.seconds)


class TrialRunner:
    """All points of a sweep, of which every process evaluates its part.

    Args:
        crew: The processes.
        ledger: Where points are kept; of the first process, the others have none.
        laboratory: Evaluates points.
        settings: Section ``sweep``.
        transfer: The run's own settings.
    """

    def __init__(
        self,
        crew: Workers,
        ledger: TrialStore | None,
        laboratory: TrialContext,
        settings: SweepSettings,
        transfer: TransferSettings,
    ) -> None:
        self._crew = crew
        self._kept = ledger
        self._laboratory = laboratory
        self._settings = settings
        self._transfer = transfer

    @property
    def _ledger(self) -> TrialStore:
        assert self._kept is not None, "only the first process keeps points"
        return self._kept

    def go(self) -> None:
        """Evaluate the target, every point that has not been yet, and what the methods are compared at."""
        self._rounds(self._first_points, "sweeping", count_points(self._settings, self._transfer))
        self._rounds(self._equal_points, "comparing", 0)

    def _first_points(self) -> Iterator[Suggested]:
        if self._ledger.target() is None:
            yield Suggested(UNTOUCHED)
        points = grid(self._settings, self._transfer)
        if self._settings.sampler != "grid":
            for method in self._settings.compared:
                yield from self._chosen_by_sampler(method)
            points = [point for point in points if not has_ratio(point.method, self._transfer)]
        yield from map(Suggested, self._missing(points))

    def _chosen_by_sampler(self, method: str) -> Iterator[Suggested]:
        if has_ratio(method, self._transfer):
            for _ in range((self._settings.trials or 0) - self._ledger.suggested(method)):
                yield self._ledger.suggest(method)

    def _equal_points(self) -> Iterator[Suggested]:
        """What other methods need to be compared with the first at its λ, and at its share of parameters."""
        target = self._ledger.target()
        assert target is not None
        reference = reference_of(self._ledger.outcomes(), target, self._settings)
        equals = equal_points(reference, self._settings, self._transfer)
        yield from map(Suggested, self._missing([point for its in equals.values() for point in its.values()]))

    def _missing(self, points: Iterable[Point]) -> list[Point]:
        """Those that were not evaluated, each once."""
        done = {outcome.point for outcome in self._ledger.outcomes()}
        return [point for point in dict.fromkeys(points) if point not in done]

    def _rounds(self, points: Callable[[], Iterator[Suggested]], title: str, total: int) -> None:
        """Give every process a point, wait for all of them, and so on until there are none left."""
        crew, queue = self._crew, iter(points() if self._crew.leads else ())
        with tqdm(desc=title, unit="point", total=total or None, disable=not crew.leads) as bar:
            if crew.leads and total:
                bar.update(max(0, min(total, self._done())))
            while True:
                chosen = list(islice(queue, crew.size))  # of the first process
                told = crew.of_first(lambda chosen=chosen: [one.point for one in chosen])  # type: ignore[misc]
                if not told:
                    return
                mine = told[crew.rank : crew.rank + 1]
                found = crew.all_of(lambda mine=mine: [self._laboratory.evaluate(point) for point in mine])  # type: ignore[misc]
                if crew.leads:
                    self._keep(chosen, [outcome for its in found for outcome in its])
                    bar.update(sum(point != UNTOUCHED for point in told))

    def _done(self) -> int:
        if self._settings.sampler == "grid":
            return len({outcome.point for outcome in self._ledger.outcomes()} & {*grid(self._settings, self._transfer)})
        return sum(self._ledger.suggested(method) for method in self._settings.compared)

    def _keep(self, chosen: Sequence[Suggested], outcomes: Sequence[Outcome]) -> None:
        for one, outcome in zip(chosen, outcomes, strict=True):
            if outcome.point == UNTOUCHED:
                self._ledger.record_target(outcome)
            else:
                self._ledger.finish(one, outcome)


@dataclass(frozen=True)
class Sweep:
    """What a sweep is made of.

    Attributes:
        settings: Section ``sweep``, without issues.
        transfer: The run's own settings.
        sources: The run's sources.
        data: The data module.
        target: Where the target's weights are.
        root: The run's folder.
        scores: Folder of saved scores; by default the run's own.
        seed: Of random draws.
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

    @property
    def storage(self) -> str:
        """Where Optuna keeps the points."""
        return self.settings.storage or str(self.folder / "journal.log")

    def folders_of_scores(self) -> dict[str, Path]:
        """Where the scores of each method are that selects by scores."""
        scorers = self.settings.scorers(self.transfer)
        found = {method: scores_folder(self.root, scorer) for method, scorer in scorers.items()}
        return found if self.scores is None else found | {ACT: self.scores}

    def beginning(self) -> SweepContext:
        """Where every point begins."""
        assert self.target.folder is not None, "a module of ours names its checkpoint"
        return SweepContext(
            sources=self.sources,
            transfer=self.transfer,
            channels=self.target.inventory(),
            scores=self.folders_of_scores(),
            fisher=self.root / FISHER_FOLDER,
            seed=self.seed,
            digests=self.target.digests(),
            target=self.target.folder,
        )

    def overridden(self) -> list[str]:
        """What the sources say that plays no part here."""
        given = [(i, key, getattr(one, key)) for i, one in enumerate(self.sources) for key in ("scale", "ratio")]
        end = "plays no part: every point of a sweep sets λ and p of all sources"
        return [f"profile.sources[{i}].{key} = {value} {end}" for i, key, value in given if value is not None]

    def explore(self, trainer: L.Trainer) -> None:
        """Evaluate all points, on every process of the strategy; the data is set up, and scores are there.

        Raises:
            ActError: If the storage holds a sweep of something else, or scores are missing.
        """
        crew, kept = Workers(trainer.global_rank, trainer.world_size), ExitStack()
        with kept:
            opened: list[TrialStore] = []
            crew.of_first(lambda: opened.append(self._begun(kept)))
            device = trainer.strategy.root_device
            laboratory = self.laboratory(device)
            TrialRunner(crew, next(iter(opened), None), laboratory, self.settings, self.transfer).go()

    def _begun(self, while_in: ExitStack) -> TrialStore:
        require_report_folder(self.folder / "report")  # before hours of work
        return self.ledger(while_in)

    def ledger(self, while_in: ExitStack) -> TrialStore:
        """All points that were tried, which no other sweep changes until ``while_in`` is left.

        Raises:
            ActError: If the storage holds a sweep of something else, or another sweep uses it.
        """
        made_from, tuned_from = self.made_from(), self.tuned_from() if self.settings.fit else None
        while_in.enter_context(alone(self.storage))
        others = [method for method in self.settings.compared if method != ACT]
        own = {method: {f"scores of {method}": self._scores(method)} for method in others}
        return TrialStore(self.storage, made_from, own, tuned_from, self.settings, self.seed)

    def laboratory(self, device: torch.device) -> TrialContext:
        """The target in memory, and the questions."""
        beginning = self.beginning()
        model = load_model(beginning.target, self.target.dtype, device)
        return TrialContext(model, Transfers(beginning), self.data, Questions(self.data))

    def made_from(self) -> dict[str, Any]:
        """What the points depend on beside method, λ and p, as fingerprints and settings.

        Raises:
            ActError: If scores are missing.
        """
        named = {"selection": self.transfer.selection_name, "method": repr(self.transfer.method)}
        transfer = asdict(replace(self.transfer, selection="all", method="")) | named
        weights = {one.label: identify(locate(one.model, one.revision)).digest for one in self.sources}
        return {
            "target": self.target.digests()[-1],
            "sources": weights,
            "scores": self._scores(ACT),
            "evaluations": {name: self._questions(name) for name in self.data.evaluation_names},
            "transfer": {key: value for key, value in transfer.items() if key not in ("ratio", "scale")},
            "dtype": str(self.target.dtype),
            "seed": self.seed,
        }

    def tuned_from(self) -> dict[str, str]:
        """What fine-tuned points depend on beside that: the settings of a fit."""
        recipe = read_recipe(self.recipe)
        data = {key: value for key, value in recipe["data"].items() if key != "evaluations"}
        own = ("default_root_dir", "callbacks", "logger", "enable_progress_bar", "enable_model_summary")
        trainer = {key: value for key, value in recipe.get("trainer", {}).items() if key not in own}
        return {"fit": _digest([recipe["model"], data, trainer])}

    def _scores(self, method: str) -> dict[str, str]:
        """What the scores of a method were measured on, for each ability of each source."""
        folder = self.folders_of_scores().get(method)
        if folder is None:
            return {}
        paths = [score_path(folder, one.label, name) for one in self.sources for name in one.abilities]
        return {f"{path.parent.name}/{path.stem}": _digest(read_record(path).fingerprint()) for path in paths}

    def _questions(self, name: str) -> str:
        one = self.data.evaluations[name]
        rules = [one.role, one.kind, one.max_new_tokens, one.pattern, one.language]
        return _digest([rules, *([prompt.text, prompt.item.identity] for prompt in self.data.prompts[name])])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
