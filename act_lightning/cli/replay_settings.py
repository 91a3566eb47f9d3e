"""What ``replay`` takes from a card: settings of an allow-list, models and data below the folders that the user names.

A card comes from a stranger. It decides what is computed, and nothing else: no code but this package's and optimizers
of torch and bitsandbytes, no file that the user does not offer, no place to write.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from act_lightning.checkpoints.adapters import split_adapter
from act_lightning.checkpoints.bin_conversion import BIN_PREFIX
from act_lightning.data.ability_data import AbilityData, EvaluationData, PerGroup
from act_lightning.data.files import READERS, extension
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.merging import METHODS
from act_lightning.scorers import SCORERS
from act_lightning.transfer.settings import AbilitySource

Check = Callable[[Any], str | None]
"""What is wrong with a setting of a card, as the rest of a sentence; ``None`` if it may be taken."""

_CODE = "must name a class of act_lightning, torch.optim or bitsandbytes.optim that replay knows"
_OWN = "Give a value of your own with --{setting}, or in a --config file, and the card's is not taken."
_LAB = re.compile(r"lab:[A-Za-z0-9_-]+(@[0-9]{1,9})?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]*")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _unknown(_: object) -> str:
    return "must be left out of a card: replay takes no such setting from one"


def _plain(value: object) -> str | None:
    """Whether it is a word, a number, or a list of them, whose meaning the sections check themselves."""
    values = value if isinstance(value, list) else [value]
    return None if all(map(_is_plain, values)) else "must be a word, a number, or a list of these"


def _number(value: object) -> str | None:
    return None if value is None or isinstance(value, (bool, int, float)) else "must be a number, true or false"


def _one_of(*words: object) -> Check:
    """One of these words, or a number."""
    problem = f"must be one of {', '.join(map(str, words))}"
    return lambda value: None if _number(value) is None or (isinstance(value, str) and value in words) else problem


def _matches(pattern: str, example: str) -> Check:
    def check(value: object) -> str | None:
        fits = _number(value) is None or (isinstance(value, str) and re.fullmatch(pattern, value))
        return None if fits else f"must be such as {example}"

    return check


def _devices(value: object) -> str | None:
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return None
    return _matches(r"auto|-?\d+(,\d+)*", "auto, 2 or [0, 1]")(value)


def _revision(value: object) -> str | None:
    fits = value is None or (isinstance(value, str) and _REVISION.fullmatch(value))
    return None if fits else "must be a commit, branch or tag"


def _compile(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    known = {"mode": _plain, "dynamic": _number, "fullgraph": _number, "backend": _one_of("inductor")}
    fits = isinstance(value, dict) and all(name in known and known[name](item) is None for name, item in value.items())
    return None if fits else f"must be true, false, or hold {', '.join(known)} with inductor as backend"


def _class(value: object, known: Collection[str]) -> str | None:
    """Whether a mapping names one of the ``known`` classes, with arguments that are plain values."""
    if not isinstance(value, dict) or value.keys() - {"class_path", "init_args"}:
        return "must hold class_path and, optionally, init_args"
    path, arguments = value.get("class_path"), value.get("init_args") or {}
    if not isinstance(path, str) or path not in known:
        return f"{_CODE}, and {path!r} is none here"
    if not isinstance(arguments, dict) or not all(_plain(argument) is None for argument in arguments.values()):
        return "must have init_args that are words, numbers or lists of these"
    return None


def _name_or_class(classes: Mapping[str, type], room: str, *names: str) -> Check:
    """A name, or a class of one of our registries with any plain arguments."""
    paths = {f"{home}.{cls.__name__}" for cls in classes.values() for home in (room, cls.__module__)}

    def check(value: object) -> str | None:
        if isinstance(value, str):
            return None if value in {*classes, *names} else f"must be one of {', '.join([*classes, *names])}"
        return _class(value, paths)

    return check


_CALLBACKS: Mapping[str, Sequence[str]] = {
    f"act_lightning.callbacks.{module}{name}": arguments
    for name, home, arguments in (
        ("AnswerEvaluation", "answer_evaluation", ()),
        ("BestRecovery", "best_recovery", ("keep_within",)),
        ("HuggingFaceExport", "export", ("dtype",)),
        ("LastCheckpoint", "last_checkpoint", ("every_n_minutes", "every_n_updates")),
        ("LostUpdates", "lost_updates", ()),
        ("PreemptionCheckpoint", "preemption", ()),
        ("TokenThroughput", "throughput", ("window_size",)),
        (
            "TransferComparison",
            "comparison",
            ("label", "fine_tuning_alone", "selections", "scales", "keep_within", "validation_sets"),
        ),
    )
    for module in ("", f"{home}.")
}
"""Callbacks by class path, with the arguments that neither name a file nor hold code."""
_SCHEDULES = ("act_lightning.training.optimizers.WarmupCosine", "act_lightning.schedules.WarmupCosine")


def _callbacks(value: object) -> str | None:
    problems = []
    for item in value if isinstance(value, list) else [value]:
        callback: Any = {"class_path": item} if isinstance(item, str) else item
        arguments = callback.get("init_args") if isinstance(callback, dict) else None
        if isinstance(arguments, dict) and "selections" in arguments:
            problems.append(_each(_transfer)(arguments["selections"] or {}))
            plain = {name: argument for name, argument in arguments.items() if name != "selections"}
            callback = {**callback, "init_args": plain}
        problems.append(_class(callback, _CALLBACKS))
    return next((problem for problem in problems if problem), None)


def _transfer(settings: object) -> str | None:
    known = TAKEN["transfer"]
    if not isinstance(settings, dict) or settings.keys() - known:
        return f"must hold any of {', '.join(known)}"
    return next(filter(None, (known[name](value) for name, value in settings.items())), None)


def _of_torch(kind: str) -> Check:
    """A class of ``torch.optim`` or ``bitsandbytes.optim`` that derives from a class called ``kind``, or a name.

    The class is looked up, because a dotted name may lead out of the package that it begins with.
    """

    def check(value: object) -> str | None:
        if value is None or isinstance(value, str):
            return None
        path = value.get("class_path") if isinstance(value, dict) else None
        known = {*_SCHEDULES} if kind == "LRScheduler" else set()
        if isinstance(path, str) and (match := re.fullmatch(r"((?:torch|bitsandbytes)\.optim(?:\.\w+)*)\.(\w+)", path)):
            try:
                cls = getattr(importlib.import_module(match[1]), match[2], None)
            except ImportError:
                cls = None
            lineage = cls.__mro__ if isinstance(cls, type) else ()
            own = bool(lineage) and lineage[0].__module__.startswith(("torch.optim", "bitsandbytes.optim"))
            known |= {path} if own and any(base.__name__ == kind for base in lineage) else set()
        return _class(value, known)

    return check


def _data_set(kind: type[AbilityData]) -> Check:
    names, groups = {item.name for item in fields(kind)}, {item.name for item in fields(PerGroup)}

    def check(settings: object) -> str | None:
        if settings is None:
            return None
        if not isinstance(settings, dict) or settings.keys() - names or not isinstance(settings.get("path"), str):
            return f"must hold path and any of {', '.join(sorted(names - {'path'}))}"
        mappings = [settings.get(part) or {} for part in ("columns", "per_group")]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            return "must hold columns and groups by name"
        nested = [value for mapping in mappings for value in mapping.values()]
        if mappings[1].keys() - groups or not all(_plain(value) is None for value in nested):
            return "must hold plain columns and groups"
        simple = (value for name, value in settings.items() if name not in ("columns", "per_group"))
        return next(filter(None, map(_plain, simple)), _revision(settings.get("revision")))

    return check


def _each(check: Check) -> Check:
    """The same check of every entry of a mapping."""

    def check_all(values: object) -> str | None:
        if not isinstance(values, dict):
            return "must be a mapping of names"
        problems = ((name, check(value)) for name, value in values.items())
        return next((f"{problem}, at {name!r}" for name, problem in problems if problem), None)

    return check_all


def _sources(values: object) -> str | None:
    names = {item.name for item in fields(AbilitySource)}
    if not isinstance(values, list):
        return None if values is None else "must be a list of sources"
    for source in values:
        if not isinstance(source, dict) or source.keys() - names or not isinstance(source.get("model"), str):
            return f"must be a list of sources with {', '.join(sorted(names))}"
        problems = [_revision(source.get("revision")), *map(_plain, source.values())]
        if any(problems):
            return next(filter(None, problems))
    return None


_STRATEGIES = ("auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_find_unused_parameters_true", "fsdp", "single_device")
_PRECISIONS = ("32", "64", "16", "bf16", "32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")
TAKEN: Mapping[str, Mapping[str, Check]] = {
    "": {"seed_everything": _number},
    "model": {
        **dict.fromkeys(("target", "dtype", "export_dtype", "attention"), _plain),
        **dict.fromkeys(("learning_rate", "gradient_checkpointing", "router_aux_loss_coef"), _number),
        "revision": _revision,
        "optimizer": _of_torch("Optimizer"),
        "lr_scheduler": _of_torch("LRScheduler"),
        "compile": _compile,
    },
    "data": {
        "abilities": _each(_data_set(AbilityData)),
        "evaluations": _each(_data_set(EvaluationData)),
        **dict.fromkeys(("train", "validation", "template", "packing"), _plain),
        **dict.fromkeys(("batch_size", "shuffle", "max_length", "tokens_per_batch"), _number),
    },
    "profile": {
        "sources": _sources,
        **dict.fromkeys(("placement", "quantization"), _plain),
        **dict.fromkeys(("tokens_per_batch", "chunks", "stop_when_stable"), _number),
    },
    "transfer": {
        **dict.fromkeys(("ratio", "scale"), _number),
        **dict.fromkeys(("share", "scope", "include", "exclude", "scores"), _plain),
        "selection": _name_or_class(SCORERS, "act_lightning.scorers", "random", "all"),
        "method": _name_or_class(METHODS, "act_lightning.merging"),
    },
    "trainer": {
        "accelerator": _one_of("auto", "cpu", "gpu", "cuda", "mps"),
        "strategy": _one_of(*_STRATEGIES),
        "devices": _devices,
        "precision": _one_of(*_PRECISIONS),
        "callbacks": _callbacks,
        "deterministic": _one_of("warn"),
        "gradient_clip_algorithm": _one_of("norm", "value"),
        "max_time": _matches(r"\d+:\d+:\d+:\d+", "00:12:00:00"),
        **dict.fromkeys(
            (
                *("num_nodes", "fast_dev_run", "max_epochs", "min_epochs", "max_steps", "min_steps"),
                *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
                *("overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
                *("log_every_n_steps", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
                *("accumulate_grad_batches", "gradient_clip_val", "benchmark", "inference_mode"),
                *("use_distributed_sampler", "detect_anomaly", "barebones", "sync_batchnorm"),
                *("reload_dataloaders_every_n_epochs", "enable_autolog_hparams"),
            ),
            _number,
        ),
    },
}
"""Settings that a card may give, by section; the nameless section holds those of the whole run."""
LEFT_OUT: Mapping[str, Sequence[str]] = {
    "": ("ckpt_path", "weights_only", "overwrite", "verify"),
    "model": ("generator", "generator_args"),  # only `test` and `predict` use them
    "data": ("cache_dir", "num_proc", "target", "revision"),
    "profile": ("target", "revision"),
    "trainer": ("default_root_dir", "logger", "profiler", "model_registry"),
}
"""Settings that no weight depends on: a card's are left out, and the run has those of this machine."""
_PATHS = ("model.target", "data.template", "transfer.scores")


@dataclass(frozen=True)
class Overrides:
    """What the user gives beside the card.

    Attributes:
        options: Options of the verb, in their order.
        values: Those that are ``--section.key value``, by their dotted name.
        of_files: Dotted names of the settings that config files give.
    """

    options: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    of_files: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Overrides:
        """Read what follows the card on the command line; the verb itself refuses what is wrong with it."""
        result, rest = cls(list(arguments)), list(arguments)
        while rest:
            name, separator, value = rest.pop(0).partition("=")
            if not separator and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            if name in ("-c", "--config"):
                try:
                    result.of_files.update(_given(yaml.safe_load(Path(value).expanduser().read_text("utf-8"))))
                except (OSError, ValueError, yaml.YAMLError):
                    continue  # the parser of the verb says what is wrong
            else:
                result.values[name.removeprefix("--")] = value
        return result

    def replace(self, setting: str) -> bool:
        """Whether the user gives the whole of ``setting``."""
        parts = setting.split(".")
        return any(".".join(parts[:end]) in {*self.values, *self.of_files} for end in range(1, len(parts) + 1))

    def replace_by_file(self, setting: str) -> bool:
        """Whether a config file of the user's gives the whole of ``setting``."""
        return setting not in self.values and self.replace(setting)


def _given(config: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of what a config sets: what is no mapping, and classes with their arguments."""
    if isinstance(config, dict) and "class_path" not in config:
        for key, value in config.items():
            yield from _given(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix


def take_settings(recipe: Mapping[str, Any], overrides: Overrides) -> tuple[dict[str, Any], list[str]]:
    """The settings of a card that may be taken, and the names of those that are left out.

    What the user gives with an option or config is not looked at.

    Raises:
        ActError: Naming every setting that a card may not give.
    """
    issues: list[ConfigIssue] = []
    taken: dict[str, Any] = {}
    left_out: list[str] = []
    for section in TAKEN:
        others = {key: value for key, value in recipe.items() if key == "" or key not in TAKEN}
        values = recipe.get(section, {}) if section else others
        if not isinstance(values, dict):
            issues.append(ConfigIssue(section, values, "must be a section of settings", "Get the card again."))
            continue
        for key, value in values.items():
            setting = f"{section}.{key}" if section else str(key)
            check = TAKEN[section].get(key, _unknown)
            if overrides.replace(setting) and not (setting in _PATHS and setting in overrides.values):
                continue  # paths that options give are put in below
            if key in LEFT_OUT.get(section, ()):
                left_out.append(setting)
            elif problem := check(value):
                issues.append(ConfigIssue(setting, value, problem, _OWN.format(setting=setting)))
            else:
                (taken.setdefault(section, {}) if section else taken)[key] = deepcopy(value)
    raise_if_any(issues)
    return taken, left_out + _leave_out_parts(taken)


def _leave_out_parts(settings: Mapping[str, Any]) -> list[str]:
    """Remove evaluations that run code and callbacks' arguments that name files, in place; return their names."""
    left_out = []
    evaluations = settings.get("data", {}).get("evaluations", {})
    for name in [name for name, data_set in evaluations.items() if (data_set or {}).get("kind") == "code"]:
        del evaluations[name]  # no weight depends on them
        left_out.append(f"data.evaluations.{name}")
    callbacks = settings.get("trainer", {}).get("callbacks", [])
    for number, callback in enumerate(callbacks if isinstance(callbacks, list) else [callbacks]):
        arguments = (callback.get("init_args") if isinstance(callback, dict) else None) or {}
        for name in [name for name in arguments if name not in _CALLBACKS[callback["class_path"]]]:
            del arguments[name]
            left_out.append(f"trainer.callbacks.{number}.{name}")
    return left_out


def localize(
    settings: Mapping[str, Any],
    shortened: Sequence[str],
    folders: Sequence[Path],
    out: Path,
    overrides: Overrides,
) -> tuple[dict[str, Any], list[str]]:
    """Put paths of this machine into the settings that :func:`take_settings` returned.

    Args:
        settings: The settings.
        shortened: The settings whose paths the card shortened: these are no hub ids.
        folders: Folders in which to look for models and data files by name; the first match is used.
        out: The folder for all output.
        overrides: Paths that the user gives are not looked for.

    Returns:
        The settings, and the options that are left for the verb.

    Raises:
        ActError: Naming every model and file that was not found.
    """
    local, options = deepcopy(dict(settings)), list(overrides.options)
    issues: list[ConfigIssue] = []
    # Sources keep their names wherever they lie: random draws and score files depend on the name.
    for source in (local.get("profile") or {}).get("sources") or []:
        source.setdefault("name", AbilitySource(source["model"], []).label)
    for parent, key, setting in _path_settings(local):
        value = parent[key]
        if setting in overrides.values:
            parent[key] = overrides.values[setting]
            options = _without(options, setting)
        elif isinstance(value, str) and not overrides.replace(setting):
            try:
                is_short, revision = setting in shortened, parent.get("revision")
                find = partial(_find, setting=setting, folders=folders)
                if setting.startswith("profile.sources.") and (parts := split_adapter(value)):
                    # Of both a path is shortened to its last part, and an id of the hub, with an owner, stays.
                    short = {part: is_short and "/" not in part for part in parts}
                    parent[key] = "+".join(find(part, short[part], None if short[part] else revision) for part in parts)
                else:
                    parent[key] = find(value, is_short, None if is_short else revision)
            except ActError as error:
                issues += error.issues
    raise_if_any(issues)
    local["data"] = {**local.get("data", {}), "cache_dir": str(out / "cache")}
    local["trainer"] = {**local.get("trainer", {}), "default_root_dir": str(out)}
    return local, options


def _path_settings(settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every setting that may name a file or folder: the mapping that holds it, its key there, and its dotted name."""
    model, data, transfer = (settings.get(name) or {} for name in ("model", "data", "transfer"))
    places = [(model, "target", "model"), (data, "template", "data"), (transfer, "scores", "transfer")]
    for number, source in enumerate((settings.get("profile") or {}).get("sources") or []):
        places.append((source, "model", f"profile.sources.{number}"))
    for kind in ("abilities", "evaluations"):
        for name, data_set in (data.get(kind) or {}).items():
            places += [(data_set or {}, key, f"data.{kind}.{name}") for key in ("path", "template")]
    yield from ((parent, key, f"{prefix}.{key}") for parent, key, prefix in places if parent.get(key) is not None)


def _without(options: Sequence[str], setting: str) -> list[str]:
    """``options`` without ``--setting value`` or ``--setting=value``."""
    kept, rest = [], list(options)
    while rest:
        option = rest.pop(0)
        if option == f"--{setting}" and rest:
            rest.pop(0)
        elif not option.startswith(f"--{setting}="):
            kept.append(option)
    return kept


def _find(value: str, shortened: bool, revision: str | None, setting: str, folders: Sequence[Path]) -> str:
    """The path, hub id or name that a card's ``value`` stands for on this machine.

    Raises:
        ActError: It leaves the folders that the user named, or nothing there has the name.
    """
    key, prefix = setting.rpartition(".")[2], BIN_PREFIX if value.startswith(BIN_PREFIX) else ""
    name = value.removeprefix(prefix)
    if key == "template" and (not name.endswith(".jinja") or "{prompt}" in name):
        return value
    if key != "scores" and _LAB.fullmatch(name):
        return value
    hint = f"Name the folder that holds it with --from, or its own place with --{setting}."
    parts = re.split(r"[/\\]", name)
    if not name or name.startswith(("/", "\\", "~")) or ".." in parts or ":" in name or "\0" in name:
        raise ActError(ConfigIssue(setting, value, "must be a name below a folder that you offer", hint))
    is_file = extension(name) in READERS or key in ("template", "scores")
    if revision is None or is_file:
        for folder in folders:
            matches = [folder / name] if (folder / name).exists() else sorted(folder.glob(name)) if "*" in name else []
            outside = [path for path in matches if not _lies_in(path, folders)]
            if outside:
                problem = f"must lie below a folder of --from, and leads to {outside[0].resolve()}"
                raise ActError(ConfigIssue(setting, value, problem, hint))
            if matches:
                return prefix + str((folder / name).absolute())
    if shortened or is_file or not _HUB_ID.fullmatch(name):
        offered = ", ".join(map(str, folders)) or "a folder of --from, and none is given"
        raise ActError(ConfigIssue(setting, value, f"must be found by this name in {offered}", hint))
    if Path(name).exists():  # which would be read in place of the hub's
        problem = "must be a hub id or lie below a folder of --from, and names something in the current folder"
        raise ActError(ConfigIssue(setting, value, problem, f"{hint} --from . offers the current folder."))
    return value


def _lies_in(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
