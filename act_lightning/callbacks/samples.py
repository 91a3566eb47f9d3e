"""The samples that an ability is measured on: from the data module, or from batches of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from act_lightning.callbacks.sources import AbilitySource
from act_lightning.data import AbilityDataModule, Sample, fingerprint, unbatch
from act_lightning.errors import ActError, Fault

_TENSORS = ("input_ids", "labels", "attention_mask")


@dataclass(frozen=True)
class AbilitySamples:
    """The samples of one ability.

    Attributes:
        samples: Those with answer tokens.
        dropped: Number of rows without answer tokens, or without an answer.
        fingerprint: SHA-256 over all token ids and labels.
    """

    samples: list[Sample]
    dropped: int
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Number of answer tokens."""
        return sum(answer_tokens(sample.labels) for sample in self.samples)


def answer_tokens(labels: Tensor) -> int:
    """Number of answer tokens in labels of any shape."""
    return int((labels != -100).sum())


def ability_samples(source: AbilitySource, ability: str, datamodule: object) -> AbilitySamples:
    """The samples of an ability of ``source``.

    Raises:
        ActError: If the ability is unknown, or no sample has an answer token.
    """
    if ability in source.loaders:
        return _from_batches(ability, source.loaders[ability])
    known = datamodule.tokenized if isinstance(datamodule, AbilityDataModule) else {}
    if ability not in known:
        rule = f"must be one of data.abilities: {', '.join(known) or 'none'}"
        remedy = "Add it there, or give the source's abilities as a dict of batches."
        raise ActError(Fault("profile.sources.abilities", ability, rule, remedy))
    found = known[ability]
    return AbilitySamples(list(found.samples), found.dropped, found.fingerprint)


def _from_batches(ability: str, batches: Iterable[dict[str, Any]]) -> AbilitySamples:
    rows: list[Sample] = []
    for batch in batches:
        _check(batch, ability)
        rows += unbatch(batch)
    kept = [sample for sample in rows if answer_tokens(sample.labels)]
    if not kept:
        rule = f"must hold answer tokens, that is labels other than -100; {len(rows)} rows have none"
        raise ActError(Fault(f"abilities[{ability!r}]", "batches", rule, "Check how the labels are made."))
    return AbilitySamples(kept, len(rows) - len(kept), fingerprint(kept))


def _check(batch: object, ability: str) -> None:
    """Refuse what is no batch: a sample of a data set, say, or tensors that do not belong together."""
    found = [name for name in _TENSORS if name in batch] if isinstance(batch, Mapping) else []
    shapes = {name: tuple(batch[name].shape) for name in found}  # type: ignore[index]  # only found in a mapping
    if {"input_ids", "labels"} <= set(shapes) and len(set(shapes.values())) == 1 and len(shapes["labels"]) == 2:
        return
    rule = "must be dicts of input_ids, labels and, where there is padding, attention_mask, of one shape [rows, length]"
    remedy = "Wrap a data set in a DataLoader; mark with -100 in labels what is no answer token."
    raise ActError(Fault(f"abilities[{ability!r}]", shapes or type(batch).__name__, rule, remedy))
