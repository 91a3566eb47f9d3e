"""One ability as labeled token ids, with an account of what became of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from act_lightning.data.labels import IGNORED, Encoder, Sample, has_answers
from act_lightning.data.rows import LocatedConversation, iter_conversations
from act_lightning.data.settings import AbilityData
from act_lightning.data.templates import make_template
from act_lightning.errors import ActError, Fault

_QUIET_SECONDS = 2.0


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 over the length, the ids and the labels of every sample, in order.

    Args:
        samples: Samples with int64 ids and labels.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(len(sample.input_ids).to_bytes(8, "little"))
        digest.update(sample.input_ids.numpy().astype("<i8").tobytes())
        digest.update(sample.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class TokenizedAbility:
    """The samples of one ability.

    Attributes:
        name: Name of the ability.
        samples: Those that have answer tokens, in the order of the rows.
        rows: Number of rows read.
        dropped: Number of rows with an empty answer, or without any answer token.
        cut: Number of samples that were cut at ``max_length``.
    """

    name: str
    samples: list[Sample]
    rows: int
    dropped: int
    cut: int

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all ids and labels in order."""
        return fingerprint(self.samples)

    @cached_property
    def tokens(self) -> int:
        """Number of answer tokens."""
        return sum(int((sample.labels != IGNORED).sum()) for sample in self.samples)

    def hold_out(self, share: float) -> tuple[TokenizedAbility, TokenizedAbility]:
        """Part the last ⌊n · share⌋ samples, one at least, from the others.

        Args:
            share: A share in (0, 1), taken as the decimal it is written as.

        Returns:
            The others, and those held out.

        Raises:
            ActError: If no other sample is left.
        """
        held = max(1, int(len(self.samples) * Fraction(str(share))))
        kept = len(self.samples) - held
        if kept < 1:
            rule = f"must leave a sample to train on, and {self.name} has {len(self.samples)}"
            raise ActError(Fault("data.validation", share, rule, "Add rows, or name abilities to validate on."))
        last = self.samples[kept:]
        first = replace(self, samples=self.samples[:kept], rows=self.rows - held, cut=_cut(self.samples[:kept]))
        return first, TokenizedAbility(self.name, last, held, 0, _cut(last))


def _cut(samples: Sequence[Sample]) -> int:
    return sum(sample.cut for sample in samples)


def tokenize_ability(
    name: str, settings: AbilityData, tokenizer: PreTrainedTokenizerBase, default_template: str, max_length: int
) -> TokenizedAbility:
    """Read an ability's rows, and turn them into samples.

    Args:
        name: Name of the ability.
        settings: Where its rows come from.
        tokenizer: The target's tokenizer.
        default_template: Template where the ability has none of its own.
        max_length: Longer sequences are cut at the end.

    Raises:
        ActError: If its rows cannot be read or rendered, or none of them has an answer token.
    """
    where = f"data.abilities.{name}"
    setting = "data.template" if settings.template is None else f"{where}.template"
    template = make_template(settings.template or default_template, tokenizer, setting)
    conversations = list(iter_conversations(settings, where))
    encoder = Encoder(template, tokenizer, max_length)
    found = _encode_all(conversations, encoder, name)
    samples = [sample for sample in found if sample is not None]
    dropped = len(found) - len(samples)
    ability = TokenizedAbility(name, samples, len(found), dropped, _cut(samples))
    empty = sum(not has_answers(one.messages) for one in conversations)
    losses = f"{empty} with an empty or no answer, {dropped - empty} without an answer token in {max_length} tokens"
    if not samples:
        rule = f"must have a row with answer tokens, but all {len(found)} are dropped: {losses}"
        if lengths := [length for one in conversations if (length := encoder.prompt_length(one.messages)) is not None]:
            rule += f"; the shortest prompt takes {min(lengths)}"
        raise ActError(Fault(where, settings.path, rule, "Check the answers, or raise data.max_length."))
    rank_zero_info(
        f"{name}: {len(samples)} samples, {ability.tokens} answer tokens, {ability.cut} cut; dropped: {losses}"
    )
    return ability


def _encode_all(conversations: Sequence[LocatedConversation], encode: Encoder, name: str) -> list[Sample | None]:
    quiet = rank_zero_only.rank != 0  # type: ignore[attr-defined]  # set at run time
    bar = tqdm(conversations, desc=f"tokenizing {name}", unit="row", delay=_QUIET_SECONDS, leave=False, disable=quiet)
    return [encode(messages, place) for place, messages in bar]
