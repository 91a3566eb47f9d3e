"""Saved scores of any number of runs, read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES, module_type, split_layer
from act_lightning.channels import ChannelInventory, ModuleChannels
from act_lightning.checkpoints.files import last_part, parse_json
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.scorers import Activation
from act_lightning.scores import ScoreRecord, chunks_path, read_record, read_scores

_SEPARATE_REPORTS = "Report what was measured alike in one report, and the rest in another."
# The order of modules in a decoder like Llama's, for scores whose file does not say the order.
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Pair:
    """The scores of a pair of models in a run, by one scorer.

    Attributes:
        folder: The folder of the scorer's scores, ``<run>/scores`` or ``<run>/scores.<scorer>``.
        source: The source's name in the run.
        label: As the paper writes it, ``<target> vs. <source>``; of another scorer than the paper's with its name.
        scorer: The scorer's name.
        records: What each ability's scores were measured on, by the ability's name.
        scores: float32 ``[channels]`` by the ability's name.
    """

    run: Path
    folder: Path
    source: str
    label: str
    scorer: str
    records: Mapping[str, ScoreRecord]
    scores: Mapping[str, Tensor]

    @property
    def models_label(self) -> str:
        """The label without the scorer's name."""
        return " vs. ".join(last_part(name) for name in self.models)

    @property
    def models(self) -> tuple[str, str]:
        """The names of target and source."""
        record = next(iter(self.records.values()))
        return record.models.get("target", "?"), record.models.get("source", "?")


@dataclass(frozen=True)
class SavedScores:
    """All scores of a report, by pairs of models in the order of runs and of the sources' names.

    Of the channels, names and counts of modules are known, not what parameters they own. ``ordered`` says whether the
    files give the model's order of modules. If not, equal scores are ranked in the usual one.
    """

    inventory: ChannelInventory
    ordered: bool
    pairs: tuple[Pair, ...]

    @property
    def names(self) -> list[str]:
        """The names of all abilities."""
        return list(dict.fromkeys(name for pair in self.pairs for name in pair.scores))


def read_runs(runs: Sequence[Path], mixed_versions: bool = False) -> SavedScores:
    """Read ``<run>/scores/<source>/<ability>.safetensors`` of every run, and those of other scorers beside it.

    Raises:
        ActError: A run without scores; a file that is damaged; files of one pair that were measured on other models,
            or in another precision or way; files that differ in channels, their order, or versions.
    """
    files = {run: _score_files(run) for run in runs}
    paths = [path for run in runs for path in files[run]]
    records: dict[Path, ScoreRecord] = {}
    issues: list[ConfigIssue] = []
    for path in paths:
        try:
            records[path] = read_record(path)
        except ActError as error:
            issues += error.issues
    raise_if_any(issues)
    raise_if_any(_record_issues(records, mixed_versions))
    inventory, ordered = saved_channels(paths[0])
    raise_if_any(_channel_issues(paths, inventory, ordered))
    pairs = []
    for run in runs:
        for folder in dict.fromkeys(path.parent for path in files[run]):
            members = {path.stem: path for path in records if path.parent == folder}
            scores = {ability: _read_scores(path, inventory) for ability, path in members.items()}
            by_ability = {ability: records[path] for ability, path in members.items()}
            scorer = str(next(iter(by_ability.values())).scorer.get("name"))
            pair = Pair(run, folder.parent, folder.name, "", scorer, by_ability, scores)
            end = "" if scorer == Activation.name else f", by {scorer}"
            pairs.append(replace(pair, label=pair.models_label + end))
    labels = Counter(pair.label for pair in pairs)
    for i, pair in enumerate(pairs):
        if labels[pair.label] > 1:
            pairs[i] = replace(pair, label=f"{pair.label} ({pair.run.name}/{pair.source})")
    return SavedScores(inventory, ordered, tuple(pairs))


def saved_channels(path: Path) -> tuple[ChannelInventory, bool]:
    """The channels that saved scores are of, and whether the file says their order.

    Raises:
        ActError: The file cannot be read, or its order names other modules than it holds.
    """
    try:
        with safe_open(path, framework="pt") as file:
            counts = {name: int(file.get_slice(name).get_shape()[0]) for name in file.keys()}
            order = parse_json((file.metadata() or {}).get("act", "{}")).get("modules")
    except (OSError, SafetensorError, IndexError, ValueError, AttributeError) as error:
        raise ActError(_unreadable(path, str(error))) from error
    if order is not None and (not isinstance(order, list) or sorted(map(str, order)) != sorted(counts)):
        raise ActError(_unreadable(path, "its order of modules names others than it holds"))
    names = sorted(counts, key=_usual_order) if order is None else order
    modules = tuple(ModuleChannels(name, counts[name], ()) for name in names)
    return ChannelInventory(modules, {}, {}), order is not None


def _usual_order(name: str) -> tuple[object, ...]:
    """Embeddings, then the layers by number, then what follows them, the head last."""
    layer, leaf = split_layer(name)[0], module_type(name)
    usual = _USUAL.index(leaf) if leaf in _USUAL else len(_USUAL)
    if layer:
        return 1, int(layer), usual, name
    return 0 if leaf in EMBEDDING_NAMES else 3 if leaf in HEAD_NAMES else 2, 0, usual, name


def _score_files(run: Path) -> list[Path]:
    """The files of a run's scores, the paper's first, without those of their chunks."""
    folders = [run / "scores", *sorted(run.glob("scores.*"))]
    paths = [path for folder in folders for path in sorted(folder.glob("*/*.safetensors"))]
    chunks = {chunks_path(path) for path in paths}
    files = [path for path in paths if path not in chunks and not path.name.startswith(".")]
    if not files:
        problem = "must be the folder of a run with scores/<source>/<ability>.safetensors"
        hint = "Run `profile`, or name the run's trainer.default_root_dir."
        raise ActError(ConfigIssue("RUN", str(run), problem, hint))
    return files


def _record_issues(records: Mapping[Path, ScoreRecord], mixed_versions: bool) -> list[ConfigIssue]:
    """Files of one source that were measured differently, apart from their data; files of different versions."""
    issues = []
    first: dict[Path, Path] = {}
    for path, record in records.items():
        reference = first.setdefault(path.parent, path)
        if changes := replace(records[reference], data=record.data).changes(record):
            problem = f"must have been measured like {reference.name} beside it ({'; '.join(changes)})"
            issues.append(ConfigIssue(str(path), record.models, problem, f"Profile again. {_SEPARATE_REPORTS}"))
    reference = next(iter(records))
    expected = records[reference].versions
    for path, record in records.items():
        if record.versions != expected and not mixed_versions:
            problem = f"must come from the versions of {reference}, {dict(expected)}"
            hint = "Profile again, or allow it with --mixed-versions."
            issues.append(ConfigIssue(str(path), dict(record.versions), problem, hint))
    return issues


def _channel_issues(files: Sequence[Path], inventory: ChannelInventory, ordered: bool) -> Iterator[ConfigIssue]:
    expected = [(module.name, module.count) for module in inventory.modules]
    for path in files[1:]:
        channels, has_order = saved_channels(path)
        modules = [(module.name, module.count) for module in channels.modules]
        same = sorted(modules) == sorted(expected)
        if ordered and has_order and modules != expected:
            problem = f"must have the channels of {files[0]}" + (", and has them in another order" if same else "")
        elif not same:
            problem = f"must have the {inventory.total:,} channels of {files[0]}"
        else:
            continue
        yield ConfigIssue(str(path), f"{channels.total:,} channels", problem, _SEPARATE_REPORTS)


def _read_scores(path: Path, inventory: ChannelInventory) -> Tensor:
    """Scores that a mean of absolute differences can be, where they are the paper's, float32 ``[channels]``."""
    values = read_scores(path, inventory)
    if path.parent.parent.name == "scores" and bool((values < 0).any()):
        raise ActError(_unreadable(path, "must hold means of absolute differences, which are not negative"))
    if not bool(values.any()):
        problem = "must hold a score above 0; target and source act alike"
        raise ActError(ConfigIssue(str(path), 0.0, problem, "Compare two models that differ."))
    return values


def _unreadable(path: Path, reason: str) -> ConfigIssue:
    problem = f"must be a readable score file ({reason})"
    return ConfigIssue("scores", str(path), problem, "Delete the file and profile again.")


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """The content of a JSON file of a run, or ``None`` if there is none.

    Raises:
        ActError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ActError(ConfigIssue(str(path), path.name, f"must be JSON ({error})", "Delete the file.")) from error
