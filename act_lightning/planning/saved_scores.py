"""Whether a folder of saved scores answers for every ability of a run, before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from act_lightning.callbacks.preparation import saved_record
from act_lightning.checkpoints import identify, is_weightless
from act_lightning.errors import Fault
from act_lightning.planning.models import Models
from act_lightning.planning.run import Run
from act_lightning.scores import score_path


def score_faults(run: Run, models: Models) -> list[Fault]:
    """Score files that are missing, unreadable, or were measured on other weights or by another scorer."""
    if run.transfer.scores is None or run.transfer.needs_profiling or not Path(run.transfer.scores).is_dir():
        return []
    root, scorer, found = Path(run.transfer.scores), run.transfer.scorer, Models()
    for i, source in enumerate(run.sources):
        digests = _digests({"target": models.target, "source": models.sources.get(i)})
        for ability in source.abilities:
            path = score_path(root, source.label, ability)
            found.attempt(lambda path=path, digests=digests: saved_record(path, root, digests, scorer))  # type: ignore[misc]
    return found.faults


def _digests(folders: dict[str, Path | None]) -> dict[str, list[str]]:
    """The digest of each model whose weights are there."""
    return {role: [identify(folder).digest] for role, folder in folders.items() if folder and not is_weightless(folder)}
