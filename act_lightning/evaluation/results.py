"""What a test found: a record of every answer, and the shares on each evaluation set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from act_lightning.checkpoints.files import last_part, read_json
from act_lightning.checkpoints.weight_files import CONFIG, identify
from act_lightning.data.ability_data import Metric
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.escaping import terminal_text
from act_lightning.evaluation.intervals import Interval, Share, mean_of_shares

ROLES = ("keep", "recover")
RESULTS, PREDICTED = "results.json", "predictions/model.json"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Record:
    """One item of an evaluation set, answered and graded.

    Attributes:
        row: Index of the item in its set.
        id: Identifies the item, the same in every run.
        prompt: What the model read.
        prediction: What the model wrote.
        reference: The correct answer; for a choice a letter such as ``(B)``.
        extracted: The answer in the required form; ``None`` where there is none.
        flexible: The answer anywhere in the output; ``None`` where there is none.
        answered: Whether there is an answer in the required form.
        correct: Whether ``extracted`` is correct.
        flexible_correct: Whether ``flexible`` is correct.
        tokens: Length of the output.
        truncated: Whether the output was cut before the model ended its turn.
        options: Number of options; 0 where the answer is free.
        language: Language of the output, where the set names one and the output has words.
        flag: What is doubtful about the item.
    """

    row: int
    id: str
    prompt: str
    prediction: str
    reference: str
    extracted: str | None
    flexible: str | None
    answered: bool
    correct: bool
    flexible_correct: bool
    tokens: int
    truncated: bool
    options: int = 0
    language: str | None = None
    flag: str | None = None


def read_records(path: Path) -> list[Record]:
    """Read the records of a test.

    Raises:
        ActError: If the file cannot be read, or holds something else.
    """
    try:
        return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError, TypeError) as error:
        problem = f"must hold the generations of a test ({error})"
        raise ActError(ConfigIssue("RUN", str(path), problem, "Run `test` with this data once more.")) from error


@dataclass(frozen=True)
class SetResult:
    """What a test found on one evaluation set.

    Attributes:
        role: ``keep`` or ``recover``.
        metric: Which of the two matches is the set's accuracy; in results written before there was a choice, the exact.
        correct: Correct answers in the required form: exact matches.
        flexible: Correct answers anywhere in the output: flexible matches.
        answered: Outputs with an answer in the required form.
        truncated: Outputs that were cut before the model ended its turn.
        tokens: Mean length of the outputs, with the bounds of its 95 % interval.
        chance: Share that random choices would get right; 0 where answers are free.
        worded: Outputs that contain words, where their language was identified.
        in_language: Those of them in the set's language.
        flagged: Items with something doubtful about them.
    """

    role: str
    kind: str
    language: str | None
    total: int
    correct: int
    flexible: int
    answered: int
    truncated: int
    tokens: Interval
    chance: float = 0.0
    worded: int = 0
    in_language: int = 0
    flagged: int = 0
    metric: Metric = "exact_match"

    @property
    def accuracy(self) -> Share:
        """The share of correct answers by the set's metric."""
        return self.shares()[self.metric]

    def shares(self) -> dict[str, Share]:
        """Every share that was measured."""
        shares = {
            "exact_match": Share(self.correct, self.total),
            "flexible_match": Share(self.flexible, self.total),
            "answered": Share(self.answered, self.total),
            "accuracy_among_answered": Share(self.correct, self.answered),
            "truncated": Share(self.truncated, self.total),
        }
        return shares | ({"in_language": Share(self.in_language, self.worded)} if self.worded else {})

    def bounds(self) -> dict[str, dict[str, float | None]]:
        """Value and 95 % interval of every share, for files; the value of a share of nothing is ``None``."""
        bounds = {}
        for name, share in self.shares().items():
            value, low, high = share.interval
            bounds[name] = {"value": value if share.total else None, "low": low, "high": high}
        return bounds


Results = Mapping[str, SetResult]


def role_means(results: Results) -> dict[str, Interval]:
    """The mean accuracy of the sets of each role, each set with the same weight as in the paper."""
    by_role = {role: [result.accuracy for result in results.values() if result.role == role] for role in ROLES}
    return {role: mean_of_shares(counts) for role, counts in by_role.items() if counts}


def results_for_logger(results: Results) -> dict[str, float]:
    """Results by name: every share as ``exact_match/<set>`` and so on, and mean accuracies as ``keep`` and ``recover``.

    A share of nothing, such as that of correct answers where there is no answer, is left out.
    """
    values: dict[str, float] = {}
    for name, result in results.items():
        values |= {f"{key}/{name}": share.interval[0] for key, share in result.shares().items() if share.total}
        values[f"tokens/{name}"] = result.tokens[0]
    return values | {role: mean for role, (mean, _, _) in role_means(results).items()}


@dataclass(frozen=True)
class EvaluatedModel:
    """Which model was evaluated.

    Attributes:
        name: How the user named it.
        digest: Of all bytes of its weights.
    """

    name: str
    digest: str

    def folder(self, evaluations: Path) -> Path:
        """Where its evaluations are written: ``evaluations`` itself, unless those of another model stand there.

        Those of other models stand in it by their name and digest.
        """
        for file in (RESULTS, PREDICTED):
            if (evaluations / file).exists():
                digest = _digest(evaluations / file)
                if digest == self.digest:
                    return evaluations
                name = re.sub(r"[^\w.-]+", "-", last_part(self.name)).lstrip(".-")
                other = evaluations / f"{name[:_LONGEST_NAME] or 'model'}-{self.digest[:8]}"
                if digest is None:
                    kept = f"{evaluations / file} is of an earlier version, which recorded no digest: it is kept"
                    print(terminal_text(kept))
                return other
        return evaluations


def _digest(path: Path) -> str | None:
    """The digest of the model in a file of evaluations, if it has one."""
    try:
        return str(read_json(path)["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def evaluation_folder(run: Path) -> Path:
    """The folder of a run's evaluation: of its only one, or of the model that the run exported; or ``run`` itself.

    Raises:
        ActError: There are several, and none or more than one is of an exported model.
    """
    if (run / RESULTS).is_file():
        return run
    evaluations = run / "evaluations"
    folders = [folder for folder in (evaluations, *sorted(evaluations.glob("*"))) if (folder / RESULTS).is_file()]
    if len(folders) > 1:
        exports = [run / name for name in ("model", "merged") if (run / name / CONFIG).is_file()]
        exported = {identify(export, verify=True).full_digest for export in exports}
        folders = [folder for folder in folders if _digest(folder / RESULTS) in exported] or folders
    if len(folders) > 1:
        problem = f"must hold the evaluation of one model, and holds {', '.join(str(folder) for folder in folders)}"
        raise ActError(ConfigIssue("RUN", str(run), problem, "Name one of these folders instead."))
    return folders[0] if folders else evaluations


def results_as_json(model: EvaluatedModel, results: Results) -> str:
    """All results, with shares and the bounds of their 95 % intervals."""
    sets = {name: asdict(result) | {"shares": result.bounds()} for name, result in results.items()}
    means = {role: dict(zip(("value", "low", "high"), mean, strict=True)) for role, mean in role_means(results).items()}
    content = {"model": model.name, "digest": model.digest, "sets": sets, "means": means}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_results(path: Path) -> dict[str, SetResult]:
    """Read the results of a test, by set.

    Raises:
        ActError: If the file cannot be read, or holds something else.
    """
    try:
        results = {}
        for name, content in json.loads(path.read_text(encoding="utf-8"))["sets"].items():
            fields = {key: value for key, value in content.items() if key != "shares"}
            results[name] = SetResult(**fields | {"tokens": tuple(fields["tokens"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        problem = f"must be a run that was tested ({reason})"
        raise ActError(
            ConfigIssue("RUN", str(path), problem, "Run `test` with its config and --model.target first.")
        ) from error
    return results
