"""Where the points of a sweep are kept: Optuna studies, one a method, which a sweep that was killed continues."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.sweep.points import Point
from act_lightning.sweep.results import ROLES, Outcome
from act_lightning.sweep.settings import SweepSettings, is_sqlite

_MADE_FROM, _OUTCOME, _CHOSEN = "made_from", "outcome", "chosen_beforehand"
_LEAST_RATIO = 1e-6
_FIT = "+fit"


class Suggested(NamedTuple):
    """A point that is to be evaluated.

    Attributes:
        point: The point.
        trial: The trial of a point that a sampler has chosen; those of a grid have none until they are finished.
    """

    point: Point
    trial: optuna.Trial | None = None


class TrialStore:
    """All points that were tried, and which comes next. Only one process has it.

    Values of a trial are keep and recover, its parameters ``method``, ``scale`` and ``ratio``; its attributes hold
    counts, intervals, the share of parameters, seconds, and the whole outcome. There is a study for each method, named
    like it; what was fine-tuned has studies of its own, ``act+fit``.

    Args:
        place: A journal file, or SQLite.
        made_from: What the points depend on beside method, λ and p: fingerprints of models and data, settings.
        own_from: What the points of a method depend on beside that, by method.
        tuned_from: What fine-tuned points depend on beside that; ``None`` where none are wanted.
        settings: Section ``sweep``.
        seed: Of samplers.

    Raises:
        ActError: If the place holds a sweep of other models, data or settings, or cannot be opened.
    """

    def __init__(
        self,
        place: str,
        made_from: Mapping[str, Any],
        own_from: Mapping[str, Mapping[str, Any]],
        tuned_from: Mapping[str, Any] | None,
        settings: SweepSettings,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._place = place
        self._settings = settings
        self._seed = seed
        self._made_from = json.loads(json.dumps(made_from))
        self._own_from = own_from
        self._tuned_from = tuned_from
        self._storage = _opened(place)
        self._studies: dict[str, optuna.Study] = {}
        for name in optuna.get_all_study_names(self._storage):
            self._check(name)

    def outcomes(self, tuned: bool = False) -> list[Outcome]:
        """What was found so far of the methods that are compared, each point once, in the order of their trials."""
        methods = [self._name(method, tuned) for method in self._settings.compared]
        known = set(optuna.get_all_study_names(self._storage))
        trials = [trial for name in methods if name in known for trial in self._finished(name)]
        found = [Outcome.from_json(trial.user_attrs[_OUTCOME]) for trial in trials]
        return list({one.point: one for one in found}.values())

    def target(self, tuned: bool = False) -> Outcome | None:
        """What the target itself gave, if it was evaluated."""
        known = self._study(self._name(self._settings.compared[0], tuned)).user_attrs.get("target")
        return None if known is None else Outcome.from_json(known)

    def record_target(self, outcome: Outcome) -> None:
        """Keep what the target itself gave."""
        for method in self._settings.compared:
            study = self._study(self._name(method, outcome.point.tuned))
            study.set_user_attr("target", outcome.to_json())

    def suggest(self, method: str) -> Suggested:
        """The next point of a method, which the sampler chooses between the least and the largest λ and p."""
        scales, ratios = (
            [float(one) for one in its] for its in (self._settings.tried_scales, self._settings.tried_ratios)
        )
        trial = self._study(method).ask(_space(method, scales, ratios))
        return Suggested(Point(method, trial.params["scale"], trial.params["ratio"]), trial)

    def suggested(self, method: str) -> int:
        """How many points of a method the sampler has chosen that were evaluated."""
        return sum(_CHOSEN not in trial.user_attrs for trial in self._finished(method))

    def finish(self, suggested: Suggested, outcome: Outcome) -> None:
        """Keep what was found at a point; one that no sampler has chosen is written whole, in one line of a journal."""
        told = {role: list(outcome.mean(role)) for role in ROLES}
        counts = {name: list(outcome.counts(name)) for name in outcome.right}
        attributes = {"intervals": told, "counts": counts, _OUTCOME: outcome.to_json()}
        values, point = [outcome.keep, outcome.recover], outcome.point
        study = self._study(self._name(point.method, point.tuned))
        if suggested.trial is not None:
            for key, value in attributes.items():
                suggested.trial.set_user_attr(key, value)
            study.tell(suggested.trial, values)
            return
        params = {"method": point.method, "scale": point.scale, "ratio": point.ratio}
        space = _space(point.method, [point.scale], [min(_LEAST_RATIO, point.ratio), 1.0])
        attributes[_CHOSEN] = True
        study.add_trial(create_trial(params=params, distributions=space, values=values, user_attrs=attributes))

    def _finished(self, name: str) -> list[FrozenTrial]:
        return self._study(name).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    @staticmethod
    def _name(method: str, tuned: bool) -> str:
        return method + _FIT if tuned else method

    def _study(self, name: str) -> optuna.Study:
        if name not in self._studies:
            study = optuna.create_study(
                storage=self._storage, study_name=name, directions=["maximize", "maximize"], load_if_exists=True
            )
            if _MADE_FROM not in study.user_attrs:
                study.set_user_attr(_MADE_FROM, self._basis(name))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    study.set_metric_names(list(ROLES))
            self._give_up(study)
            study.sampler = self._sampler(len(study.get_trials(deepcopy=False)))
            self._studies[name] = study
        return self._studies[name]

    def _sampler(self, past: int) -> optuna.samplers.BaseSampler:
        """A sampler whose random numbers do not begin again where a sweep continues."""
        kind = optuna.samplers.NSGAIISampler if self._settings.sampler == "nsga2" else optuna.samplers.TPESampler
        return kind(seed=self._seed + past)

    def _give_up(self, study: optuna.Study) -> None:
        """Trials that were running when a sweep was killed have failed; their points are tried again."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _basis(self, name: str) -> dict[str, Any]:
        tuned = (self._tuned_from or {}) if name.endswith(_FIT) else {}
        return {**self._made_from, **self._own_from.get(name.removesuffix(_FIT), {}), **tuned}

    def _check(self, name: str) -> None:
        study, now = optuna.load_study(study_name=name, storage=self._storage), self._basis(name)
        before = study.user_attrs.get(_MADE_FROM)
        if before is None or before == now or (self._tuned_from is None and name.endswith(_FIT)):
            return
        compared = name.removesuffix(_FIT) in self._settings.compared
        keys = before.keys() | now if compared else now  # of a method that is not, its own scores are not looked at
        differ = sorted(key for key in keys if before.get(key) != now.get(key))
        if not differ:
            return
        problem = f"must be of this run, and holds a sweep with other {', '.join(differ)}"
        hint = "Choose another trainer.default_root_dir or sweep.storage, or delete it to begin anew."
        raise ActError(ConfigIssue("sweep.storage", self._place, problem, hint))


def _space(method: str, scales: Sequence[float], ratios: Sequence[float]) -> dict[str, BaseDistribution]:
    return {
        "method": CategoricalDistribution((method,)),
        "scale": FloatDistribution(min(scales), max(scales)),
        "ratio": FloatDistribution(min(ratios), max(ratios), log=True),  # as many of 1 to 10 % as of 10 to 100 %
    }


@contextmanager
def alone(place: str) -> Iterator[None]:
    """Keep other sweeps away from the storage of this one.

    Raises:
        ActError: If another one is at work there.
    """
    file = Path(place.removeprefix("sqlite:///")).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        problem, hint = "must not be in use by another sweep", "Wait for it, or name another."
        raise ActError(ConfigIssue("sweep.storage", place, problem, hint)) from error


def _opened(place: str) -> BaseStorage:
    """The storage, after what a killed process left in the middle of a write is taken away."""
    try:
        if is_sqlite(place):
            return RDBStorage(place if place.startswith("sqlite:") else f"sqlite:///{Path(place).expanduser()}")
        file = Path(place).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{file}.lock").unlink(missing_ok=True)
        _mend(file)
        return JournalStorage(JournalFileBackend(str(file)))
    except Exception as error:  # of the file system, of SQLAlchemy, or of Optuna
        problem = f"must be a journal file of Optuna's, or SQLite ({type(error).__name__}: {error})"
        raise ActError(ConfigIssue("sweep.storage", place, problem, "Name another file.")) from error


def _mend(file: Path) -> None:
    """Cut off a last line that was not written to its end."""
    if not file.is_file():
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        with file.open("r+b") as opened:
            opened.truncate(content.rfind(b"\n") + 1)
