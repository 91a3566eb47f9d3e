"""LightningCLI for the verbs that take the config of a run: ``fit``, ``profile``, ``merge``, ``plan`` and so on."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

import act_lightning
from act_lightning.analysis.causes_settings import CausesSettings
from act_lightning.callbacks.comparison import FitEvaluation, TransferComparison
from act_lightning.callbacks.export import HuggingFaceExport
from act_lightning.callbacks.fail_together import FailTogether
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.last_checkpoint import LastCheckpoint
from act_lightning.callbacks.preemption import PreemptionCheckpoint, exiting_at_signals
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.callbacks.progress import LoopProgress
from act_lightning.cards.record import CARD
from act_lightning.checkpoints.files import check_writable, wrap_disk_errors
from act_lightning.checkpoints.lock import lock_root
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.config_merging import ConfigParser, redacted_issues
from act_lightning.cli.next_step import print_next, run_options
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.cli.plan import answer
from act_lightning.cli.verbs import TrainerRun, run_causes, run_merge, run_profile, run_sweep, write_predictions
from act_lightning.console import Console
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.defaults import SEED
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.escaping import TerminalFilter, escaped_warnings, file_name, terminal_text
from act_lightning.evaluation.tables import ModelRow, validation_table
from act_lightning.module import AbilityTransferModule
from act_lightning.planning.checks import deepspeed_issues, run_issues
from act_lightning.sweep.sweep_settings import SweepSettings
from act_lightning.training.checkpoint_io import TrainingStateIO
from act_lightning.training.lightning_compat import callbacks_of, has_own_checkpoint_io
from act_lightning.training.together import all_fail_together
from act_lightning.transfer.settings import AbilitySource, TransferSettings

# 2026-11-23: lightning 2.6.6 calls methods that jsonargparse 4.53 has deprecated; goes with a newer lightning.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
_IGNORED_WARNINGS = (
    "LightningCLI's args parameter is intended",  # a program may call main with arguments of its own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # 2026-11-23: lightning 2.6.6 on torch 2.13
)
# Lightning's tip to install a logger of its own, accelerators that are not there, the end of the last epoch, and what
# every process says of itself.
_ROUTINE_MESSAGES = re.compile(
    r"litlogger|^[GT]PU available: False|^`Trainer.fit` stopped: `max_epochs=|^Initializing distributed: "
    r"|^\[rank: [1-9]\d*\] Seed set"
)
_INSPECT = "Show labeled samples in color, lengths and losses of every set, and prompts that two sets share."
_TRANSLATE = "Translate abilities with any OpenAI-compatible endpoint, and continue where an earlier run ended."
_OVERWRITE = "Replace an earlier export, and the checkpoint of an earlier fit; other files are never replaced."
_OWN_VERBS = ("profile", "merge", "sweep", "causes", "plan", "inspect")
_WITHOUT_TRAINER = ("plan", "inspect")
_TERMINAL_FILTER = TerminalFilter()
_NOT_IN_OTHER_FITS = ("TransferComparison", "AnswerEvaluation", "HuggingFaceExport", "Checkpoint")
_LOG_FOLDERS, _TENSORBOARD_FILES = "logs/version_*", "events.out.tfevents.*"


class LightningConfigParser(ConfigParser, LightningArgumentParser):
    """LightningCLI's parser, with the ``--config`` files and messages of :class:`ConfigParser`."""

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Check a config, in which loggers without a folder of their own have that of the run."""
        for section in (namespace, *(value for value in vars(namespace).values() if isinstance(value, Namespace))):
            trainer = section.get("trainer")
            for logger in _as_list(trainer.get("logger")) if isinstance(trainer, Namespace) else ():
                arguments = logger.get("init_args") if isinstance(logger, Namespace) else None
                if isinstance(arguments, Namespace) and arguments.get("save_dir", "given") in (None, "."):
                    arguments.save_dir = trainer.get("default_root_dir") or "."
        super().validate(namespace, *args, **kwargs)


class SaveConfigLate(SaveConfigCallback):
    """Saves the config beside the logs; in a fit when training starts, so that a run that is refused leaves nothing."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save before validation, testing and prediction."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before training."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give all loggers the settings as hyperparameters, without secrets; sources are named as in ``scores/``."""
        if not self.config.trainer.enable_autolog_hparams:
            return
        parameters = yaml.safe_load(self.parser.dump(self.config, skip_none=True))
        if sources := parameters["profile"].get("sources"):
            labels = [AbilitySource(source["model"], [], name=source.get("name")).label for source in sources]
            parameters["profile"]["sources"] = dict(zip(labels, sources, strict=True))
        for logger in trainer.loggers:
            logger.log_hyperparams(parameters)


class ActCLI(LightningCLI):
    """LightningCLI with the sections ``model``, ``data``, ``profile`` and ``transfer``, and further verbs.

    Attributes:
        exit_status: 0 unless a plan found an error.
    """

    exit_status = 0

    def __init__(self, arguments: ArgsType = None, says_next: bool = True) -> None:
        words = sys.argv[1:] if arguments is None else arguments
        self._arguments = words if says_next and isinstance(words, list) else []
        self._requested_verbs = set(words if isinstance(words, list) else self.subcommands())
        with ExitStack() as self._lock:
            super().__init__(
                AbilityTransferModule,
                AbilityDataModule,
                parser_class=LightningConfigParser,
                save_config_callback=SaveConfigLate,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=SEED,
                auto_configure_optimizers=False,
                parser_kwargs={"description": act_lightning.__doc__},
                args=arguments,
            )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser whose ``--config`` files are merged."""
        parser = LightningConfigParser(prog=PROGRAM, **kwargs)
        parser.add_config_option()
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections ``profile`` and ``transfer``; data module and profiler take the target from ``model``."""
        parser.add_lightning_class_args(ActivationDifferenceProfiler, "profile")
        parser.add_lightning_class_args(MaskedTaskVectorInjection, "transfer")
        for section in ("data", "profile"):
            parser.link_arguments("model.target", f"{section}.target")
            parser.link_arguments("model.revision", f"{section}.revision")
        parser.usage = "%(prog)s --config FILE [--config FILE …] [--section.key VALUE …]"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs, and those that no method of the Trainer answers."""
        return LightningCLI.subcommands() | {verb: set() for verb in _OWN_VERBS}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add all verbs; Lightning's own method would look for ours among the Trainer's methods.

        Only verbs that are among the arguments get their options, which takes a tenth of a second for each.
        """
        self._subcommand_parsers = {}
        subcommands = parser.add_subcommands()
        for verb in self.subcommands():
            about = _INSPECT if verb == "inspect" else VERBS[verb].about
            requested = verb in self._requested_verbs
            subparser = self._verb_parser(verb, about) if requested else self.init_parser()
            if requested and verb in ("fit", "merge", "plan"):
                subparser.add_argument("--overwrite", action="store_true", help=_OVERWRITE)
            self._subcommand_parsers[verb] = subparser
            subcommands.add_subcommand(verb, subparser, help=about)

    def _verb_parser(self, verb: str, about: str) -> LightningArgumentParser:
        if verb not in _OWN_VERBS:
            parser = self._prepare_subcommand_parser(L.Trainer, verb, description=about)
            parser.set_defaults(weights_only=True)  # a checkpoint must not run code when it is read
            if verb in ("validate", "test"):
                parser.set_defaults(verbose=False)  # which would print all metrics once more for every set
            _add_options(parser)
            return parser
        parser = self.init_parser(description=about)
        self._add_arguments(parser)
        for name, kind in (("ckpt_path", str), ("weights_only", bool)):  # in every config that fit has saved
            parser.add_argument(f"--{name}", type=kind | None, help="Taken from a config of `fit`; leave it out here.")
        _add_options(parser)
        if verb == "inspect":
            parser.usage = f"{PROGRAM} data inspect --config FILE [--config FILE …] [--section.key VALUE …] [--json]"
        if verb in _WITHOUT_TRAINER:
            parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
        if verb in ("sweep", "plan"):
            parser.add_class_arguments(SweepSettings, "sweep")
        if verb == "causes":
            parser.add_class_arguments(CausesSettings, "causes")
        if verb == "plan":
            planned = Literal["fit", "merge", "profile", "sweep"]
            parser.add_argument("--for", type=planned, default="fit", help="The verb that is planned.")
            parser.add_argument("--calibrate", action="store_true", help="Measure this machine, and forecast the time.")
        return parser

    def _parse_ckpt_path(self) -> None:
        """Do not read hyperparameters from the checkpoint: the settings are those of the config."""

    def _set_seed(self) -> None:
        """Do nothing yet: the seed is set in ``instantiate_classes``, when all settings have been checked."""

    def instantiate_classes(self) -> None:
        """Lock the run's folder, instantiate the sections, check all settings, and make a Trainer if one is needed."""
        verb, config = str(self.subcommand), self.config
        raise_if_any(redacted_issues(config[verb]))
        self.overwrite = bool(config[verb].pop("overwrite", False))  # no setting of the run: recipes leave it out
        needs_trainer = verb not in _WITHOUT_TRAINER
        root = Path(self._get(config, "trainer").default_root_dir or ".").expanduser()
        if needs_trainer and not check_writable(root, "trainer.default_root_dir"):  # else that is an issue of the run
            self._lock.enter_context(lock_root(root, verb))
        if verb == "fit" and self._get(config, "profile").sources:
            raise_if_any(deepspeed_issues(self._get(config, "trainer").as_dict()))
        if needs_trainer:
            raise_if_any(logger_issues(self._get(config, "trainer").as_dict()))
        else:
            config = config.clone()
            config[verb].trainer = Namespace()
        try:
            self.config_init = self.parser.instantiate_classes(config)
        except ActError:
            raise
        except ValueError as error:  # of a class that a config names
            self.parser.error(str(error), error)
        self.model, self.datamodule = self._get(self.config_init, "model"), self._get(self.config_init, "data")
        if needs_trainer:
            raise_if_any(run_issues(self.run, verb))
            super()._set_seed()
            self.trainer = self.instantiate_trainer()

    @property
    def run(self) -> TrainerRun:
        """The sections of this run, with the Trainer's settings as they were given."""
        profiler, transfer = self._get(self.config_init, "profile"), self._get(self.config_init, "transfer")
        trainer, seed = self._get(self.config, "trainer").as_dict(), self._get(self.config, "seed_everything")
        checkpoint = self._get(self.config, "ckpt_path")
        optional = {name: self._get(self.config_init, name) for name in ("sweep", "causes")}
        verify, overwrite = bool(self._get(self.config, "verify")), self.overwrite
        return TrainerRun(
            self.model, self.datamodule, profiler, transfer, trainer, seed, checkpoint, verify, overwrite, **optional
        )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Make a Trainer that logs, keeps ``checkpoints/last.ckpt`` and exports, unless the config says otherwise.

        Raises:
            ActError: If Lightning refuses the settings of section ``trainer``.
        """
        export = HuggingFaceExport(dtype=self.model.export_dtype, recipe=self.recipe())
        section, root = self._get(self.config_init, "trainer"), self.run.root
        defaults, callbacks = trainer_defaults(section, root, str(self.subcommand), export)
        self.trainer_defaults = {"callbacks": callbacks}  # which follow those of the config
        try:
            trainer: L.Trainer = super().instantiate_trainer(**defaults, **kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            settings = self._get(self.config, "trainer")
            names = ("accelerator", "devices", "num_nodes", "strategy", "precision")
            problem = f"must describe a Trainer that Lightning can build here ({error})"
            value = {name: settings.get(name) for name in names}
            raise ActError(ConfigIssue("trainer", value, problem, "Correct the setting that is named.")) from error
        for export in callbacks_of(trainer, HuggingFaceExport):
            export.overwrite |= self.overwrite
        for last_checkpoint in callbacks_of(trainer, LastCheckpoint):
            last_checkpoint.overwrite |= self.overwrite
        for comparison in callbacks_of(trainer, TransferComparison):
            comparison.fits_again = True
        return trainer

    def after_validate(self) -> None:
        """Print what was measured, a line for each set."""
        log_dir = self.trainer.log_dir  # which all processes must ask for together
        if self.trainer.is_global_zero:
            Console().print(validation_table(self.trainer.callback_metrics))
            rank_zero_info(f"metrics written to {log_dir}")

    def after_fit(self) -> None:
        """Make the other fits of a comparison, then print its table."""
        for comparison in callbacks_of(self.trainer, TransferComparison):
            if comparison.other_fits:
                for label, settings in comparison.other_fits.items():
                    comparison.rows += self._fit_again(comparison, label, settings)
                comparison.publish(self.trainer)

    def _fit_again(
        self, comparison: TransferComparison, label: str, settings: TransferSettings | None
    ) -> list[ModelRow]:
        """Fit once more with another transfer, or with none, and evaluate it; nothing is exported or logged."""
        config, evaluation = self.config.clone(), FitEvaluation(label, comparison.ignored_sets)
        section, root = config.fit.trainer, self.run.root / "comparison" / file_name(label).lower()
        section.default_root_dir, section.logger, section.enable_checkpointing = str(root), False, False
        section.callbacks = [
            each for each in _as_list(section.callbacks) if not each.class_path.endswith(_NOT_IN_OTHER_FITS)
        ]
        other = copy.copy(self)
        other.config_init = self.parser.instantiate_classes(config)
        sections = other.config_init.fit
        profiler, other.save_config_callback = sections.profile, None
        if settings is None:
            profiler.sources = None
        else:
            profiler.sources = [replace(source, scale=None, ratio=None) for source in profiler.sources or []]
            sections.transfer = MaskedTaskVectorInjection.of(settings)
        super()._set_seed()
        defaults, _ = trainer_defaults(sections.trainer, root, "fit", evaluation)
        defaults["callbacks"] += [evaluation]
        other.trainer_defaults = {}
        other.trainer = LightningCLI.instantiate_trainer(other, **defaults)
        rank_zero_info(f"fitting once more, for the comparison: {label}")
        with all_fail_together(other.trainer.strategy):
            other.trainer.fit(sections.model, datamodule=sections.data)
        return evaluation.rows

    def recipe(self) -> str:
        """The run's config as YAML."""
        verb = str(self.subcommand)
        return str(self._parser(verb).dump(self.config[verb], skip_none=True))

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in _WITHOUT_TRAINER:
            self.exit_status = answer(subcommand, self.run, self.config[subcommand], self._arguments)
            return
        strategy = self.trainer.strategy
        root = self.run.root
        signals, together = exiting_at_signals(self.trainer), all_fail_together(strategy)
        with remove_empty_run(root), signals, together, wrap_disk_errors(root, "trainer.default_root_dir"):
            if subcommand == "profile":
                run_profile(self.trainer, self.run)
            elif subcommand == "merge":
                run_merge(self.trainer, self.run, self.recipe())
            elif subcommand == "sweep":
                run_sweep(self.trainer, self.run, self.recipe())
            elif subcommand == "causes":
                run_causes(self.trainer, self.run)
            elif subcommand == "predict":
                predictions = self.trainer.predict(**self._prepare_subcommand_kwargs(subcommand))
                write_predictions(self.trainer, self.run, predictions or [])
            else:
                super()._run_subcommand(subcommand)
        if self.trainer.is_global_zero and self._arguments:
            print_next(*self._next_command(subcommand))

    def _next_command(self, verb: str) -> list[str]:
        """The verb that may follow this one, and its options."""
        root, result = self.run.root, self.run.root / ("merged" if verb == "merge" else "model")
        evaluates, options = bool(self.datamodule.evaluations), run_options(self._arguments)
        of_result = [*run_options(self._arguments, "model.target", "model.revision"), f"--model.target={result}"]
        if verb in ("fit", "merge") and evaluates:
            return ["test", *of_result]
        if verb in ("fit", "merge") and not any(root.glob("scores*/*/*.safetensors")):
            out = f"{result}.safetensors"
            return ["patch", "make", "--base", str(self.model.target), "--tuned", str(result), "--out", out]
        if verb == "test":
            exported = any((root / name / CARD).is_file() for name in ("model", "merged"))
            return ["card", str(root)] if exported else ["fit", *options]
        if verb == "sweep" and (best := root / "sweep" / "best.yaml").is_file():
            return ["fit", "--config", str(best)]
        follows = {"profile": "merge", "predict": "test", "validate": "test" if evaluates else "fit"}
        return [follows.get(verb, "report"), *(options if verb in follows else [str(root)])]


def _add_options(parser: LightningArgumentParser) -> None:
    """Add the options that every verb accepts, because they stand in every config that a run has saved."""
    about = "Before work, compare the SHA-256 of whole weight files with those that saved scores were measured on."
    parser.add_argument("--verify", action="store_true", default=None, help=about)


def trainer_defaults(
    settings: Namespace, root: Path, verb: str, export: Callback
) -> tuple[dict[str, Any], list[Callback]]:
    """What section ``trainer``, with its objects instantiated, leaves open.

    Returns:
        Arguments of the Trainer, and callbacks that follow those of the config, unless it has one of their kind;
        ``export`` is for ``fit`` only.
    """
    defaults: dict[str, Any] = {}
    if settings.logger is None:  # both in one folder: logs/version_0 and so on
        table = CSVLogger(str(root), name="logs")
        defaults["logger"] = [table, TensorBoardLogger(str(root), name="logs", version=table.version)]
    if settings.log_every_n_steps is None:
        defaults["log_every_n_steps"] = 1  # updates are few
    if settings.enable_model_summary is None:
        defaults["enable_model_summary"] = False  # a model is one row of it
    if settings.max_epochs is None and settings.max_steps == -1 and settings.max_time is None:
        defaults["max_epochs"] = 1  # as in the paper; Lightning's default is 1000
    plugins, configured = _as_list(settings.plugins), _as_list(settings.callbacks)
    if not has_own_checkpoint_io(settings.strategy) and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        defaults["plugins"] = [*plugins, TrainingStateIO()]
    fits, saves = verb == "fit" and not settings.fast_dev_run, settings.enable_checkpointing is not False
    first: list[Callback] = [FailTogether()]  # these listen before profiling begins
    if settings.enable_progress_bar is not False and not any(isinstance(item, ProgressBar) for item in configured):
        first.append(LoopProgress())
    if fits and saves and not any(isinstance(callback, PreemptionCheckpoint) for callback in configured):
        first.append(PreemptionCheckpoint())
    defaults["callbacks"] = [*first, *configured]
    callbacks = [export] if fits and not any(type(item) is type(export) for item in configured) else []
    keeps_last = any(
        isinstance(item, LastCheckpoint) or (isinstance(item, ModelCheckpoint) and item.save_last and item.dirpath)
        for item in configured
    )
    return defaults, callbacks if keeps_last or not saves else [*callbacks, LastCheckpoint()]


def logger_issues(settings: Mapping[str, Any]) -> list[ConfigIssue]:
    """Find loggers whose package is not installed, in section ``trainer`` before its objects are instantiated."""
    loggers = [logger for logger in _as_list(settings.get("logger")) if isinstance(logger, Mapping)]
    return [
        ConfigIssue("trainer.logger", path, "needs the package wandb, which is not installed", "Run: pip install wandb")
        for path in (str(logger["class_path"]) for logger in loggers)
        if path.rpartition(".")[2] == "WandbLogger" and find_spec("wandb") is None
    ]


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401 - a list, one of its items, or None
    return list(value) if isinstance(value, list) else [value] if value else []


@contextmanager
def remove_empty_run(root: Path) -> Iterator[None]:
    """Remove the empty log folders that Lightning made for a run, if it is refused with an :class:`ActError`."""
    root_existed, earlier = root.is_dir(), set(root.glob(_LOG_FOLDERS))
    try:
        yield
    except ActError:
        folders = set(root.glob(_LOG_FOLDERS))
        for folder in folders - earlier:
            files = list(folder.iterdir())
            if all(file.match(_TENSORBOARD_FILES) for file in files):  # nothing was logged: CSV begins with a value
                for file in files:
                    file.unlink(missing_ok=True)
        for folder in (*folders, root / "logs", *([] if root_existed else [root])):
            with suppress(OSError):  # it is not empty, or another process removed it
                folder.rmdir()
        raise


def main(arguments: ArgsType, says_next: bool = True) -> int:
    """Run a verb, given with its options or as a dict, say which may follow if asked to, and return the exit status."""
    with warnings.catch_warnings(), escaped_warnings():
        for message in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        for logger in ("", "lightning.pytorch", "lightning.fabric", "transformers", "datasets", "huggingface_hub"):
            for handler in logging.getLogger(logger).handlers:
                handler.addFilter(_TERMINAL_FILTER)
                handler.addFilter(_is_not_routine)
        try:
            return ActCLI(arguments, says_next).exit_status
        except MisconfigurationException as error:
            print(terminal_text(f"error: {error}"), file=sys.stderr)
            return 1


def _is_not_routine(record: logging.LogRecord) -> bool:
    """Whether a message is none of those that Lightning writes whatever happens; a box of lines becomes one line."""
    if not record.name.startswith("lightning.") or record.levelno > logging.INFO:
        return True
    message = record.getMessage()
    if message.startswith("-----"):
        lines = [line for line in message.splitlines() if line.strip("-")]
        record.msg, record.args = "; ".join(lines), None
    return not _ROUTINE_MESSAGES.search(message)


def run_data(arguments: Sequence[str]) -> int:
    """Run ``data inspect`` or ``data translate``.

    Returns:
        The exit status: 1 if an endpoint left rows unanswered, which the next run asks for again.
    """
    parser = VerbParser(prog=f"{PROGRAM} data", description=VERBS["data"].about)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", required=True)
    for name, about in (("inspect", _INSPECT), ("translate", _TRANSLATE)):
        verbs.add_parser(name, help=about, add_help=False)
    verb = parser.parse_args(list(arguments[:1])).verb
    return main(["inspect", *arguments[1:]]) if verb == "inspect" else _translate(arguments[1:])


def _translate(arguments: Sequence[str]) -> int:
    from act_lightning.translation.translate import print_report, translate
    from act_lightning.translation.translation_settings import TranslationSettings

    parser = ConfigParser(prog=f"{PROGRAM} data translate", description=_TRANSLATE)
    parser.add_config_option()
    parser.add_class_arguments(AbilityDataModule, "data")
    parser.add_class_arguments(TranslationSettings, "translate")
    for section in ("model", "profile", "transfer", "trainer"):
        parser.add_argument(f"--{section}", type=dict | None, help="Of the run whose config it is; not used here.")
    parser.add_argument("--seed_everything", type=bool | int | None, help="The same.")
    given = parser.parse_args(list(arguments))
    config = parser.instantiate_classes(given)
    report = translate(config.data.abilities, config.translate)
    print_report(report, config.translate, Console())
    finished = [name for name, figures in report.sets.items() if figures.translated and not figures.unanswered]
    if report.unanswered:
        print_next("data", "translate", *arguments)
    elif given.model and finished:
        path = Path(config.translate.out) / f"{finished[0]}.parquet"
        print_next("data", "inspect", *run_options(arguments), f"--data.abilities.{finished[0]}.path={path}")
    return int(report.unanswered > 0)
