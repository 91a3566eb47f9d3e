"""``merge``: where nothing has to be profiled, without the seconds that Lightning and transformers take to import.

Only a command line that is understood to the last setting is answered here. Any other, and any with a issue in it, goes
the long way, which knows all settings and says what is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from act_lightning.cli.plain_config import Config, read_plainly
from act_lightning.defaults import LARGEST_SEED, SEED
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from act_lightning.channels import ChannelInventory
    from act_lightning.transfer.preparation import PreparedTransfer
    from act_lightning.transfer.settings import TransferSettings
    from act_lightning.transfer.sources import AbilitySource

SOURCE = {"model": str, "abilities": list, "scale": float, "ratio": float, "name": str, "revision": str}
TRANSFER = {
    "ratio": float,
    "share": str,
    "scale": float,
    "selection": str,
    "scope": str,
    "exclude": list,
    "method": str,
    "scores": str,
}
SECTIONS = {
    "model": {"target": str, "revision": str, "dtype": str, "export_dtype": str},
    "profile": {"sources": SOURCE, "tokens_per_batch": int, "chunks": int, "stop_when_stable": float},
    "transfer": TRANSFER,
    "trainer": {
        "default_root_dir": str,
        "accelerator": str,
        "accumulate_grad_batches": int,
        "max_epochs": int,
        "precision": str,
        "enable_progress_bar": bool,
        "enable_model_summary": bool,
    },
}
"""The settings understood here, and their types; more stand in a config that goes the long way."""


def main(arguments: list[str]) -> int:
    """Merge.

    Args:
        arguments: Those after the verb.

    Returns:
        The exit status.

    Raises:
        ActError: A setting, a model or a value of it is not as it must be.
    """
    config = read_plainly(arguments, SECTIONS)
    run = None if config is None else _understand(config)
    if run is None:
        from act_lightning.cli import lightning_cli

        return lightning_cli.main(["merge", *arguments])
    from act_lightning.cli.disk_merge import merge_to_disk

    print(merge_to_disk(run.root, run.target, run.prepared, run.recipe, run.dtype), file=sys.stderr)
    return 0


@dataclass(frozen=True)
class _Run:
    """A merge without issues, ready to be written."""

    root: Path
    target: Path
    prepared: PreparedTransfer
    recipe: str
    dtype: str


def _understand(config: Config) -> _Run | None:
    """The merge that ``config`` asks for; ``None`` where it needs a Trainer, or has a issue."""
    try:
        return _prepare(config) if _needs_no_trainer(config) else None
    except (ActError, KeyError, TypeError, AttributeError):  # said better by whoever knows all settings
        return None


def _needs_no_trainer(config: Config) -> bool:
    """Whether nothing is to be profiled, and rows are to be merged on the CPU.

    Raises:
        ActError: There is no such selection or method.
    """
    import torch

    from act_lightning.merging.registry import merging_method
    from act_lightning.scorers.registry import scorer_of

    transfer, accelerator = config.get("transfer", {}), config["trainer"].get("accelerator", "auto")
    ranked = scorer_of(transfer.get("selection", "activation")) is not None
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    gathers = merging_method(transfer.get("method", "task_arithmetic")).needs_importance
    return on_cpu and not gathers and not (ranked and not transfer.get("scores"))


def _prepare(config: Config) -> _Run:
    """Everything that ``merge`` does before it writes.

    Raises:
        ActError: A setting or a model is not as it must be.
        KeyError: A setting is missing.
        TypeError: A setting is null, or one that is needed is missing.
    """
    from act_lightning.checkpoints.headers import stored_entries
    from act_lightning.checkpoints.identity import identify
    from act_lightning.checkpoints.locate import locate
    from act_lightning.checkpoints.model_spec import read_model_spec
    from act_lightning.transfer.preparation import prepare
    from act_lightning.transfer.settings import TransferSettings
    from act_lightning.transfer.sources import AbilitySource

    model, chosen = config["model"], dict(config.get("transfer", {}))
    scores = Path(chosen.pop("scores", None) or "no scores are read")
    settings, seed = TransferSettings(**chosen), config.get("seed_everything", SEED)
    sources = [AbilitySource(**source) for source in config["profile"]["sources"]]
    root, target = (
        Path(config["trainer"]["default_root_dir"]).expanduser(),
        locate(model["target"], model.get("revision")),
    )
    channels = read_model_spec(target, stored_entries(target)).channels
    raise_if_any(_faults(config, root, target, sources, settings, channels))
    assert channels is not None
    prepared = prepare(sources, channels, settings, scores, seed, [identify(target).digest], target)
    recipe = {"seed_everything": seed, **config, "transfer": {**asdict(settings), **config.get("transfer", {})}}
    return _Run(root, target, prepared, yaml.safe_dump(recipe, sort_keys=False), model.get("export_dtype", "auto"))


def _faults(
    config: Config,
    root: Path,
    target: Path,
    sources: list[AbilitySource],
    settings: TransferSettings,
    channels: ChannelInventory | None,
) -> Iterator[ConfigIssue]:
    """Whether anything is wrong; what it is, is told by the long way."""
    from act_lightning.checkpoints.compatibility import sibling_issues
    from act_lightning.checkpoints.export import output_issues
    from act_lightning.checkpoints.files import check_writable
    from act_lightning.checkpoints.locate import locate
    from act_lightning.checkpoints.models import resolve_dtype
    from act_lightning.transfer.selection import selection_issues
    from act_lightning.transfer.sources import source_issues, source_ratios

    if channels is None or not 0 <= config.get("seed_everything", SEED) <= LARGEST_SEED:
        yield ConfigIssue("config", str(target), "must be sound", "")
        return
    for key in ("dtype", "export_dtype"):
        resolve_dtype(config["model"].get(key, "auto"), target)
    yield from source_issues(sources)
    yield from settings.issues()
    yield from check_writable(root, "trainer.default_root_dir")
    folders = [locate(source.model, source.revision) for source in sources]
    yield from output_issues(root / "merged", target, "trainer.default_root_dir", folders)
    yield from selection_issues(channels, settings, source_ratios(sources, settings.ratio))
    for folder in folders:
        yield from sibling_issues(target, folder, "profile.sources")
