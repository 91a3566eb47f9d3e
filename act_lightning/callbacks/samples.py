"""The samples that an ability is measured on: from the data module, or from batches of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from act_lightning.activations import Reading
from act_lightning.callbacks.sources import AbilitySource
from act_lightning.data import (
    MOST_WASTE,
    AbilityDataModule,
    Packing,
    Sample,
    answer_tokens,
    collate,
    deal,
    fingerprint,
    lengths,
    pack,
    packs,
    token_budget_batches,
    unbatch,
)
from act_lightning.errors import ActError, Fault

_TENSORS = ("input_ids", "labels", "attention_mask")


class Unit(NamedTuple):
    """The numbers of the samples of a batch, and the chunk that they are of."""

    numbers: list[int]
    chunk: int


@dataclass(frozen=True)
class AbilitySamples:
    """The samples of one ability.

    Attributes:
        samples: Those with answer tokens.
        dropped: Number of rows without answer tokens, or without an answer.
        fingerprint: SHA-256 over all token ids and labels.
        packing: Whether they may be packed; see :func:`~act_lightning.data.packs`.
    """

    samples: Sequence[Sample]
    dropped: int
    fingerprint: str
    packing: Packing = "auto"

    @property
    def tokens(self) -> int:
        """Number of answer tokens."""
        return answer_tokens(self.samples)

    def chunk_sizes(self, chunks: int, used: int) -> tuple[list[int], list[int]]:
        """Answer tokens and number of the samples of each chunk, among the first ``used`` samples."""
        tokens, samples = [0] * chunks, [0] * chunks
        for number in range(used):
            tokens[number % chunks] += answer_tokens([self.samples[number]])
            samples[number % chunks] += 1
        return tokens, samples

    def readings(
        self,
        config: PretrainedConfig,
        budget: int,
        rank: int,
        world_size: int,
        chunks: int = 0,
        part: range | None = None,
    ) -> Iterator[Reading]:
        """One process's share of the samples, in batches of like length.

        Args:
            config: The config of the models that read them.
            budget: Bound on the tokens of a batch, padding included.
            rank: Number of the process.
            world_size: Number of processes.
            chunks: Number of chunks; sample i is of chunk i modulo their number, and no batch has samples of two. 0:
                all are of one.
            part: Numbers of the samples that are read; by default all.
        """
        packed, length_of = packs(self.packing, config, by_length=True), lengths(self.samples)
        among = range(len(self.samples)) if part is None else part
        units = []
        for chunk in range(max(1, chunks)):
            its = [number for number in among if not chunks or number % chunks == chunk]
            batches = token_budget_batches([length_of[number] for number in its], budget, MOST_WASTE, packed)
            units += [Unit([its[place] for place in places], chunk) for places in batches]
        for numbers, chunk in deal(units, rank, world_size):
            chosen = [self.samples[number] for number in numbers]
            yield Reading(pack(chosen) if packed else collate(chosen, 0), chunk)


NO_SAMPLES = AbilitySamples((), 0, "none")
"""What is measured on weights alone is measured on these."""


def ability_samples(source: AbilitySource, ability: str, datamodule: object) -> AbilitySamples:
    """The samples of an ability of ``source``.

    Raises:
        ActError: If the ability is unknown, or no sample has an answer token.
    """
    if ability in source.loaders:
        return _from_batches(ability, source.loaders[ability])
    if isinstance(datamodule, AbilityDataModule) and ability in datamodule.tokenized:
        found = datamodule.tokenized[ability]
        return AbilitySamples(found.samples, found.dropped, found.fingerprint, datamodule.packing)
    known = ", ".join(datamodule.tokenized) if isinstance(datamodule, AbilityDataModule) else "none"
    remedy = "Add it there, or give the source's abilities as a dict of batches."
    raise ActError(
        Fault("profile.sources.abilities", ability, f"must be one of data.abilities: {known or 'none'}", remedy)
    )


def _from_batches(ability: str, batches: Iterable[dict[str, Any]]) -> AbilitySamples:
    rows: list[Sample] = []
    for batch in batches:
        _check(batch, ability)
        rows += unbatch(batch)
    kept = [sample for sample in rows if answer_tokens([sample])]
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
