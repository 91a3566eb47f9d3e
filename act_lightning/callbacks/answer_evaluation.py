"""Evaluation by generation as a callback: in any Trainer, for any module that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from act_lightning.architecture import require_language_model
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.checkpoints.weight_files import identify_module
from act_lightning.console import progress_bar
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.evaluation.evaluator import Evaluator, publish
from act_lightning.evaluation.generation import generate_answers
from act_lightning.evaluation.results import EvaluatedModel, SetResult
from act_lightning.evaluation.sandbox import sandbox_issues
from act_lightning.training.sharding import back_on_device, run_in_strategy
from act_lightning.training.together import collective_hook


class AnswerEvaluation(RootWriter):
    """Has the model answer every evaluation set when fitting ends, and writes what ``test`` would write.

    The module is any LightningModule that holds one Hugging Face causal language model.

    Args:
        data: Holds the evaluation sets; by default the Trainer's data module, if it is an AbilityDataModule.

    Attributes:
        results: The results by set, after fitting.
    """

    def __init__(self, data: AbilityDataModule | None = None) -> None:
        self.data = data
        self.results: Mapping[str, SetResult] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the sets before any work is done, so that their issues show."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            data = self._evaluation_data(trainer)
            raise_if_any(data.issues("test") + sandbox_issues(data.evaluations))
            _ = data.prompts

    @collective_hook
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer, grade, print and write."""
        data, model = self._evaluation_data(trainer), require_language_model(pl_module)
        data.trainer = trainer  # it gives each process its share of the rows
        tokens = data.evaluation_tokens
        evaluator = Evaluator(data)
        answer = partial(generate_answers, model, data.tokenizer, tokens_per_batch=tokens)
        with isolate_rng(), back_on_device(trainer):
            for set_index, loader in enumerate(data.test_dataloader()):
                name = data.evaluation_names[set_index]
                for batch in progress_bar(loader, desc=f"answering {name}", disable=not trainer.is_global_zero):
                    run_in_strategy(trainer, partial(evaluator.evaluate_batch, answer, batch, set_index))
        self.results, records = evaluator.gather()
        if trainer.is_global_zero:
            evaluated = EvaluatedModel(str(model.name_or_path), identify_module(model, verify=True).digest)
            publish(Path(trainer.default_root_dir) / "evaluations", evaluated, self.results, records)

    def _evaluation_data(self, trainer: L.Trainer) -> AbilityDataModule:
        data = self.data or getattr(trainer, "datamodule", None)
        if isinstance(data, AbilityDataModule):
            return data
        hint = "Give the callback one, AnswerEvaluation(data=AbilityDataModule(evaluations=…, target=…))."
        raise ActError(ConfigIssue("data", type(data).__name__, "must be an AbilityDataModule", hint))
