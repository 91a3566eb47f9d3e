"""Walking through the points of a sweep: rounds in which every process takes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from act_lightning.data import AbilityDataModule
from act_lightning.sweeping.bench import Watch, transferred
from act_lightning.sweeping.choice import equal_points, reference_of
from act_lightning.sweeping.crew import Crew
from act_lightning.sweeping.outcome import Outcome
from act_lightning.sweeping.points import UNTOUCHED, Point, count_points, grid, has_ratio
from act_lightning.sweeping.questions import Questions
from act_lightning.sweeping.settings import SweepSettings
from act_lightning.sweeping.study import Ledger, Suggested
from act_lightning.sweeping.transfers import Transfers
from act_lightning.transfer import TransferSettings


@dataclass(frozen=True)
class Laboratory:
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
            transferred(self.model, lambda: self.transfers.prepared(point), watch),
            watch.timing("evaluating"),
        ):
            right = self.questions.ask(self.model)
        return Outcome(point, roles, right, self.transfers.share(point), watch.seconds)


class Walk:
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
        crew: Crew,
        ledger: Ledger | None,
        laboratory: Laboratory,
        settings: SweepSettings,
        transfer: TransferSettings,
    ) -> None:
        self._crew = crew
        self._kept = ledger
        self._laboratory = laboratory
        self._settings = settings
        self._transfer = transfer

    @property
    def _ledger(self) -> Ledger:
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
