"""A sweep from a run's sections to its points, on all processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from act_lightning.analysis.report.page import require_report_folder
from act_lightning.callbacks.sources import AbilitySource
from act_lightning.callbacks.target import Target
from act_lightning.checkpoints import identify, load_model, locate
from act_lightning.data import AbilityDataModule
from act_lightning.scores import read_record, score_path, scores_folder
from act_lightning.sweeping.crew import Crew
from act_lightning.sweeping.questions import Questions
from act_lightning.sweeping.recipes import read_recipe
from act_lightning.sweeping.settings import ACT, SweepSettings
from act_lightning.sweeping.study import Ledger, alone
from act_lightning.sweeping.transfers import Beginning, Transfers
from act_lightning.sweeping.walk import Laboratory, Walk
from act_lightning.transfer import TransferSettings
from act_lightning.transfer.importance import FOLDER


@dataclass(frozen=True)
class Sweep:
    """What a sweep is made of.

    Attributes:
        settings: Section ``sweep``, without faults.
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

    def beginning(self) -> Beginning:
        """Where every point begins."""
        assert self.target.folder is not None, "a module of ours names its checkpoint"
        return Beginning(
            sources=self.sources,
            transfer=self.transfer,
            channels=self.target.inventory(),
            scores=self.folders_of_scores(),
            fisher=self.root / FOLDER,
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
        crew, kept = Crew(trainer.global_rank, trainer.world_size), ExitStack()
        with kept:
            opened: list[Ledger] = []
            crew.of_first(lambda: opened.append(self._begun(kept)))
            device = trainer.strategy.root_device
            laboratory = self.laboratory(device)
            Walk(crew, next(iter(opened), None), laboratory, self.settings, self.transfer).go()

    def _begun(self, while_in: ExitStack) -> Ledger:
        require_report_folder(self.folder / "report")  # before hours of work
        return self.ledger(while_in)

    def ledger(self, while_in: ExitStack) -> Ledger:
        """All points that were tried, which no other sweep changes until ``while_in`` is left.

        Raises:
            ActError: If the storage holds a sweep of something else, or another sweep uses it.
        """
        made_from, tuned_from = self.made_from(), self.tuned_from() if self.settings.fit else None
        while_in.enter_context(alone(self.storage))
        others = [method for method in self.settings.compared if method != ACT]
        own = {method: {f"scores of {method}": self._scores(method)} for method in others}
        return Ledger(self.storage, made_from, own, tuned_from, self.settings, self.seed)

    def laboratory(self, device: torch.device) -> Laboratory:
        """The target in memory, and the questions."""
        beginning = self.beginning()
        model = load_model(beginning.target, self.target.dtype, device)
        return Laboratory(model, Transfers(beginning), self.data, Questions(self.data))

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
