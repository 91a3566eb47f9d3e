"""What is to be measured: one source and ability with its samples, and whether saved scores already answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from act_lightning import __version__
from act_lightning.callbacks.samples import AbilitySamples, ability_samples
from act_lightning.callbacks.sources import AbilitySource
from act_lightning.callbacks.target import Target
from act_lightning.checkpoints import identify, locate
from act_lightning.errors import ActError
from act_lightning.scores import ScoreRecord, read_record, score_path


@dataclass(frozen=True)
class Measurement:
    """The scores of one ability of one source, to be measured or used again.

    Attributes:
        source: The source.
        folder: Its checkpoint.
        ability: The ability.
        samples: The samples it is measured on.
        record: What a new measurement would be recorded as.
        path: Where its scores stand.
    """

    source: AbilitySource
    folder: Path
    ability: str
    samples: AbilitySamples
    record: ScoreRecord
    path: Path

    @property
    def label(self) -> str:
        """``source/ability``."""
        return f"{self.source.label}/{self.ability}"

    def reason_to_measure(self) -> str | None:
        """Why saved scores cannot be used, or ``None`` if they can."""
        if not self.path.exists():
            return "no saved scores"
        try:
            changes = read_record(self.path).changes(self.record)
        except ActError as error:
            return str(error)
        return "; ".join(changes) or None


def measurements(sources: Sequence[AbilitySource], target: Target, datamodule: object, root: Path) -> list[Measurement]:
    """One measurement for each ability of each source, in order."""
    identity, found = asdict(target.identity()), []
    samples: dict[tuple[int | None, str], AbilitySamples] = {}
    for i, source in enumerate(sources):
        folder = locate(source.model, source.revision, f"profile.sources[{i}].model")
        identities = {"target": identity, "source": asdict(identify(folder))}
        for ability in source.abilities:
            key = (i if source.loaders else None, ability)
            if key not in samples:
                samples[key] = ability_samples(source, ability, datamodule)
            record = _record(target, source, identities, samples[key])
            path = score_path(root, source.label, ability)
            found.append(Measurement(source, folder, ability, samples[key], record, path))
    return found


def _record(
    target: Target, source: AbilitySource, identities: dict[str, dict[str, object]], samples: AbilitySamples
) -> ScoreRecord:
    return ScoreRecord(
        tokens=samples.tokens,
        samples=len(samples.samples),
        dropped=samples.dropped,
        models={"target": target.name, "source": source.model},
        identities=identities,
        data=samples.fingerprint,
        dtype=str(target.dtype).removeprefix("torch."),
        versions={"act_lightning": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    )


def groups(due: Sequence[Measurement]) -> list[list[Measurement]]:
    """Measurements whose sources should be in memory together: those that share an ability's samples."""
    found: list[list[Measurement]] = []
    for one in due:
        related = [group for group in found if any(_together(one, other) for other in group)]
        found = [group for group in found if group not in related]
        found.append([*(other for group in related for other in group), one])
    return found


def _together(one: Measurement, other: Measurement) -> bool:
    return one.source is other.source or one.samples.fingerprint == other.samples.fingerprint
