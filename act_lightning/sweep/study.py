"""Storage of a sweep's points: one Optuna study per method, which a sweep that was killed continues."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from act_lightning.checkpoints.files import wrap_os_errors
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.results import ROLES
from act_lightning.sweep.results import Outcome
from act_lightning.sweep.sweep_settings import TARGET, Point, SweepSettings

_MADE_FROM, _OUTCOME, _NOT_SAMPLED = "made_from", "outcome", "chosen_beforehand"  # attributes in the storage
_LEAST_RATIO = 1e-6
_TUNED = "+fit"


class Suggestion(NamedTuple):
    """A point to evaluate, with Optuna's trial if a sampler chose it; others get one when they are recorded."""

    point: Point
    trial: optuna.Trial | None = None


class TrialStore:
    """All points that were tried, and the sampler of the next. Only the first process has it.

    Values of a trial are keep and recover, its parameters ``method``, ``scale`` and ``ratio``; its attributes hold
    counts, intervals, the share of parameters, seconds, and the whole outcome. Each method has a study of that name,
    and its fine-tuned points have one of their own, such as ``act+fit``.

    Args:
        path: A journal file, or SQLite.
        made_from: What the points depend on besides method, λ and p: fingerprints of models and data, settings.
        made_from_by_method: What the points of single methods depend on besides that.
        tuned_from: What fine-tuned points depend on besides that; ``None`` if there will be none.

    Raises:
        ActError: If the storage holds a sweep of other models, data or settings, or cannot be opened.
    """

    def __init__(
        self,
        path: str,
        made_from: Mapping[str, Any],
        made_from_by_method: Mapping[str, Mapping[str, Any]],
        tuned_from: Mapping[str, Any] | None,
        settings: SweepSettings,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path = path
        self._settings = settings
        self._seed = seed
        self._made_from = json.loads(json.dumps(made_from))
        self._made_from_by_method = made_from_by_method
        self._tuned_from = tuned_from
        self._storage = _open_storage(path)
        self._studies: dict[str, optuna.Study] = {}
        for name in optuna.get_all_study_names(self._storage):
            self._require_same_origin(name)

    def outcomes(self, tuned: bool = False) -> list[Outcome]:
        """The outcomes so far of the methods to compare, each point once, in the order of their trials."""
        outcomes: dict[Point, Outcome] = {}
        studies = set(optuna.get_all_study_names(self._storage))
        for method in self._settings.compared:
            name = _study_name(method, tuned)
            for trial in self._completed(name) if name in studies else []:
                outcome = Outcome.from_json(trial.user_attrs[_OUTCOME])
                outcomes[outcome.point] = outcome
        return list(outcomes.values())

    def target(self, tuned: bool = False) -> Outcome | None:
        """The outcome of the target itself, if it was evaluated."""
        outcome = self._study(_study_name(self._settings.compared[0], tuned)).user_attrs.get("target")
        return None if outcome is None else Outcome.from_json(outcome)

    def suggest(self, method: str) -> Suggestion:
        """The next point of a method, which the sampler chooses between the least and the largest λ and p."""
        scales = [float(scale) for scale in self._settings.tried_scales]
        ratios = [float(ratio) for ratio in self._settings.tried_ratios]
        trial = self._study(method).ask(_search_space(method, scales, ratios))
        return Suggestion(Point(method, trial.params["scale"], trial.params["ratio"]), trial)

    def count_sampled(self, method: str) -> int:
        """How many points of a method that the sampler has chosen were evaluated."""
        return sum(_NOT_SAMPLED not in trial.user_attrs for trial in self._completed(method))

    def record(self, suggestion: Suggestion, outcome: Outcome) -> None:
        """Store an outcome; that of a point which no sampler has chosen is written in one line of a journal.

        Raises:
            ActError: The storage cannot be written.
        """
        with self._writing():
            self._record(suggestion, outcome)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with wrap_os_errors(Path(self._path), "sweep.storage"):
                yield
        except StorageInternalError as error:
            problem = f"must be writable ({str(error.__cause__ or error).splitlines()[0]})"
            hint = "Free some space, and start the sweep again: it continues."
            raise ActError(ConfigIssue("sweep.storage", self._path, problem, hint)) from error

    def _record(self, suggestion: Suggestion, outcome: Outcome) -> None:
        point = outcome.point
        if point.method == TARGET:
            for method in self._settings.compared:
                self._study(_study_name(method, point.tuned)).set_user_attr("target", outcome.to_json())
            return
        attributes: dict[str, Any] = {
            "intervals": {role: list(outcome.mean(role)) for role in ROLES},
            "counts": {name: list(outcome.scores.share(name)) for name in outcome.scores.digits},
            _OUTCOME: outcome.to_json(),
        }
        study, values = self._study(_study_name(point.method, point.tuned)), [outcome.keep, outcome.recover]
        if suggestion.trial is not None:
            for key, value in attributes.items():
                suggestion.trial.set_user_attr(key, value)
            study.tell(suggestion.trial, values)
            return
        params = {"method": point.method, "scale": point.scale, "ratio": point.ratio}
        space = _search_space(point.method, [point.scale], [min(_LEAST_RATIO, point.ratio), 1.0])
        attributes[_NOT_SAMPLED] = True
        study.add_trial(create_trial(params=params, distributions=space, values=values, user_attrs=attributes))

    def _completed(self, name: str) -> list[FrozenTrial]:
        return self._study(name).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _study(self, name: str) -> optuna.Study:
        if name not in self._studies:
            with self._writing():
                self._studies[name] = self._open_study(name)
        return self._studies[name]

    def _open_study(self, name: str) -> optuna.Study:
        study = optuna.create_study(
            storage=self._storage, study_name=name, directions=["maximize", "maximize"], load_if_exists=True
        )
        if _MADE_FROM not in study.user_attrs:
            study.set_user_attr(_MADE_FROM, self._origin(name))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(ROLES))
        # trials that were running when a sweep was killed have failed; their points are tried again
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        kind = optuna.samplers.NSGAIISampler if self._settings.sampler == "nsga2" else optuna.samplers.TPESampler
        # a seed of its own, so that random numbers do not start over where a sweep continues
        study.sampler = kind(seed=self._seed + len(study.get_trials(deepcopy=False)))
        return study

    def _origin(self, name: str) -> dict[str, Any]:
        tuned_from = (self._tuned_from or {}) if name.endswith(_TUNED) else {}
        return {**self._made_from, **self._made_from_by_method.get(name.removesuffix(_TUNED), {}), **tuned_from}

    def _require_same_origin(self, name: str) -> None:
        study, origin = optuna.load_study(study_name=name, storage=self._storage), self._origin(name)
        stored = study.user_attrs.get(_MADE_FROM)
        if stored is None or stored == origin or (self._tuned_from is None and name.endswith(_TUNED)):
            return
        # of a method that is not compared now, the scores are unknown
        compared = name.removesuffix(_TUNED) in self._settings.compared
        keys = stored.keys() | origin.keys() if compared else origin.keys()
        different = sorted(key for key in keys if stored.get(key) != origin.get(key))
        if different:
            problem = f"must be of this run, and holds a sweep with other {', '.join(different)}"
            hint = "Choose another trainer.default_root_dir or sweep.storage, or delete it to begin anew."
            raise ActError(ConfigIssue("sweep.storage", self._path, problem, hint))


def _study_name(method: str, tuned: bool) -> str:
    return method + _TUNED if tuned else method


def _search_space(method: str, scales: list[float], ratios: list[float]) -> dict[str, BaseDistribution]:
    return {
        "method": CategoricalDistribution((method,)),
        "scale": FloatDistribution(min(scales), max(scales)),
        "ratio": FloatDistribution(min(ratios), max(ratios), log=True),  # as many of 1 to 10 % as of 10 to 100 %
    }


def _open_storage(path: str) -> BaseStorage:
    """Open the storage; of a journal, a last line that a killed process has not completed is cut off first."""
    file = Path(path.removeprefix("sqlite:///")).expanduser()
    existed = file.exists()
    try:
        if path.startswith("sqlite:"):
            return RDBStorage(path)
        if path.endswith((".db", ".sqlite", ".sqlite3")):
            return RDBStorage(f"sqlite:///{file}")
        file.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{file}.lock").unlink(missing_ok=True)
        content = file.read_bytes() if file.is_file() else b""
        if content and not content.endswith(b"\n"):
            with file.open("r+b") as journal:
                journal.truncate(content.rfind(b"\n") + 1)
        return JournalStorage(JournalFileBackend(str(file)))
    except Exception as error:  # of the file system, of SQLAlchemy, or of Optuna
        if not existed:
            file.unlink(missing_ok=True)  # its tables may be incomplete
        problem = f"must be a journal file of Optuna's, or SQLite ({type(error).__name__}: {error})"
        raise ActError(ConfigIssue("sweep.storage", path, problem, "Name another file, or free some space.")) from error
