"""Saved scores of any number of runs, read and checked, and the models that they were measured on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES, module_type, split_layer
from act_lightning.channels import ChannelInventory, ModuleChannels
from act_lightning.checkpoints.weight_files import identify, is_weightless
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.scores import ScoreRecord, chunks_path, read_record, read_scores

_ALONE = "Report what was measured alike in one report, and the rest in another."
# How modules stand in a decoder of Llama's kind; only for scores whose file does not say the order.
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Pair:
    """A pair of models with the scores of its abilities.

    Attributes:
        run: The folder of the run.
        source: The source's name in the run.
        label: As the paper writes it, ``<target> vs. <source>``.
        records: What each ability's scores were measured on, by the ability's name.
        scores: float32 ``[channels]`` by the ability's name.
    """

    run: Path
    source: str
    label: str
    records: Mapping[str, ScoreRecord]
    scores: Mapping[str, Tensor]

    @property
    def models(self) -> tuple[str, str]:
        """How target and source were named."""
        record = next(iter(self.records.values()))
        return record.models.get("target", "?"), record.models.get("source", "?")

    def digest(self, role: str) -> str | None:
        """The digest of the weights of ``target`` or ``source``."""
        record = next(iter(self.records.values()))
        return record.identities.get(role, {}).get("digest")


@dataclass(frozen=True)
class SavedScores:
    """All scores of a report.

    Attributes:
        inventory: The channels: names and counts of modules; what parameters they own is not known from scores.
        ordered: Whether the files say the model's order of modules. If not, equal scores are ranked in the usual one.
        pairs: The pairs of models, in the order of runs and of the sources' names.
    """

    inventory: ChannelInventory
    ordered: bool
    pairs: tuple[Pair, ...]

    @property
    def names(self) -> list[str]:
        """The names of all abilities."""
        return list(dict.fromkeys(name for pair in self.pairs for name in pair.scores))


def read_runs(runs: Sequence[Path], mixed_versions: bool = False) -> SavedScores:
    """Read ``<run>/scores/<source>/<ability>.safetensors`` of every run.

    Args:
        runs: Folders of runs.
        mixed_versions: Whether scores of other versions of the packages may stand side by side.

    Raises:
        ActError: A run without scores; a file that is damaged; files of one pair that were measured on other models,
            or in another precision or way; files that differ in channels, their order, or versions.
    """
    files = [path for run in runs for path in _score_files(run)]
    issues, records = _read_records(files)
    raise_if_any(issues)
    raise_if_any([*_mixed_issues(records), *([] if mixed_versions else _version_issues(records))])
    inventory, ordered = saved_channels(files[0])
    raise_if_any(_channel_issues(files, inventory, ordered))
    pairs = [_pair(run, folder, records, inventory) for run in runs for folder in _folders(files, run)]
    return SavedScores(inventory, ordered, tuple(_told_apart(pairs)))


def saved_channels(path: Path) -> tuple[ChannelInventory, bool]:
    """The channels that saved scores are of, and whether the file says their order.

    Raises:
        ActError: The file cannot be read, or its order names other modules than it holds.
    """
    try:
        with safe_open(path, framework="pt") as file:
            counts = {name: int(file.get_slice(name).get_shape()[0]) for name in file.keys()}
            order = json.loads((file.metadata() or {}).get("act", "{}")).get("modules")
    except (OSError, SafetensorError, IndexError, ValueError, AttributeError) as error:
        raise ActError(_unreadable(path, str(error))) from error
    if order is not None and (not isinstance(order, list) or sorted(map(str, order)) != sorted(counts)):
        raise ActError(_unreadable(path, "its order of modules names others than it holds"))
    names = sorted(counts, key=_usual_place) if order is None else order
    modules = tuple(ModuleChannels(name, counts[name], ()) for name in names)
    return ChannelInventory(modules, {}, {}), order is not None


def _usual_place(name: str) -> tuple[object, ...]:
    """Embeddings, then the layers by number, then what follows them, the head last."""
    layer, leaf = split_layer(name)[0], module_type(name)
    usual = _USUAL.index(leaf) if leaf in _USUAL else len(_USUAL)
    if layer:
        return 1, int(layer), usual, name
    return 0 if leaf in EMBEDDING_NAMES else 3 if leaf in HEAD_NAMES else 2, 0, usual, name


def _score_files(run: Path) -> list[Path]:
    """The files of a run's scores, without those of their chunks."""
    found = sorted((run / "scores").glob("*/*.safetensors"))
    chunks = {chunks_path(path) for path in found}
    files = [path for path in found if path not in chunks and not path.name.startswith(".")]
    if not files:
        problem = "must be the folder of a run with scores/<source>/<ability>.safetensors"
        raise ActError(
            ConfigIssue("RUN", str(run), problem, "Run `profile`, or name the run's trainer.default_root_dir.")
        )
    return files


def _read_records(files: Sequence[Path]) -> tuple[list[ConfigIssue], dict[Path, ScoreRecord]]:
    issues: list[ConfigIssue] = []
    records = {}
    for path in files:
        try:
            records[path] = read_record(path)
        except ActError as error:
            issues += error.issues
    return issues, records


def _mixed_issues(records: Mapping[Path, ScoreRecord]) -> Iterator[ConfigIssue]:
    """Files of one source that were not measured alike, apart from their data."""
    first: dict[Path, Path] = {}
    for path, record in records.items():
        reference = first.setdefault(path.parent, path)
        alike = replace(records[reference], data=record.data)
        if changes := alike.changes(record):
            problem = f"must have been measured like {reference.name} beside it ({'; '.join(changes)})"
            yield ConfigIssue(str(path), record.models, problem, f"Profile again. {_ALONE}")


def _version_issues(records: Mapping[Path, ScoreRecord]) -> Iterator[ConfigIssue]:
    reference, expected = next((path, record.versions) for path, record in records.items())
    for path, record in records.items():
        if record.versions != expected:
            problem = f"must come from the versions of {reference}, {dict(expected)}"
            yield ConfigIssue(
                str(path), dict(record.versions), problem, "Profile again, or allow it with --mixed-versions."
            )


def _channel_issues(files: Sequence[Path], inventory: ChannelInventory, ordered: bool) -> Iterator[ConfigIssue]:
    expected = [(module.name, module.count) for module in inventory.modules]
    for path in files[1:]:
        found, has_order = saved_channels(path)
        modules = [(module.name, module.count) for module in found.modules]
        if ordered and has_order and modules != expected:
            same = sorted(modules) == sorted(expected)
            problem = f"must have the channels of {files[0]}" + (", and has them in another order" if same else "")
            yield ConfigIssue(str(path), f"{found.total:,} channels", problem, _ALONE)
        elif sorted(modules) != sorted(expected):
            problem = f"must have the {inventory.total:,} channels of {files[0]}"
            yield ConfigIssue(str(path), f"{found.total:,} channels", problem, _ALONE)


def _folders(files: Sequence[Path], run: Path) -> list[Path]:
    return list(dict.fromkeys(path.parent for path in files if path.parent.parent.parent == run))


def _pair(run: Path, folder: Path, records: Mapping[Path, ScoreRecord], inventory: ChannelInventory) -> Pair:
    mine = {path: record for path, record in records.items() if path.parent == folder}
    scores = {path.stem: read_scores(path, inventory) for path in mine}
    for path, values in zip(mine, scores.values(), strict=True):
        raise_if_any(_negative_issues(path, values))
    pair = Pair(run, folder.name, "", {path.stem: record for path, record in mine.items()}, scores)
    return replace(pair, label=" vs. ".join(short_name(name) for name in pair.models))


def _negative_issues(path: Path, values: Tensor) -> list[ConfigIssue]:
    if bool((values < 0).any()):
        problem = "must hold means of absolute differences, which are not negative"
        return [_unreadable(path, problem)]
    if not bool(values.any()):
        problem = "must hold a score above 0; target and source act alike"
        return [ConfigIssue(str(path), 0.0, problem, "Compare two models that differ.")]
    return []


def _told_apart(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs, those of one label with their run and source added to it."""
    times = Counter(pair.label for pair in pairs)
    for pair in pairs:
        more = f" ({pair.run.name}/{pair.source})"
        yield pair if times[pair.label] == 1 else replace(pair, label=pair.label + more)


def short_name(model: str) -> str:
    """The last part of a model's name.

    >>> short_name("Qwen/Qwen2.5-7B-Instruct"), short_name("lab:generalist")
    ('Qwen2.5-7B-Instruct', 'generalist')
    """
    return re.split(r"[/:\\]", model.rstrip("/\\"))[-1]


def _unreadable(path: Path, reason: str) -> ConfigIssue:
    return ConfigIssue(
        "scores", str(path), f"must be a readable score file ({reason})", "Delete the file and profile again."
    )


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """The content of a JSON file of a run, or ``None`` if there is none.

    Raises:
        ActError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ActError(ConfigIssue(str(path), path.name, f"must be JSON ({error})", "Delete the file.")) from error


_LABORATORY = "lab:"


class NotOnDisk(Exception):
    """A model is not here, or is another one than the scores were measured on; its text says which and why."""


def find_models(pair: Pair, folders: Mapping[str, Path]) -> tuple[Path, Path]:
    """The folders of target and source.

    Args:
        pair: The scores, with the models' names and digests.
        folders: Where a model lies, by its name there.

    Raises:
        NotOnDisk: One of them is not here, or has other weights.
        ActError: A folder in ``folders`` does not hold the model's weights.
    """
    found = []
    for role, name in zip(("target", "source"), pair.models, strict=True):
        folder = folders[name] if name in folders else _find(name, _commit(pair, role))
        try:
            _check(folder, pair.digest(role))
        except NotOnDisk as error:
            if name not in folders:
                raise
            problem = f"must be the folder of {name}, and {error}"
            raise ActError(ConfigIssue("--model", str(folder), problem, "Correct the path.")) from error
        found.append(folder)
    return found[0], found[1]


def _commit(pair: Pair, role: str) -> str | None:
    record = next(iter(pair.records.values()))
    commit = record.identities.get(role, {}).get("commit")
    return str(commit) if commit else None


def _find(name: str, commit: str | None) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return _of_laboratory(name) if name.startswith(_LABORATORY) else _of_hub_cache(name, commit)


def _of_laboratory(name: str) -> Path:
    from act_lightning.defaults import cache_folder
    from act_lightning.lab.models import Recipe

    folder = cache_folder("laboratory") / Recipe().version / name.removeprefix(_LABORATORY)
    if not folder.is_dir():
        raise NotOnDisk(f"{name} has not been built on this machine")
    return folder


def _of_hub_cache(name: str, commit: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotOnDisk(f"{name} is neither a folder here nor in the hub's cache") from error


def _check(folder: Path, digest: str | None) -> None:
    if not folder.is_dir() or is_weightless(folder):
        raise NotOnDisk(f"{folder} holds no weights")
    try:
        same = identify(folder).digest == digest
    except ActError as error:
        raise NotOnDisk(f"the weights in {folder} cannot be read ({error})") from error
    if not same:
        raise NotOnDisk(f"the weights in {folder} are not those that the scores were measured on")
