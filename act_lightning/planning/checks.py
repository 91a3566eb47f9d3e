"""Issues of a run that one section of its config cannot see alone, looked for before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from act_lightning.checkpoints.export import output_issues
from act_lightning.checkpoints.files import check_writable
from act_lightning.checkpoints.weight_files import identify, is_weightless
from act_lightning.defaults import LARGEST_SEED, SEED
from act_lightning.errors import ConfigIssue
from act_lightning.planning.run import Models, Run, inspect_models
from act_lightning.planning.training_checks import strategy_of
from act_lightning.scores import score_path
from act_lightning.sweep.settings import ACT
from act_lightning.training.optimizers import sharding_issue
from act_lightning.transfer.preparation import saved_record


def score_issues(run: Run, models: Models) -> list[ConfigIssue]:
    """Score files that are missing, unreadable, or were measured on other weights or by another scorer."""
    if run.transfer.scores is None or run.transfer.needs_profiling or not Path(run.transfer.scores).is_dir():
        return []
    root, scorer, found = Path(run.transfer.scores), run.transfer.scorer, Models()
    for i, source in enumerate(run.sources):
        digests = _digests({"target": models.target, "source": models.sources.get(i)})
        for ability in source.abilities:
            path = score_path(root, source.label, ability)
            found.attempt(lambda path=path, digests=digests: saved_record(path, root, digests, scorer))  # type: ignore[misc]
    return found.issues


def _digests(folders: dict[str, Path | None]) -> dict[str, list[str]]:
    """The digest of each model whose weights are there."""
    return {role: [identify(folder).digest] for role, folder in folders.items() if folder and not is_weightless(folder)}


_TRAINING = ("fit", "plan")
_NEED_SOURCES = ("profile", "merge", "sweep", "causes")
_WITHOUT_DATA = ("profile", "merge")  # which need none where nothing is measured on samples
_EVALUATING = ("validate", "test", "predict")
_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")  # which Lightning looks up
_PARTS = {
    "fit": ("scores", "logs", "checkpoints"),
    "merge": ("scores",),
    "profile": ("scores",),
    "sweep": ("scores", "sweep"),
    "causes": ("scores", "causes"),
}
_EXPORTS = {"fit": "model", "merge": "merged"}


def run_issues(run: Run, verb: str) -> list[ConfigIssue]:
    """Everything that is wrong with a run, as far as settings, configs and headers tell.

    Args:
        run: The run.
        verb: What is to be done: ``fit``, ``profile``, ``merge`` and so on.
    """
    found = setting_issues(run, verb)
    compares = verb not in _EVALUATING and run.checkpoint is None
    models = inspect_models(run, compare=compares, weights=True)
    found += models.issues
    if compares:
        found += transfer_issues(run, models, verb)
    return distinct(found + output_place_issues(run, models, verb))


def transfer_issues(run: Run, models: Models, verb: str) -> list[ConfigIssue]:
    """What is wrong with the selection and with saved scores, now that the models are known."""
    if models.channels is None:
        return score_issues(run, models)
    if verb == "sweep" and run.sweep is not None:
        return run.sweep.selection_issues(models.channels, run.transfer.settings) + score_issues(run, models)
    return run.transfer.selection_issues(models.channels, run.sources) + score_issues(run, models)


def distinct(issues: list[ConfigIssue]) -> list[ConfigIssue]:
    """Each issue once; their values need not be hashable."""
    return [issue for number, issue in enumerate(issues) if issue not in issues[:number]]


def setting_issues(run: Run, verb: str) -> list[ConfigIssue]:
    """Everything that is wrong with a run's settings, before a model or data set is opened.

    Args:
        run: The run.
        verb: What is to be done; ``plan`` asks for what ``fit`` would.
    """
    found = (
        _seed_issues(run.seed) + _checkpoint_issues(run.checkpoint, verb) + run.model.issues() + _data_issues(run, verb)
    )
    found += check_writable(run.root, "trainer.default_root_dir")
    if run.model.answers_whole_sets and run.checkpoint is not None and verb in ("test", "predict"):
        remedy = "Leave it out; export the checkpoint's model, and name its folder as model.target."
        found.append(ConfigIssue("ckpt_path", run.checkpoint, "cannot be read where model.generator is vllm", remedy))
    if verb in _EVALUATING:
        return found
    if run.sweep is not None and verb == "sweep":
        roles = [one.role for one in run.data.evaluations.values()]
        found += run.sweep.issues(run.transfer.settings, roles)
    if run.causes is not None:
        asked = list(dict.fromkeys(name for source in run.sources for name in source.abilities))
        found += run.causes.issues(run.data.abilities, asked)
    found += run.profiler.issues() + run.transfer.issues() + _source_issues(run, verb)
    return found + (_strategy_issues(run) if verb in _TRAINING else [])


def _strategy_issues(run: Run) -> list[ConfigIssue]:
    """Strategies that cannot be transferred into, and optimizers that cannot work under one."""
    found = deepspeed_issues(run.trainer) if run.sources else []
    name, _ = strategy_of(run.trainer)
    optimizer = run.model.optimizer
    path = "" if isinstance(optimizer, str) else str(optimizer.get("class_path"))
    if name.replace("_", "").startswith("modelparallel") and path.startswith("bitsandbytes."):
        found.append(sharding_issue(optimizer))
    return found


def deepspeed_issues(trainer: Mapping[str, Any]) -> list[ConfigIssue]:
    """What is wrong with DeepSpeed for a transfer, told before Lightning looks for its package.

    Args:
        trainer: Section ``trainer`` of the config.
    """
    name, _ = strategy_of(trainer)
    rule = "must leave weights where a transfer can reach them; DeepSpeed copies them for its optimizer before that"
    remedy = "Use ddp, FSDP1 or FSDP2; or run `merge`, and fine-tune merged/ without profile.sources."
    return [ConfigIssue("trainer.strategy", name, rule, remedy)] if "deepspeed" in name else []


def _seed_issues(seed: object) -> list[ConfigIssue]:
    if isinstance(seed, int) and not 0 <= seed <= LARGEST_SEED:
        return [
            ConfigIssue(
                "seed_everything", seed, f"must lie between 0 and {LARGEST_SEED}", f"Write a number such as {SEED}."
            )
        ]
    return []


def _checkpoint_issues(checkpoint: str | None, verb: str) -> list[ConfigIssue]:
    if checkpoint is not None and verb in _NEED_SOURCES:
        return [
            ConfigIssue("ckpt_path", checkpoint, f"has no meaning for `{verb}`, which trains nothing", "Leave it out.")
        ]
    if checkpoint is None or checkpoint.split(":")[0] in _CHECKPOINT_WORDS or Path(checkpoint).exists():
        return []
    return [
        ConfigIssue("ckpt_path", checkpoint, "must be a checkpoint that exists", "Correct the path, or leave it out.")
    ]


def _data_issues(run: Run, verb: str) -> list[ConfigIssue]:
    if verb in _WITHOUT_DATA and run.sources and not _needs_samples(run, verb):
        return []
    stage = verb if verb in _EVALUATING else "fit"
    if verb == "sweep" and run.sources and not _needs_samples(run, verb):
        stage = "test"
    found = run.data.issues(stage)
    if verb == "validate" and not run.data.validation:
        remedy = "Name abilities, or write a share to hold out of each, such as 0.1."
        found.append(ConfigIssue("data.validation", run.data.validation, "must name an ability to validate on", remedy))
    return found


def output_place_issues(run: Run, models: Models, verb: str) -> list[ConfigIssue]:
    """What stands in the way of what is written below the run's own folder."""
    setting, root = "trainer.default_root_dir", run.root
    if check_writable(root, setting):
        return []  # told already
    found = [issue for part in _PARTS.get(verb, ("logs",)) for issue in check_writable(root / part, setting)]
    if verb in _EXPORTS and models.target is not None:
        found += output_issues(root / _EXPORTS[verb], models.target, setting, models.sources.values())
    return found


def _source_issues(run: Run, verb: str) -> list[ConfigIssue]:
    if not run.sources:
        return _missing_sources(run, verb)
    if not _needs_samples(run, verb):
        return []
    known, scorer = ", ".join(run.data.abilities) or "none", run.transfer.scorer
    asked = [
        (f"profile.sources[{i}].abilities", name) for i, source in enumerate(run.sources) for name in source.abilities
    ]
    asked += [("transfer.selection.keep", name) for name in (scorer.keep if scorer else ())]
    return [
        ConfigIssue(setting, name, f"must be one of data.abilities: {known}", "Add its data there.")
        for setting, name in asked
        if name not in run.data.abilities
    ]


def _needs_samples(run: Run, verb: str) -> bool:
    """Whether a verb reads the samples of abilities."""
    scorer = run.transfer.scorer
    if verb != "sweep" or run.sweep is None:
        return (
            run.transfer.needs_data
            or verb == "causes"
            or (verb == "profile" and (scorer is None or scorer.needs_samples))
        )
    scorers = run.sweep.scorers(run.transfer.settings)
    due = [one for method, one in scorers.items() if method != ACT or run.transfer.scores is None]
    return any(one.needs_samples for one in due) or run.sweep.fit or run.transfer.needs_fisher


def _missing_sources(run: Run, verb: str) -> list[ConfigIssue]:
    if run.profiler.sources is not None or not (verb in _NEED_SOURCES or run.transfer.scores):
        return []
    reason = f"must name the sources when `{verb}` runs" if verb in _NEED_SOURCES else "must name the sources of scores"
    return [ConfigIssue("profile.sources", None, reason, "Add {model: …, abilities: […]} for each source.")]
