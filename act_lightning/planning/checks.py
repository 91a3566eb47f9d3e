"""Checks before any work: mistakes that no section of a config can see alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from act_lightning.checkpoints.export import output_issues
from act_lightning.checkpoints.files import check_writable
from act_lightning.checkpoints.weight_files import identify, is_weightless
from act_lightning.defaults import LARGEST_SEED, SEED
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.planning.run import Models, Run, inspect_models, strategy_of
from act_lightning.scores import score_path
from act_lightning.sweep.sweep_settings import ACT
from act_lightning.training.optimizers import sharding_issue
from act_lightning.transfer.preparation import checked_record

_NEED_SOURCES = ("profile", "merge", "sweep", "causes")
_EVALUATING = ("validate", "test", "predict")
_LIGHTNINGS_CHECKPOINTS = ("best", "last", "hpc", "registry")  # names that Lightning looks up itself
_FOLDERS = {
    "fit": ("scores", "logs", "checkpoints"),
    "merge": ("scores",),
    "profile": ("scores",),
    "sweep": ("scores", "sweep"),
    "causes": ("scores", "causes"),
}
_EXPORTS = {"fit": "model", "merge": "merged"}


def run_issues(run: Run, verb: str, models: Models | None = None) -> list[ConfigIssue]:
    """Every mistake that settings, configs and headers reveal, each once.

    Args:
        run: The sections of the config.
        verb: ``fit``, ``profile``, ``merge`` and so on.
        models: The run's models; by default they are inspected, and must have weights.
    """
    transfers = verb not in _EVALUATING and run.checkpoint is None
    if models is None:
        models = inspect_models(run, compare=transfers, weights=True)
    issues = _setting_issues(run, verb) + models.issues
    if transfers:
        issues += _transfer_issues(run, models, verb)
    setting, root = "trainer.default_root_dir", run.root
    if not check_writable(root, setting):  # otherwise it is among the issues already
        issues += [issue for name in _FOLDERS.get(verb, ("logs",)) for issue in check_writable(root / name, setting)]
        if verb in _EXPORTS and models.target is not None:
            issues += output_issues(root / _EXPORTS[verb], models.target, setting, models.sources.values())
    return [issue for i, issue in enumerate(issues) if issue not in issues[:i]]  # values may not be hashable


def _setting_issues(run: Run, verb: str) -> list[ConfigIssue]:
    """What is wrong with the settings, before a model or data set is opened."""
    issues = _start_issues(run, verb) + run.model.issues() + _data_issues(run, verb)
    issues += check_writable(run.root, "trainer.default_root_dir")
    if run.model.answers_whole_sets and run.checkpoint is not None and verb in ("test", "predict"):
        hint = "Leave it out; export the checkpoint's model, and name its folder as model.target."
        issues.append(ConfigIssue("ckpt_path", run.checkpoint, "cannot be read where model.generator is vllm", hint))
    if verb in _EVALUATING:
        return issues
    if run.sweep is not None and verb == "sweep":
        roles = [evaluation.role for evaluation in run.data.evaluations.values()]
        issues += run.sweep.issues(run.transfer.settings, roles)
    if run.causes is not None:
        abilities = list(dict.fromkeys(name for source in run.sources for name in source.abilities))
        issues += run.causes.issues(run.data.abilities, abilities)
    issues += run.profiler.issues() + run.transfer.issues() + _source_issues(run, verb)
    if verb == "fit":
        issues += deepspeed_issues(run.trainer) if run.sources else []
        optimizer = run.model.optimizer
        class_path = "" if isinstance(optimizer, str) else str(optimizer.get("class_path"))
        shards = strategy_of(run.trainer)[0].replace("_", "").startswith("modelparallel")
        if shards and class_path.startswith("bitsandbytes."):
            issues.append(sharding_issue(optimizer))
    return issues


def deepspeed_issues(trainer: Mapping[str, Any]) -> list[ConfigIssue]:
    """Refuse DeepSpeed for a transfer, before Lightning looks for its package.

    Args:
        trainer: Section ``trainer`` of the config.
    """
    name, _ = strategy_of(trainer)
    problem = "must leave weights where a transfer can reach them; DeepSpeed copies them for its optimizer before that"
    hint = "Use ddp, FSDP1 or FSDP2; or run `merge`, and fine-tune merged/ without profile.sources."
    return [ConfigIssue("trainer.strategy", name, problem, hint)] if "deepspeed" in name else []


def _start_issues(run: Run, verb: str) -> list[ConfigIssue]:
    """What is wrong with the seed and the checkpoint that a run starts from."""
    issues, checkpoint = [], run.checkpoint
    if isinstance(run.seed, int) and not 0 <= run.seed <= LARGEST_SEED:
        problem = f"must lie between 0 and {LARGEST_SEED}"
        issues.append(ConfigIssue("seed_everything", run.seed, problem, f"Write a number such as {SEED}."))
    if checkpoint is None:
        return issues
    if verb in _NEED_SOURCES:
        problem = f"has no meaning for `{verb}`, which trains nothing"
        issues.append(ConfigIssue("ckpt_path", checkpoint, problem, "Leave it out."))
    elif checkpoint.split(":")[0] not in _LIGHTNINGS_CHECKPOINTS and not Path(checkpoint).exists():
        hint = "Correct the path, or leave it out."
        issues.append(ConfigIssue("ckpt_path", checkpoint, "must be a checkpoint that exists", hint))
    return issues


def _data_issues(run: Run, verb: str) -> list[ConfigIssue]:
    stage = verb if verb in _EVALUATING else "fit"
    if verb in ("profile", "merge", "sweep") and run.sources and not _needs_samples(run, verb):
        if verb != "sweep":
            return []
        stage = "test"
    issues = run.data.issues(stage)
    if verb == "validate" and not run.data.validation:
        hint = "Name abilities, or write a share to hold out of each, such as 0.1."
        issues.append(ConfigIssue("data.validation", run.data.validation, "must name an ability to validate on", hint))
    return issues


def _source_issues(run: Run, verb: str) -> list[ConfigIssue]:
    """Sources that are missing, and abilities that have no data."""
    if not run.sources:
        if run.profiler.sources is not None or not (verb in _NEED_SOURCES or run.transfer.scores):
            return []
        purpose = f"when `{verb}` runs" if verb in _NEED_SOURCES else "of scores"
        hint = "Add {model: …, abilities: […]} for each source."
        return [ConfigIssue("profile.sources", None, f"must name the sources {purpose}", hint)]
    if not _needs_samples(run, verb):
        return []
    settings = [
        (f"profile.sources[{i}].abilities", name) for i, source in enumerate(run.sources) for name in source.abilities
    ]
    settings += [
        ("transfer.selection.keep", name)
        for name in (run.transfer.settings.scorer.keep if run.transfer.settings.scorer else ())
    ]
    problem = f"must be one of data.abilities: {', '.join(run.data.abilities) or 'none'}"
    return [
        ConfigIssue(setting, name, problem, "Add its data there.")
        for setting, name in settings
        if name not in run.data.abilities
    ]


def _needs_samples(run: Run, verb: str) -> bool:
    """Whether a verb reads the samples of abilities."""
    transfer, scorer = run.transfer, run.transfer.settings.scorer
    if verb == "sweep" and run.sweep is not None:
        scorers = run.sweep.scorers(transfer.settings)
        measured = [scorer for method, scorer in scorers.items() if method != ACT or transfer.scores is None]
        return any(scorer.needs_samples for scorer in measured) or run.sweep.fit or transfer.settings.needs_fisher
    profiles_samples = verb == "profile" and (scorer is None or scorer.needs_samples)
    return transfer.needs_data or verb == "causes" or profiles_samples


def _transfer_issues(run: Run, models: Models, verb: str) -> list[ConfigIssue]:
    """What is wrong with the selection; score files that are missing, unreadable or of other weights or scorers."""
    issues: list[ConfigIssue] = []
    if models.channels is not None and verb == "sweep" and run.sweep is not None:
        issues += run.sweep.selection_issues(models.channels, run.transfer.settings)
    elif models.channels is not None:
        issues += run.transfer.selection_issues(models.channels, run.sources)
    if run.transfer.scores is None or run.transfer.needs_profiling or not Path(run.transfer.scores).is_dir():
        return issues
    root = Path(run.transfer.scores)
    for i, source in enumerate(run.sources):
        folders = {"target": models.target, "source": models.sources.get(i)}
        digests = {
            role: [identify(folder).digest]
            for role, folder in folders.items()
            if folder is not None and not is_weightless(folder)
        }
        for ability in source.abilities:
            try:
                checked_record(score_path(root, source.label, ability), root, digests, run.transfer.settings.scorer)
            except ActError as error:
                issues += error.issues
    return issues
