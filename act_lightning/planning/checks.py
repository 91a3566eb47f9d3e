"""The sections of a run before anything is loaded, and checks that no section of a config can make alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from act_lightning.analysis.causes_settings import CausesSettings
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.adapters import has_adapter
from act_lightning.checkpoints.compatibility import sibling_issues
from act_lightning.checkpoints.export import output_issues
from act_lightning.checkpoints.files import check_writable
from act_lightning.checkpoints.lock import lock_issue
from act_lightning.checkpoints.model_spec import read_model_spec
from act_lightning.checkpoints.models import load_config, locate, meta_model, quantized_adapter_issue
from act_lightning.checkpoints.weight_files import identify, is_weightless, read_headers
from act_lightning.data.section import DataSection
from act_lightning.defaults import BEST, LARGEST_SEED, LAST, PREVIOUS, SEED, is_first_process
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.sandbox import sandbox_issues
from act_lightning.scores import read_record, score_path, scores_folder
from act_lightning.sections import ModelSection, ProfileSection, TransferSection, fsdp1_issues
from act_lightning.sweep.sweep_settings import ACT, SweepSettings
from act_lightning.training.optimizers import sharding_issues
from act_lightning.transfer.preparation import checked_record, weight_file_issues
from act_lightning.transfer.settings import AbilitySource, zero_scale_issues

_Result = TypeVar("_Result")
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


@dataclass(frozen=True)
class Run:
    """The sections of a config.

    Attributes:
        model: Section ``model``.
        data: Section ``data``.
        profiler: Section ``profile``.
        transfer: Section ``transfer``.
        trainer: Section ``trainer``, as written in the config.
        seed: ``seed_everything``, as written in the config.
        checkpoint: Lightning's checkpoint that the run starts from, if any; a fit then transfers nothing.
        verify: Whether to read all bytes of both models before saved scores of theirs are used.
        overwrite: Whether an earlier export, and an earlier fit's checkpoint, may be replaced.
        sweep: Section ``sweep``, if the verb has one.
        causes: Section ``causes``, if the verb has one.
    """

    model: ModelSection
    data: DataSection
    profiler: ProfileSection
    transfer: TransferSection
    trainer: Mapping[str, Any]
    seed: bool | int = True
    checkpoint: str | None = None
    verify: bool = False
    overwrite: bool = False
    sweep: SweepSettings | None = None
    causes: CausesSettings | None = None

    @property
    def sources(self) -> list[AbilitySource]:
        """The ability models; none for plain fine-tuning."""
        return self.profiler.sources or []

    @property
    def root(self) -> Path:
        """The folder that the run writes to: Lightning's reading of ``trainer.default_root_dir``."""
        return Path(self.trainer.get("default_root_dir") or ".").expanduser()


def strategy_of(trainer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The strategy's class name in lower case, without its package, and its arguments.

    >>> strategy_of({"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy", "init_args": {}}})
    ('fsdpstrategy', {})
    """
    strategy = trainer.get("strategy") or "auto"
    if isinstance(strategy, Mapping):
        return str(strategy.get("class_path")).rpartition(".")[2].lower(), strategy.get("init_args") or {}
    return str(strategy).lower(), {}


def process_count(trainer: Mapping[str, Any]) -> int | None:
    """How many processes a config asks for, or ``None`` if Lightning counts the devices at start.

    >>> process_count({"devices": 8, "num_nodes": 2}), process_count({"devices": "0,1"}), process_count({})
    (16, 2, None)
    """
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes") or 1
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    elif isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    if isinstance(devices, int) and devices > 0:
        return int(devices * nodes)
    return int(nodes) if trainer.get("accelerator") == "cpu" else None


@dataclass
class Models:
    """The models of a run, as far as they can be found.

    Attributes:
        target: Folder of the target, unless something is wrong with it.
        sources: Folders of the sources that fit the target, by their index in ``profile.sources``.
        channels: The target's channels.
        issues: What is wrong with any of them.
    """

    target: Path | None = None
    sources: dict[int, Path] = field(default_factory=dict)
    channels: ChannelInventory | None = None
    issues: list[ConfigIssue] = field(default_factory=list)

    def attempt(self, work: Callable[[], _Result]) -> _Result | None:
        """The result of ``work``; or ``None``, with the issues that it raised added to ``issues``."""
        try:
            return work()
        except ActError as error:
            self.issues += [issue for issue in error.issues if issue not in self.issues]
            return None


def inspect_models(run: Run, compare: bool = True, weights: bool = False) -> Models:
    """Find the models of a run, and compare their configs and headers.

    Args:
        run: Its target is inspected, and its sources.
        compare: Whether to inspect the sources, too.
        weights: Whether a folder without weights is an error. Weights on the hub are fetched later.
    """
    models, folders = Models(), dict[int, Path]()
    sources = run.sources if compare else []
    named = [(-1, "model.target", run.model.target, run.model.revision)]
    named += [(i, f"profile.sources[{i}].model", source.model, source.revision) for i, source in enumerate(sources)]
    for i, setting, name, revision in named:
        issue_count = len(models.issues)
        folder = models.attempt(partial(locate, name, revision, setting, weights=False, adapters=i >= 0))
        if folder is None:
            continue
        models.attempt(partial(load_config, folder))
        if not is_weightless(folder) or (weights and Path(name).expanduser().is_dir()):
            models.attempt(partial(read_headers, folder, setting))
        if len(models.issues) == issue_count:
            folders[i] = folder
    models.target = target = folders.pop(-1, None)
    if target is None:
        models.sources = folders
        return models
    if sources:
        models.channels = models.attempt(partial(target_channels, target))
    for i, folder in folders.items():
        issues = models.attempt(partial(sibling_issues, target, folder, f"profile.sources[{i}].model"))
        models.issues += issues or []
        if issues == []:
            models.sources[i] = folder
    return models


def target_channels(folder: Path) -> ChannelInventory:
    """The channels of a target, from the cache if they are there: to build the model takes seconds of imports.

    Raises:
        ActError: The model has none, or its files are not those of a whole model.
    """
    try:
        channels = read_model_spec(folder).channels
    except ActError:  # of weights, which are reported elsewhere; the config is enough
        channels = None
    return channels or inventory(meta_model(folder))


def run_issues(run: Run, verb: str, models: Models | None = None) -> list[ConfigIssue]:
    """Every mistake that settings, configs and headers reveal, each once.

    Args:
        run: The sections of the config.
        verb: ``fit``, ``profile``, ``merge`` and so on.
        models: The run's models; by default they are inspected, and must have weights. A plan gives them, which reads
            no weights.
    """
    planning = models is not None
    transfers = verb not in _EVALUATING and run.checkpoint is None
    issues: list[ConfigIssue] = []
    if models is None:
        models = inspect_models(run, compare=transfers, weights=True)
        issues += sandbox_issues(run.data.evaluations) if verb in ("test", "sweep") else []
    in_use = lock_issue(run.root)  # by this process, unless it only plans
    issues += ([in_use] if in_use else []) + _setting_issues(run, verb)
    issues += [] if verb in _EVALUATING else _transfer_setting_issues(run, verb)
    issues += models.issues
    if transfers:
        issues += _transfer_issues(run, models, verb)
        issues += _weight_file_issues(run, models) if run.verify else []
    setting, root = "trainer.default_root_dir", run.root
    if not check_writable(root, setting):  # otherwise it is among the issues already
        issues += [issue for name in _FOLDERS.get(verb, ("logs",)) for issue in check_writable(root / name, setting)]
        if not run.trainer.get("fast_dev_run"):
            issues += _replacement_issues(run, verb, models, quick=planning or not is_first_process())
    return [issue for i, issue in enumerate(issues) if issue not in issues[:i]]  # values may not be hashable


def _replacement_issues(run: Run, verb: str, models: Models, quick: bool) -> list[ConfigIssue]:
    """Earlier results that would be replaced: the last checkpoint of a fit, and exports; ``quick`` is theirs."""
    setting, root, remedy, resumes = "trainer.default_root_dir", run.root, "Add --overwrite to replace it", False
    issues: list[ConfigIssue] = []
    if verb == "fit":
        folder = Path(configured_callbacks(run).get("LastCheckpoint", {}).get("dirpath") or root / "checkpoints")
        standing = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
        if run.checkpoint in ("last", "hpc"):
            resumes = any(folder.glob("last*.ckpt")) or any(root.glob("hpc_ckpt_*.ckpt"))
        elif run.checkpoint:
            checkpoint = Path(run.checkpoint).resolve()
            configured = [
                Path(arguments["dirpath"])
                for arguments in configured_callbacks(run).values()
                if arguments.get("dirpath")
            ]
            resumes = any(checkpoint.is_relative_to(parent.resolve()) for parent in (root, *configured))
        remedy = "Add --ckpt_path last to go on with the fit that wrote it, or --overwrite to replace it"
        if standing and not resumes and not run.overwrite:
            problem = f"must not be replaced unasked, and a fit without ckpt_path would replace {standing[0]}"
            issues.append(ConfigIssue("ckpt_path", run.checkpoint, problem, f"{remedy}, or choose another {setting}."))
    target, outputs = models.target, [_EXPORTS[verb]] if verb in _EXPORTS else []
    if target is None:
        return issues
    if verb == "fit" and "BestRecovery" in configured_callbacks(run):
        outputs.append(BEST)
    # Of several processes, the first may have exported already: a merge takes no time.
    overwrite = run.overwrite or resumes or not is_first_process()
    for name in outputs:
        sources = models.sources.values()
        issues += output_issues(root / name, target, setting, sources, overwrite, remedy, quick)
    return issues


def configured_callbacks(run: Run) -> dict[str, Mapping[str, Any]]:
    """The arguments of callbacks in a config, by the name of their class."""
    callbacks = run.trainer.get("callbacks") or []
    classes = [
        item for item in (callbacks if isinstance(callbacks, list) else [callbacks]) if isinstance(item, Mapping)
    ]
    return {str(item.get("class_path")).rpartition(".")[2]: item.get("init_args") or {} for item in classes}


def _setting_issues(run: Run, verb: str) -> list[ConfigIssue]:
    """What is wrong with seed, checkpoint, model, data and folder, before a model or data set is opened."""
    issues, checkpoint = [], run.checkpoint
    if isinstance(run.seed, int) and not 0 <= run.seed <= LARGEST_SEED:
        problem = f"must lie between 0 and {LARGEST_SEED}"
        issues.append(ConfigIssue("seed_everything", run.seed, problem, f"Write a number such as {SEED}."))
    if checkpoint is not None and verb in _NEED_SOURCES:
        problem = f"has no meaning for `{verb}`, which trains nothing"
        issues.append(ConfigIssue("ckpt_path", checkpoint, problem, "Leave it out."))
    elif checkpoint and checkpoint.split(":")[0] not in _LIGHTNINGS_CHECKPOINTS and not Path(checkpoint).exists():
        hint = "Correct the path, or leave it out."
        issues.append(ConfigIssue("ckpt_path", checkpoint, "must be a checkpoint that exists", hint))
    issues += run.model.issues()
    name, arguments = strategy_of(run.trainer)
    if "fsdp" in name:
        offload = "offload" in name or arguments.get("cpu_offload")
        accumulate = run.trainer.get("accumulate_grad_batches") or 1
        issues += fsdp1_issues(arguments.get("mixed_precision"), offload, accumulate)
    stage: str | None = verb if verb in _EVALUATING else "fit"
    if verb in ("profile", "merge", "sweep") and run.sources and not needs_samples(run, verb):
        stage = "test" if verb == "sweep" else None
    issues += run.data.issues(stage) if stage else []
    if verb == "validate" and not run.data.validation:
        hint = "Name abilities, or write a share to hold out of each, such as 0.1."
        issues.append(ConfigIssue("data.validation", run.data.validation, "must name an ability to validate on", hint))
    issues += check_writable(run.root, "trainer.default_root_dir")
    if run.model.answers_whole_sets and checkpoint is not None and verb in ("test", "predict"):
        hint = "Leave it out; export the checkpoint's model, and name its folder as model.target."
        issues.append(ConfigIssue("ckpt_path", checkpoint, "cannot be read where model.generator is vllm", hint))
    return issues


def _transfer_setting_issues(run: Run, verb: str) -> list[ConfigIssue]:
    """What is wrong with the settings of a transfer: of sweep, causes, profiler, selection, sources and strategy."""
    issues: list[ConfigIssue] = []
    if run.sweep is not None and verb == "sweep":
        roles = [evaluation.role for evaluation in run.data.evaluations.values()]
        issues += run.sweep.issues(run.transfer.settings, roles)
    sources = enumerate(run.sources)
    named = [(f"profile.sources[{i}].abilities", name) for i, source in sources for name in source.abilities]
    if run.causes is not None:
        issues += run.causes.issues(run.data.abilities, list(dict.fromkeys(name for _, name in named)))
    issues += run.profiler.issues() + run.transfer.issues()
    if run.profiler.sources is None and (verb in _NEED_SOURCES or run.transfer.scores):
        purpose = f"when `{verb}` runs" if verb in _NEED_SOURCES else "of scores"
        hint = "Add {model: …, abilities: […]} for each source."
        issues.append(ConfigIssue("profile.sources", None, f"must name the sources {purpose}", hint))
    if run.sources and needs_samples(run, verb):
        scorer = run.transfer.settings.scorer
        problem = f"must be one of data.abilities: {', '.join(run.data.abilities) or 'none'}"
        named += [("transfer.selection.keep", name) for name in (scorer.keep if scorer else ())]
        unknown = [(setting, name) for setting, name in named if name not in run.data.abilities]
        issues += [ConfigIssue(setting, name, problem, "Add its data there.") for setting, name in unknown]
    if verb in _EXPORTS:
        issues += zero_scale_issues(run.transfer.settings, run.sources)
    if verb == "fit":
        issues += deepspeed_issues(run.trainer) if run.sources else []
        if strategy_of(run.trainer)[0].replace("_", "").startswith(("modelparallel", "fsdp")):
            issues += sharding_issues(run.model.optimizer)
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


def needs_samples(run: Run, verb: str) -> bool:
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
    if run.profiler.quantization is not None and any(map(has_adapter, models.sources.values())):
        issues.append(quantized_adapter_issue(run.profiler.quantization))
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


def _weight_file_issues(run: Run, models: Models) -> list[ConfigIssue]:
    """Saved scores that were measured on other weight files, by the SHA-256 of whole files."""
    scorer, issues = run.transfer.settings.scorer, []
    if scorer is None:
        return []
    root = Path(run.transfer.scores) if run.transfer.scores else scores_folder(run.root, scorer)
    for i, source in enumerate(run.sources):
        folders = {"target": models.target, "source": models.sources.get(i)}
        for path in (score_path(root, source.label, ability) for ability in source.abilities):
            with suppress(ActError):  # which is refused elsewhere, or measured again
                issues += weight_file_issues(path, read_record(path), folders, strict=True)
    return issues
