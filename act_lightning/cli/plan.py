"""The verbs ``plan`` and ``data inspect``: without Lightning, unless the config names one of its classes.

Importing Lightning takes three times as long as torch. So a parser comes first that knows all settings, but of section
``trainer`` only values that are no classes. What it refuses goes to LightningCLI, which knows the others, too, and says
what is wrong.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import lightning_utilities.core.rank_zero as rank_zero
from jsonargparse import ArgumentError, Namespace

from act_lightning.cli.config_merging import ConfigParser, redacted_issues
from act_lightning.cli.next_step import print_next, run_options
from act_lightning.data.inspection import inspect, print_inspection
from act_lightning.data.section import DataSection
from act_lightning.defaults import SEED, is_first_process
from act_lightning.errors import raise_if_any
from act_lightning.escaping import TerminalFilter, escaped_warnings
from act_lightning.planning.checks import Run
from act_lightning.planning.plan import make_plan, print_plan
from act_lightning.sections import ModelSection, ProfileSection, TransferSection
from act_lightning.sweep.sweep_settings import SweepSettings

_SECTIONS = {"model": ModelSection, "data": DataSection, "profile": ProfileSection, "transfer": TransferSection}
_OTHER_PARSERS = ("-h", "--help", "--print_config")
_Precision = (
    Literal[64, 32, 16, "64", "32", "16", "bf16"]
    | Literal["16-true", "16-mixed", "bf16-true", "bf16-mixed", "32-true", "64-true"]
    | Literal["transformer-engine", "transformer-engine-float16"]
)
_Span = str | timedelta | dict[str, int]


@dataclass(frozen=True)
class TrainerSection:
    """Section ``trainer``, as Lightning's Trainer has it, without values that are objects of classes."""

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: list[int] | str | int = "auto"
    num_nodes: int = 1
    precision: _Precision | None = None
    logger: bool | None = None
    callbacks: Literal[None] = None
    fast_dev_run: int | bool = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: _Span | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | _Span | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: Literal[None] = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | Path | None = None
    enable_autolog_hparams: bool = True
    model_registry: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Plan, given what follows the verb, and return the exit status."""
    return _answer("plan", arguments)


def run_data(arguments: Sequence[str]) -> int:
    """Run ``data inspect`` or ``data translate``, and return the exit status."""
    if arguments and arguments[0] == "inspect":
        return _answer("inspect", arguments[1:])
    from act_lightning.cli import lightning_cli

    return lightning_cli.run_data(arguments)


def _answer(verb: Literal["plan", "inspect"], arguments: Sequence[str]) -> int:
    config = None if {*_OTHER_PARSERS} & {*arguments} else _parse(verb, arguments)
    if config is None:
        from act_lightning.cli import lightning_cli

        return lightning_cli.main([verb, *arguments])
    parsed, made = config
    raise_if_any(redacted_issues(parsed))
    run = Run(
        made.model,
        made.data,
        made.profile,
        made.transfer,
        parsed.trainer.as_dict(),
        parsed.seed_everything,
        None if parsed.ckpt_path is None else str(parsed.ckpt_path),
        bool(parsed.verify),
        bool(parsed.get("overwrite")),
        made.get("sweep"),
    )
    with _messages():
        return answer(verb, run, parsed, arguments)


def answer(verb: str, run: Run, options: Namespace, arguments: Sequence[str] | None) -> int:
    """Print the plan of a run, or what its data look like.

    Args:
        verb: ``plan`` or ``inspect``.
        run: The sections of the config.
        options: Those of the verb.
        arguments: What was given to the verb; with them, the command that comes next is printed.

    Returns:
        The exit status: 1 if the plan holds an error.
    """
    status, follows = 0, "plan"
    if verb == "inspect":
        level = rank_zero.log.level
        rank_zero.log.setLevel(logging.WARNING)  # the counts of every set are in the table
        try:
            print_inspection(inspect(run.data), as_json=options.json)
        finally:
            rank_zero.log.setLevel(level)
    else:
        follows = options["for"]
        status = print_plan(make_plan(run, follows, options.calibrate), as_json=options.json)
    if arguments and not status and not options.json:
        print_next(follows, *run_options(arguments))
    return status


def _parse(verb: str, arguments: Sequence[str]) -> tuple[Namespace, Namespace] | None:
    """The config as values, and with its sections as objects; ``None`` if LightningCLI has to take over."""
    parser = ConfigParser(exit_on_error=False, add_help=False, print_config=None)
    parser.add_config_option()
    parser.add_argument("--seed_everything", type=bool | int, default=SEED)
    for name, section in _SECTIONS.items():
        parser.add_class_arguments(section, name)
    parser.add_class_arguments(TrainerSection, "trainer", instantiate=False)
    for name in ("data", "profile"):
        parser.link_arguments("model.target", f"{name}.target")
        parser.link_arguments("model.revision", f"{name}.revision")
    parser.add_argument("--ckpt_path", type=str | Path | None)
    parser.add_argument("--weights_only", type=bool | None)
    parser.add_argument("--verify", action="store_true", default=None)
    parser.add_argument("--json", action="store_true")
    if verb == "plan":
        parser.add_class_arguments(SweepSettings, "sweep")
        parser.add_argument("--overwrite", action="store_true")
        parser.add_argument("--for", type=Literal["fit", "merge", "profile", "sweep"], default="fit")
        parser.add_argument("--calibrate", action="store_true")
    try:
        parsed = parser.parse_args(list(arguments))
        # the second in the oldest supported jsonargparse, deprecated in the newest
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        return parsed, instantiate(parsed)
    except (ValueError, ArgumentError):  # an ActError is a ValueError
        return None


@contextmanager
def _messages() -> Iterator[None]:
    """Write messages and warnings as lines of text to standard error, as Lightning does once it is imported."""
    rank_zero.rank_zero_only.rank = int(not is_first_process())  # type: ignore[attr-defined]  # as Lightning sets it
    handler, logger = logging.StreamHandler(sys.stderr), rank_zero.log
    handlers = [handler, *logging.getLogger("transformers").handlers, *logging.getLogger("huggingface_hub").handlers]
    for each in handlers:
        each.addFilter(_FILTER)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(), escaped_warnings():
            yield
    finally:
        logger.removeHandler(handler)


_FILTER = TerminalFilter()
