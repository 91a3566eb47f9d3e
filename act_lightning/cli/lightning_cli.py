"""When a run's config is saved beside its logs."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

import act_lightning
from act_lightning.analysis.causes_settings import CausesSettings
from act_lightning.callbacks.export import HuggingFaceExport
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.preemption import leaving_at_sigterm
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.config_merging import ConfigParser, MergeConfigFiles
from act_lightning.cli.trainer_defaults import default_callbacks, logger_issues, trainer_defaults
from act_lightning.cli.verbs import remove_empty_run, run_causes, run_merge, run_profile, run_sweep, write_predictions
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.inspection import inspect, print_inspection
from act_lightning.defaults import SEED
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.module import AbilityTransferModule
from act_lightning.planning.checks import deepspeed_issues, run_issues
from act_lightning.planning.plan import make_plan, print_plan
from act_lightning.planning.run import Run
from act_lightning.sweep.settings import SweepSettings


class SaveConfigLate(SaveConfigCallback):
    """Saves the config beside the logs; in a fit when training starts, so that a run that is refused leaves nothing."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save before validation, testing and prediction."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before training."""
        super().setup(trainer, pl_module, "fit")


# 2026-11-23: lightning 2.6.6 calls methods that jsonargparse 4.53 calls old; goes with a newer lightning.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
_NOT_FOR_USERS = (
    "LightningCLI's args parameter is intended",  # a program may call main with arguments of its own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # 2026-11-23: lightning 2.6.6 on torch 2.13
)
INSPECT = "Show labeled samples in color, lengths and losses of every set, and prompts that two sets share."
_OURS = ("profile", "merge", "sweep", "causes", "plan")
_OWN_VERBS = {verb: VERBS[verb].about for verb in _OURS} | {"inspect": INSPECT}
_WITHOUT_TRAINER = ("plan", "inspect")
_SWEEPING = ("sweep", "plan")
_WRITING = ("fit", "profile", "merge", "sweep", "causes")


class ActCLI(LightningCLI):
    """LightningCLI with the sections ``model``, ``data``, ``profile`` and ``transfer``, and verbs of our own.

    Args:
        arguments: Arguments; by default those of the process.

    Attributes:
        exit_status: 0 unless a plan found an error.
    """

    exit_status = 0

    def __init__(self, arguments: ArgsType = None) -> None:
        given = sys.argv[1:] if arguments is None else arguments
        self._spoken = set(given if isinstance(given, list) else self.subcommands())
        super().__init__(
            AbilityTransferModule,
            AbilityDataModule,
            parser_class=ConfigParser,
            save_config_callback=SaveConfigLate,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=SEED,
            auto_configure_optimizers=False,
            parser_kwargs={"description": act_lightning.__doc__},
            args=arguments,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose ``--config`` files add up."""
        parser: LightningArgumentParser = self.parser_class(prog=PROGRAM, **kwargs)
        parser.add_argument("-c", "--config", action=MergeConfigFiles, help="Path to a YAML file; may be repeated.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our sections; data module and profiler take the target from ``model``."""
        parser.add_lightning_class_args(ActivationDifferenceProfiler, "profile")
        parser.add_lightning_class_args(MaskedTaskVectorInjection, "transfer")
        for section in ("data", "profile"):
            parser.link_arguments("model.target", f"{section}.target")
            parser.link_arguments("model.revision", f"{section}.revision")
        parser.usage = "%(prog)s --config FILE [--config FILE …] [--section.key VALUE …]"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs and ours."""
        return LightningCLI.subcommands() | {verb: set() for verb in _OWN_VERBS}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add all verbs; Lightning's own method would look for ours among the Trainer's methods.

        Only verbs that are among the arguments get their options, which takes a tenth of a second for each.
        """
        self._subcommand_parsers = {}
        verbs = parser.add_subcommands()
        for verb in self.subcommands():
            spoken = verb in self._spoken
            own = self._prepare_subcommand_parser(L.Trainer, verb) if spoken else self.init_parser()
            self._subcommand_parsers[verb] = own
            verbs.add_subcommand(verb, own, help=_about(verb))

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        kwargs["description"] = _about(subcommand)
        if subcommand not in _OWN_VERBS:
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            parser.set_defaults(weights_only=True)  # a checkpoint holds no objects that run code when they are read
            if subcommand == "test":
                parser.set_defaults(verbose=False)  # which would print all metrics once more for every set
            return parser
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        for name, kind in (("ckpt_path", str), ("weights_only", bool)):  # which a config that fit has saved holds
            parser.add_argument(f"--{name}", type=kind | None, help="Taken from a config of `fit`; leave it out here.")
        if subcommand == "inspect":
            parser.usage = f"{PROGRAM} data inspect --config FILE [--config FILE …] [--section.key VALUE …] [--json]"
        if subcommand in _WITHOUT_TRAINER:
            parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
        if subcommand in _SWEEPING:
            parser.add_class_arguments(SweepSettings, "sweep")
        if subcommand == "causes":
            parser.add_class_arguments(CausesSettings, "causes")
        if subcommand == "plan":
            verbs = Literal["fit", "merge", "profile", "sweep"]
            parser.add_argument("--for", type=verbs, default="fit", help="The verb that is planned.")
            parser.add_argument("--calibrate", action="store_true", help="Measure this machine, and tell the time.")
        return parser

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint unread: the settings are those of the config."""

    def _set_seed(self) -> None:
        """Seed later, when the seed has been checked with everything else."""

    def instantiate_classes(self) -> None:
        """Make what the verb needs, after looking for all issues of meaning at once; some verbs need no Trainer."""
        verb = str(self.subcommand)
        config = self.config
        if verb == "fit" and self._get(config, "profile").sources:
            raise_if_any(deepspeed_issues(self._get(config, "trainer").as_dict()))
        if verb not in _WITHOUT_TRAINER:
            raise_if_any(logger_issues(self._get(config, "trainer").as_dict()))
        else:
            config = config.clone()
            config[verb].trainer = Namespace()
        self.config_init = self.parser.instantiate_classes(config)
        self.model, self.datamodule = self._get(self.config_init, "model"), self._get(self.config_init, "data")
        if verb not in _WITHOUT_TRAINER:
            raise_if_any(run_issues(self.run, verb))
            super()._set_seed()
            self.trainer = self.instantiate_trainer()

    @property
    def run(self) -> Run:
        """The sections of this run, with the trainer's settings as they were given."""
        profiler, transfer = self._get(self.config_init, "profile"), self._get(self.config_init, "transfer")
        trainer, seed = self._get(self.config, "trainer").as_dict(), self._get(self.config, "seed_everything")
        checkpoint = self._get(self.config, "ckpt_path")
        asked = {name: self._get(self.config_init, name) for name in ("sweep", "causes")}
        return Run(self.model, self.datamodule, profiler, transfer, trainer, seed, checkpoint, **asked)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer that logs, keeps ``checkpoints/last.ckpt`` and exports, unless the config says otherwise.

        Raises:
            ActError: If Lightning refuses the settings of section ``trainer``.
        """
        settings, made = self._get(self.config, "trainer"), self._get(self.config_init, "trainer")
        verb = str(self.subcommand)
        export = HuggingFaceExport(dtype=self.model.export_dtype, recipe=self.recipe())
        self.trainer_defaults = {"callbacks": default_callbacks(made, verb, export)}
        try:
            return super().instantiate_trainer(**trainer_defaults(made, self.run.root, verb), **kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            given = {key: settings.get(key) for key in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
            problem = f"must describe a Trainer that Lightning can build here ({error})"
            raise ActError(ConfigIssue("trainer", given, problem, "Correct the setting that is named.")) from error

    def recipe(self) -> str:
        """The run's config as YAML."""
        verb = str(self.subcommand)
        return str(self._parser(verb).dump(self.config[verb], skip_none=True))

    def _run_subcommand(self, subcommand: str) -> None:
        with remove_empty_run(self.run.root), self._ending_cleanly(subcommand):
            self._run_verb(subcommand)

    def _ending_cleanly(self, verb: str) -> AbstractContextManager[None]:
        return leaving_at_sigterm(self.trainer) if verb in _WRITING else nullcontext()

    def _run_verb(self, subcommand: str) -> None:
        if subcommand == "profile":
            run_profile(self.trainer, self.run)
        elif subcommand == "merge":
            run_merge(self.trainer, self.run, self.recipe())
        elif subcommand == "sweep":
            run_sweep(self.trainer, self.run, self.recipe())
        elif subcommand == "causes":
            run_causes(self.trainer, self.run)
        elif subcommand == "plan":
            given = self.config.plan
            self.exit_status = print_plan(make_plan(self.run, given["for"], given.calibrate), as_json=given.json)
        elif subcommand == "inspect":
            print_inspection(inspect(self.run.data), as_json=self.config.inspect.json)
        elif subcommand == "predict":
            predictions = self.trainer.predict(**self._prepare_subcommand_kwargs(subcommand))
            write_predictions(self.trainer, self.run, predictions or [])
        else:
            super()._run_subcommand(subcommand)


def _about(verb: str) -> str:
    return _OWN_VERBS.get(verb) or VERBS[verb].about


def main(arguments: ArgsType) -> int:
    """Run a verb with its config.

    Args:
        arguments: The verb and its options, or a config as a dict.

    Returns:
        The exit status: 0 for success.
    """
    with warnings.catch_warnings():
        for message in _NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message)
        try:
            return ActCLI(arguments).exit_status
        except MisconfigurationException as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
