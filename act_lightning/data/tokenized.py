"""One ability as labeled token ids, with an account of what became of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.cache import (
    PreparedSet,
    PreparedShard,
    answer_tokens,
    cache_key,
    cache_root,
    cut_samples,
    load_or_prepare,
    prepare_shards,
    process_count,
)
from act_lightning.data.conversations import iter_conversations, rows_fingerprint
from act_lightning.data.labels import Encoder, Sample
from act_lightning.data.templates import make_template
from act_lightning.errors import ActError, ConfigIssue


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
        samples: Those that have answer tokens, in the order of the rows; read from disk when they are asked for.
        rows: Number of rows read.
        dropped: Number of rows with an empty answer, or without any answer token.
        cut: Number of samples that were cut at ``max_length``.
    """

    name: str
    samples: Sequence[Sample]
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
        return answer_tokens(self.samples)

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
            problem = f"must leave a sample to train on, and {self.name} has {len(self.samples)}"
            raise ActError(
                ConfigIssue("data.validation", share, problem, "Add rows, or name abilities to validate on.")
            )
        last = self.samples[kept:]
        first = replace(self, samples=self.samples[:kept], rows=self.rows - held, cut=cut_samples(self.samples[:kept]))
        return first, TokenizedAbility(self.name, last, held, 0, cut_samples(last))


def tokenize_ability(
    name: str,
    settings: AbilityData,
    tokenizer: PreTrainedTokenizerBase,
    default_template: str,
    max_length: int,
    num_proc: int | None = None,
    cache_dir: str | None = None,
) -> TokenizedAbility:
    """Read an ability's rows, and turn them into samples; or take those that an earlier call has left on disk.

    Args:
        name: Name of the ability.
        settings: Where its rows come from.
        tokenizer: The target's tokenizer.
        default_template: Template where the ability has none of its own.
        max_length: Longer sequences are cut at the end.
        num_proc: Number of processes; by default one for each core, up to 16.
        cache_dir: Folder of prepared sets; see :func:`~act_lightning.data.cache.cache_root`.

    Raises:
        ActError: If its rows cannot be read or rendered, or none of them has an answer token.
    """
    where = f"data.abilities.{name}"
    setting = "data.template" if settings.template is None else f"{where}.template"
    template = make_template(settings.template or default_template, tokenizer, setting)
    encode = Encoder(template, tokenizer, max_length)

    def prepare(folder: Path) -> list[PreparedShard]:
        conversations = iter_conversations(settings, where)
        return prepare_shards(conversations, encode, folder, process_count(num_proc), f"tokenizing {name}")

    rows = rows_fingerprint(settings, where)
    key = None if rows is None else cache_key(rows, template, tokenizer, max_length)
    found = load_or_prepare(cache_root(cache_dir), key, prepare)
    if not found.samples:
        prompts = (encode.prompt_length(messages) for _, messages in iter_conversations(settings, where))
        raise ActError(_empty_issue(where, settings.path, _losses(found, max_length), found.rows, prompts))
    ability = TokenizedAbility(
        name, found.samples, found.rows, found.rows - len(found.samples), cut_samples(found.samples)
    )
    counts = f"{len(ability.samples)} samples, {ability.tokens} answer tokens, {ability.cut} cut"
    rank_zero_info(f"{name}: {counts}; dropped: {_losses(found, max_length)}")
    return ability


def _empty_issue(where: str, path: str, losses: str, rows: int, prompts: Iterable[int | None]) -> ConfigIssue:
    problem = f"must have a row with answer tokens, but all {rows} are dropped: {losses}"
    if known := [length for length in prompts if length is not None]:
        problem += f"; the shortest prompt takes {min(known)}"
    return ConfigIssue(where, path, problem, "Check the answers, or raise data.max_length.")


def _losses(found: PreparedSet, max_length: int) -> str:
    unanswered = found.rows - len(found.samples) - found.empty
    return f"{found.empty} with an empty or no answer, {unanswered} without an answer token in {max_length} tokens"
