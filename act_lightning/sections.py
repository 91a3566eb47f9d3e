"""Sections ``model``, ``profile`` and ``transfer`` of a config: their settings, and what is wrong with them.

The LightningModule and the callbacks of these sections inherit from the classes here, which import no Lightning and no
code of a model, so that a plan starts fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from act_lightning.channels import ChannelInventory
from act_lightning.defaults import EVERY_MODULE, RATIO, SCALE, TRANSFORMERS, VLLM
from act_lightning.errors import ConfigIssue
from act_lightning.merging.method import MergingMethod
from act_lightning.profiling.memory import PairSettings
from act_lightning.profiling.samples import Sampling
from act_lightning.scorers.scorer import Scorer
from act_lightning.training.attention_compile import attention_compile_issues
from act_lightning.training.optimizers import optimizer_issues
from act_lightning.transfer.selection import selection_issues
from act_lightning.transfer.settings import (
    AbilitySource,
    Scope,
    Share,
    TransferSettings,
    source_issues,
    source_ratios,
    weight_issues,
)

_DTYPES = ("auto", "float32", "bfloat16", "float16")


class ModelSection:
    """Section ``model``; its settings are those of ``AbilityTransferModule``."""

    def __init__(
        self,
        target: str,
        revision: str | None = None,
        dtype: str = "auto",
        export_dtype: str = "auto",
        learning_rate: float = 2.0e-5,
        optimizer: str | dict[str, Any] = "adam",
        lr_scheduler: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        generator: str = TRANSFORMERS,
        generator_args: dict[str, Any] = {},  # noqa: B006  # a default that a printed config shows
        attention: str = "auto",
        compile: bool | dict[str, Any] = False,
        router_aux_loss_coef: float = 0.0,
    ) -> None:
        super().__init__()
        self.target = target
        self.revision = revision
        self.weights_dtype = dtype
        self.export_dtype = export_dtype
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.gradient_checkpointing = gradient_checkpointing
        self.router_aux_loss_coef = router_aux_loss_coef
        self.generator = generator
        self.generator_args = generator_args
        self.attention = attention
        self.compile_setting = compile
        self.answers_whole_sets = generator == VLLM

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings, without looking at files."""
        issues = optimizer_issues(self.optimizer, self.lr_scheduler, self.learning_rate)
        problem = f"must be one of {', '.join(_DTYPES)}"
        for name, value in (("dtype", self.weights_dtype), ("export_dtype", self.export_dtype)):
            if value not in _DTYPES:
                issues.append(ConfigIssue(f"model.{name}", value, problem, "Choose one."))
        issues += attention_compile_issues(self.attention, self.compile_setting)
        if not (math.isfinite(self.router_aux_loss_coef) and self.router_aux_loss_coef >= 0):
            name, problem = "model.router_aux_loss_coef", "must be a finite number of at least 0"
            issues.append(ConfigIssue(name, self.router_aux_loss_coef, problem, "Try 0.001, or leave it out."))
        setting, arguments = "model.generator", self.generator_args
        if self.generator not in (TRANSFORMERS, VLLM):
            problem = f"must be one of {TRANSFORMERS}, {VLLM}"
            issues.append(ConfigIssue(setting, self.generator, problem, "Choose one."))
        if self.generator == VLLM and find_spec(VLLM) is None:
            hint = "Write pip install 'act-lightning[vllm]', on Linux with a GPU, or choose transformers."
            issues.append(ConfigIssue(setting, self.generator, "must be installed", hint))
        if arguments and self.generator != VLLM:
            problem = f"has no meaning where model.generator is {self.generator}"
            hint = "Leave it out, or set model.generator to vllm."
            issues.append(ConfigIssue(f"{setting}_args", dict(arguments), problem, hint))
        for name in ("model", "tokenizer", "generation_config", "trust_remote_code"):
            if name in arguments:
                problem = f"must not hold {name}, which is set for it"
                hint = "Leave it out; model.target names the model."
                issues.append(ConfigIssue(f"{setting}_args", arguments[name], problem, hint))
        return issues


class ProfileSection:
    """Section ``profile``; its settings are those of ``ActivationDifferenceProfiler``."""

    def __init__(
        self,
        sources: list[AbilitySource] | None = None,
        tokens_per_batch: int = 8192,
        target: str | None = None,
        revision: str | None = None,
        placement: str = "auto",
        quantization: str | None = None,
        chunks: int = 0,
        stop_when_stable: float | None = None,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.tokens_per_batch = tokens_per_batch
        self.target = target
        self.revision = revision
        self.placement = placement
        self.quantization = quantization
        self.chunks = chunks
        self.stop_when_stable = stop_when_stable

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings, without looking at files."""
        issues = source_issues(self.sources)
        if self.tokens_per_batch < 1:
            problem = "must be at least 1"
            issues.append(ConfigIssue("profile.tokens_per_batch", self.tokens_per_batch, problem, "Try 8192."))
        issues += PairSettings(self.placement, self.quantization, self.tokens_per_batch).issues()
        return issues + self.sampling(TransferSettings()).issues()

    def sampling(self, settings: TransferSettings) -> Sampling:
        """In which chunks samples are read, and when to stop, given how a transfer will select."""
        return Sampling(settings, self.chunks, self.stop_when_stable)


class TransferSection:
    """Section ``transfer``; its settings are those of ``MaskedTaskVectorInjection``."""

    def __init__(
        self,
        ratio: float = RATIO,
        share: Share = "channels",
        scale: float = SCALE,
        selection: str | Scorer = "activation",
        scope: Scope = "global",
        include: Sequence[str] = EVERY_MODULE,
        exclude: Sequence[str] = (),
        method: str | MergingMethod = "task_arithmetic",
        scores: str | None = None,
    ) -> None:
        super().__init__()
        self.settings = TransferSettings(ratio, share, scale, selection, scope, tuple(include), tuple(exclude), method)
        self.scores = scores

    @property
    def needs_profiling(self) -> bool:
        """Whether scores are needed and not given."""
        return self.settings.scorer is not None and self.scores is None

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings, without looking at a model."""
        issues = self.settings.issues()
        if self.scores is not None and not Path(self.scores).is_dir():
            problem = "must be a folder of scores"
            issues.append(ConfigIssue("transfer.scores", self.scores, problem, "Run `profile` first."))
        return issues

    def selection_issues(self, channels: ChannelInventory, sources: Sequence[AbilitySource]) -> list[ConfigIssue]:
        """What is wrong with the selection, given the target's channels and the sources."""
        issues = selection_issues(channels, self.settings, source_ratios(sources, self.settings.ratio))
        return issues if self.settings.issues() else issues + weight_issues(self.settings, sources)

    @property
    def needs_data(self) -> bool:
        """Whether the samples of the sources' abilities are needed."""
        scorer = self.settings.scorer
        return self.settings.needs_fisher or (self.scores is None and scorer is not None and scorer.needs_samples)


def fsdp1_issues(mixed_precision: object, cpu_offload: object, accumulate: int) -> list[ConfigIssue]:
    """What of FSDP1's settings would train another model than one process does.

    Args:
        mixed_precision: The setting of the strategy; ``None`` leaves it to ``trainer.precision``.
        cpu_offload: Whether parameters and gradients are kept in the host's memory.
        accumulate: Micro-batches of an update. FSDP1 can't add to gradients in the host's memory, and before it reduces
            them, it adds them up in half precision.
    """
    issues = []
    if mixed_precision is not None:
        problem, hint = "must be left out: trainer.precision decides", "Remove it, or write precision: bf16-mixed."
        issues.append(ConfigIssue("trainer.strategy.mixed_precision", str(mixed_precision), problem, hint))
    if cpu_offload and accumulate > 1:
        problem = f"must be false if an update has several micro-batches (accumulate_grad_batches: {accumulate})"
        hint = "Raise data.batch_size and write accumulate_grad_batches: 1; or use FSDP2."
        issues.append(ConfigIssue("trainer.strategy.cpu_offload", True, problem, hint))
    return issues
