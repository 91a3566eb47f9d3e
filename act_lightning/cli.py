"""The command line: Lightning's verbs, and ``profile``, ``merge`` and ``plan`` with the same configs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from act_lightning.callbacks import ActivationDifferenceProfiler, HuggingFaceExport, MaskedTaskVectorInjection
from act_lightning.data import AbilityDataModule
from act_lightning.errors import ActError, refuse
from act_lightning.module import AbilityTransferModule
from act_lightning.overlays import MergingConfigFile
from act_lightning.planning import Run, make_plan, print_plan, run_faults
from act_lightning.verbs import merge, profile

_OWN_VERBS = {
    "profile": "Measure the scores of every ability and stop.",
    "merge": "Profile where scores are missing, transfer, and export the merged model; no fine-tuning.",
    "plan": "Read configs and headers only, and say what will happen and what will go wrong.",
}


class ActCLI(LightningCLI):
    """LightningCLI with the sections ``model``, ``data``, ``profile`` and ``transfer``, and verbs of our own.

    Attributes:
        exit_status: 0 unless a plan found an error.
    """

    exit_status = 0

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose ``--config`` files add up."""
        parser: LightningArgumentParser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=MergingConfigFile, help="Path to a YAML file; may be repeated.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our sections; the data module takes its tokenizer from the target."""
        parser.add_lightning_class_args(ActivationDifferenceProfiler, "profile")
        parser.add_lightning_class_args(MaskedTaskVectorInjection, "transfer")
        parser.link_arguments("model.target", "data.target")
        parser.link_arguments("model.revision", "data.revision")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs and ours."""
        return LightningCLI.subcommands() | {verb: set() for verb in _OWN_VERBS}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add all verbs; Lightning's own method would look for ours among the Trainer's methods."""
        self._subcommand_parsers = {}
        verbs = parser.add_subcommands()
        for verb in self.subcommands():
            own = self._prepare_subcommand_parser(self.trainer_class, verb, **kwargs.get(verb, {}))  # type: ignore[arg-type]
            self._subcommand_parsers[verb] = own
            verbs.add_subcommand(
                verb, own, help=_OWN_VERBS.get(verb) or (getattr(L.Trainer, verb).__doc__ or "").split("\n")[0]
            )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if subcommand not in _OWN_VERBS:
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser = self.init_parser(description=_OWN_VERBS[subcommand], **kwargs)
        self._add_arguments(parser)
        if subcommand == "plan":
            parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
        return parser

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint unread: the settings are those of the config."""

    def instantiate_classes(self) -> None:
        """Make what the verb needs, after looking for all faults of meaning at once; a plan needs no Trainer."""
        verb = str(self.subcommand)
        config = self.config
        if verb == "plan":
            config = config.clone()
            config[verb].trainer = Namespace()
        self.config_init = self.parser.instantiate_classes(config)
        self.model, self.datamodule = self._get(self.config_init, "model"), self._get(self.config_init, "data")
        if verb != "plan":
            refuse(run_faults(self.run, verb))
            self.trainer = self.instantiate_trainer()

    @property
    def run(self) -> Run:
        """The sections of this run, with the trainer's settings as they were given."""
        profiler, transfer = self._get(self.config_init, "profile"), self._get(self.config_init, "transfer")
        return Run(self.model, self.datamodule, profiler, transfer, self._get(self.config, "trainer").as_dict())

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer that logs to CSV, keeps ``checkpoints/last.ckpt`` and exports, unless the config says otherwise."""
        settings = self._get(self.config, "trainer")
        root = Path(settings.default_root_dir or ".")
        if settings.logger is None:
            kwargs["logger"] = CSVLogger(str(root), name="logs")
        self.trainer_defaults = {"callbacks": self._own_callbacks(root)}
        return super().instantiate_trainer(**kwargs)

    def _own_callbacks(self, root: Path) -> list[Callback]:
        configured = self._get(self.config_init, "trainer").callbacks or []
        present = tuple(type(callback) for callback in (configured if isinstance(configured, list) else [configured]))
        callbacks: list[Callback] = []
        if self.subcommand == "fit" and HuggingFaceExport not in present:
            callbacks.append(HuggingFaceExport(dtype=self.model.export_dtype, recipe=self.recipe()))
        enabled = self._get(self.config, "trainer").enable_checkpointing is not False
        if enabled and not any(issubclass(kind, ModelCheckpoint) for kind in present):
            place = root / "checkpoints"
            callbacks.append(ModelCheckpoint(place, save_top_k=0, save_last=True, enable_version_counter=False))
        return callbacks

    def recipe(self) -> str:
        """The run's config as YAML."""
        parser, config = self._parser(self.subcommand), self._get(self.config, "", self.config)
        section = self.config[self.subcommand] if self.subcommand else config
        return str(parser.dump(section, skip_none=True))

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "profile":
            profile(self.trainer, self.run)
        elif subcommand == "merge":
            merge(self.trainer, self.run, self.recipe())
        elif subcommand == "plan":
            self.exit_status = print_plan(make_plan(self.run), as_json=self.config.plan.json)
        else:
            super()._run_subcommand(subcommand)


def main(args: ArgsType = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; by default those of the process.

    Returns:
        The exit status: 0 for success. Mistakes in the command line's form leave by SystemExit, as argparse's do.
    """
    try:
        cli = ActCLI(
            AbilityTransferModule,
            AbilityDataModule,
            seed_everything_default=42,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            args=args,
        )
    except (ActError, MisconfigurationException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return cli.exit_status
