"""The verb ``merge``: without a Trainer where nothing has to be profiled, else through LightningCLI.

Importing Lightning and transformers takes longer than a merge from saved scores. So a parser that knows only the
settings of such a merge comes first. What it refuses, and every merge with an issue, goes to LightningCLI, which knows
all settings and reports all issues in one message.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, Namespace

from act_lightning.cards.card import new_card, rebuild_card
from act_lightning.cards.record import CARD
from act_lightning.checkpoints.compatibility import sibling_issues
from act_lightning.checkpoints.export import FileContent, output_issues
from act_lightning.checkpoints.files import check_writable, no_wider_than, write_file
from act_lightning.checkpoints.lock import lock_root
from act_lightning.checkpoints.model_spec import read_model_spec
from act_lightning.checkpoints.models import locate, resolve_dtype
from act_lightning.checkpoints.streaming import merge_checkpoint
from act_lightning.checkpoints.weight_files import identify
from act_lightning.cli.config_merging import ConfigParser
from act_lightning.cli.next_step import print_next
from act_lightning.console import format_bytes
from act_lightning.defaults import LARGEST_SEED, SEED, is_first_process
from act_lightning.errors import ActError, raise_if_any
from act_lightning.escaping import terminal_text
from act_lightning.merging import merging_method
from act_lightning.scorers import scorer_of
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan, prepare, target_check
from act_lightning.transfer.selection import selection_issues
from act_lightning.transfer.settings import (
    AbilitySource,
    TransferSettings,
    source_issues,
    source_ratios,
    zero_scale_issues,
)
from act_lightning.transfer.summary import describe_transfer, mask_issues, rounding_issues, with_outcome


@dataclass(frozen=True)
class ModelSection:
    """The part of section ``model`` that matters without training, as in ``AbilityTransferModule``."""

    target: str
    revision: str | None = None
    dtype: str = "auto"
    export_dtype: str = "auto"


@dataclass(frozen=True)
class ProfileSection:
    """The part of section ``profile`` that saved scores leave without effect, and the sources."""

    sources: list[AbilitySource]
    tokens_per_batch: int = 8192
    chunks: int = 0
    stop_when_stable: float | None = None


@dataclass(frozen=True)
class TransferSection(TransferSettings):
    """Section ``transfer``, as in ``MaskedTaskVectorInjection``."""

    scores: str | None = None


@dataclass(frozen=True)
class TrainerSection:
    """The part of section ``trainer`` that a merge on the CPU can follow or ignore."""

    default_root_dir: str
    accelerator: str = "auto"
    accumulate_grad_batches: int = 1
    max_epochs: int | None = None
    precision: str | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None


SECTIONS = {"model": ModelSection, "profile": ProfileSection, "transfer": TransferSection, "trainer": TrainerSection}


def main(arguments: list[str]) -> int:
    """Merge, given what follows the verb, and return the exit status.

    Raises:
        ActError: If a weight is NaN or infinite, or the disk is full; or as LightningCLI.
    """
    with ExitStack() as lock:
        merge = merge_without_trainer(arguments, lock)
        if merge is not None:
            print(terminal_text(merge.write()), file=sys.stderr)
            merged = merge.root / "merged"
            print_next("patch", "make", "--base", merge.target, "--tuned", merged, "--out", f"{merged}.safetensors")
            return 0
    from act_lightning.cli import lightning_cli

    return lightning_cli.main(["merge", *arguments])


@dataclass(frozen=True)
class Merge:
    """A merge that is ready to be written to ``<root>/merged``.

    Attributes:
        recipe: The run's config as YAML, for the card.
        export_dtype: Precision of the written weights; ``auto``: as the target is stored.
        device: Where rows are merged; by default the CPU.
        overwrite: Whether an earlier merge may be replaced, once the new one is complete.
    """

    root: Path
    target: Path
    plan: TransferPlan
    transfer: PreparedTransfer
    recipe: str
    export_dtype: str = "auto"
    device: torch.device | None = None
    overwrite: bool = False

    def write(self) -> str:
        """Write ``<root>/merged`` and ``<root>/transfer.json``, and return a summary for the user.

        Raises:
            ActError: If a weight is NaN or infinite, the target is not the one that was measured, or the disk is full;
                nothing is left behind then.
        """
        output, report = self.root / "merged", self.transfer.report
        issues = mask_issues(self.plan, self.transfer)
        card = new_card(str(self.target), self.recipe, report, "merge")
        auto = self.export_dtype == "auto"
        dtype = None if auto else resolve_dtype(self.export_dtype, self.target, "model.export_dtype")
        folders = [source.folder for source in self.transfer.sources]
        with no_wider_than(*folders), self.transfer.injection(dtype) as injection:

            def record() -> str:
                outcome = with_outcome(report, injection.rounding, issues + rounding_issues(injection.rounding))
                return json.dumps(outcome, indent=2) + "\n"

            files: dict[str, FileContent] = {CARD: card, "transfer.json": record}
            check = target_check(self.plan)
            sha256 = merge_checkpoint(output, self.target, injection, dtype, files, self.device, self.overwrite, check)
            bytes_read = injection.bytes_read
        write_file(output / CARD, rebuild_card(output, sha256=sha256))
        write_file(self.root / "transfer.json", record())
        issues += rounding_issues(injection.rounding)
        lines = [describe_transfer(report), *(f"{issue.level}: {issue}" for issue in issues)]
        lines += [f"{format_bytes(bytes_read)} of the sources' tensors read", f"merged model written to {output}"]
        return "\n".join(lines)


def merge_without_trainer(arguments: list[str], lock: ExitStack) -> Merge | None:
    """Prepare the merge that the arguments describe, or return ``None`` where LightningCLI has to take over.

    Args:
        arguments: What follows the verb.
        lock: Holds the lock of the run's folder, once the arguments are read.

    Raises:
        ActError: Another process holds that lock.
    """
    if not is_first_process():  # LightningCLI knows what each process of several has to do
        return None
    parser = ConfigParser(exit_on_error=False, add_help=False, print_config=None)
    parser.add_config_option()
    parser.add_argument("--seed_everything", type=int, default=SEED)
    parser.add_argument("--verify", action="store_true", default=None)
    parser.add_argument("--overwrite", action="store_true")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    try:
        config = parser.parse_args(arguments)
        overwrite = config.pop("overwrite")
        recipe = parser.dump(config, skip_none=True)
        config = parser.instantiate_classes(config)
    except (ActError, ArgumentError):
        return None
    root = Path(config.trainer.default_root_dir).expanduser()
    if check_writable(root, "trainer.default_root_dir"):
        return None
    lock.enter_context(lock_root(root, "merge"))
    try:
        return _prepare(config, recipe, root, overwrite)
    except ActError:
        return None


def _prepare(config: Namespace, recipe: str, root: Path, overwrite: bool) -> Merge | None:
    """Check the settings and models, read the scores and select the channels; ``None`` if that takes a Trainer.

    Raises:
        ActError: If anything is wrong.
    """
    model, sources, transfer, trainer = config.model, config.profile.sources, config.transfer, config.trainer
    profiles = scorer_of(transfer.selection) is not None and not transfer.scores
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.accelerator.is_available())
    if profiles or merging_method(transfer.method).needs_fisher or not on_cpu or config.verify:
        return None
    target = locate(model.target, model.revision)
    folders = [locate(source.model, source.revision, "profile.sources", adapters=True) for source in sources]
    channels = read_model_spec(target).channels
    if channels is None or not 0 <= config.seed_everything <= LARGEST_SEED:
        return None
    for dtype in (model.dtype, model.export_dtype):
        resolve_dtype(dtype, target)
    issues = source_issues(sources) + zero_scale_issues(transfer, sources) + transfer.issues()
    issues += output_issues(root / "merged", target, "trainer.default_root_dir", folders, overwrite)
    raise_if_any(issues)
    issues = selection_issues(channels, transfer, source_ratios(sources, transfer.ratio))
    raise_if_any(issues + [issue for folder in folders for issue in sibling_issues(target, folder, "profile.sources")])
    scores, digests = Path(transfer.scores) if transfer.scores else None, [identify(target).digest]
    plan = TransferPlan(transfer, sources, channels, digests, config.seed_everything, target, scores)
    return Merge(root, target, plan, prepare(plan), recipe, model.export_dtype, overwrite=overwrite)
