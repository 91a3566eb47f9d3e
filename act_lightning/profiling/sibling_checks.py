"""Whether target and sources belong together: the same architecture, shapes and token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from act_lightning.checkpoints.compatibility import pair_issues, sibling_issues, tokenizer_issues
from act_lightning.checkpoints.model_spec import model_spec, read_model_spec
from act_lightning.checkpoints.models import load_tokenizer
from act_lightning.checkpoints.weight_files import require_weights, stored_entries
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.profiling.measurement import Measurement
from act_lightning.profiling.target import Target

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_compatibility(target: Target, wanted: Sequence[Measurement]) -> None:
    """Check every source against the target before any model is loaded.

    Raises:
        ActError: With all issues found.
    """
    issues: list[ConfigIssue] = []
    checked: set[Path] = set()
    for one in wanted:
        if one.folder not in checked:
            checked.add(one.folder)
            require_weights(one.folder, one.source.model)
            issues += model_issues(target, one.folder, one.source.model)
    raise_if_any(issues)
    raise_if_any(issue for one in wanted for issue in _token_issues(target, one))


def model_issues(target: Target, source: Path, name: str) -> list[ConfigIssue]:
    """What keeps the weights of ``source`` from being moved into the target."""
    if target.model is None and target.folder is not None:
        return sibling_issues(target.folder, source, name)
    ours, theirs = model_spec(target.skeleton(), None, target.name), read_model_spec(source, stored_entries(source))
    found = pair_issues(ours, theirs, name, "profile.sources")
    if found or target.folder is not None:
        return found
    resized = [entry for entry in ours.vocabulary if ours.shapes[entry] != theirs.shapes[entry]]
    if not resized:
        return []
    problem = f"must have a vocabulary of the target's size, whose tokens no folder tells: {', '.join(resized)} differ"
    return [
        ConfigIssue(
            "profile.sources", name, problem, "Give ActivationDifferenceProfiler(target=...) the target's folder."
        )
    ]


def _token_issues(target: Target, one: Measurement) -> list[ConfigIssue]:
    if not one.samples.samples:
        return []  # weights alone are compared
    from_loader = one.ability in one.source.loaders
    if target.folder is None or (from_loader and not all(map(_has_tokenizer, (target.folder, one.folder)))):
        return []  # batches of the user's own: nothing says which tokenizer made them
    tokenizer = load_tokenizer(target.folder)
    texts = _texts(one, tokenizer)
    return tokenizer_issues(tokenizer, load_tokenizer(one.folder), texts, False, one.source.model)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _texts(one: Measurement, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    for sample in one.samples.samples:
        yield sample.text or str(tokenizer.decode(sample.input_ids))
