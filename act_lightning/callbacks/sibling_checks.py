"""Whether target and sources belong together: the same architecture, shapes and token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from act_lightning.callbacks.measurement import Measurement
from act_lightning.callbacks.target import Target
from act_lightning.checkpoints import (
    describe,
    describe_model,
    load_tokenizer,
    pair_faults,
    require_weights,
    sibling_faults,
    stored_entries,
    tokenizer_faults,
)
from act_lightning.errors import Fault, refuse

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def refuse_strangers(target: Target, wanted: Sequence[Measurement]) -> None:
    """Check every source against the target before any model is loaded.

    Raises:
        ActError: With all faults found.
    """
    faults: list[Fault] = []
    checked: set[Path] = set()
    for one in wanted:
        if one.folder not in checked:
            checked.add(one.folder)
            require_weights(one.folder, one.source.model)
            faults += model_faults(target, one.folder, one.source.model)
    refuse(faults)
    refuse(fault for one in wanted for fault in _token_faults(target, one))


def model_faults(target: Target, source: Path, name: str) -> list[Fault]:
    """What keeps the weights of ``source`` from being moved into the target."""
    if target.model is None and target.folder is not None:
        return sibling_faults(target.folder, source, name)
    ours, theirs = describe_model(target.skeleton(), None, target.name), describe(source, stored_entries(source))
    found = pair_faults(ours, theirs, name, "profile.sources")
    if found or target.folder is not None:
        return found
    resized = [entry for entry in ours.vocabulary if ours.shapes[entry] != theirs.shapes[entry]]
    if not resized:
        return []
    rule = f"must have a vocabulary of the target's size, whose tokens no folder tells: {', '.join(resized)} differ"
    return [Fault("profile.sources", name, rule, "Give ActivationDifferenceProfiler(target=...) the target's folder.")]


def _token_faults(target: Target, one: Measurement) -> list[Fault]:
    if not one.samples.samples:
        return []  # weights alone are compared
    from_loader = one.ability in one.source.loaders
    if target.folder is None or (from_loader and not all(map(_has_tokenizer, (target.folder, one.folder)))):
        return []  # batches of the user's own: nothing says which tokenizer made them
    tokenizer = load_tokenizer(target.folder)
    texts = _texts(one, tokenizer)
    return tokenizer_faults(tokenizer, load_tokenizer(one.folder), texts, False, one.source.model)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _texts(one: Measurement, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    for sample in one.samples.samples:
        yield sample.text or str(tokenizer.decode(sample.input_ids))
