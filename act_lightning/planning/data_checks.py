"""What the first rows of local data sets reveal before a run: columns, broken rows, templates, token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from act_lightning.checkpoints.compatibility import has_tokenizer, token_id_issues, tokenizer_issues
from act_lightning.checkpoints.models import load_tokenizer
from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.cache import largest_id
from act_lightning.data.conversations import iter_conversations
from act_lightning.data.labels import Encoder, Sample
from act_lightning.data.loading import source_kind
from act_lightning.data.tasks import read_items, read_prompts
from act_lightning.data.templates import resolve_template
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.planning.checks import Models, Run, needs_samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 32
_Settings = TypeVar("_Settings", bound=AbilityData)


def first_rows_issues(run: Run, verb: str, models: Models) -> list[ConfigIssue]:
    """What is wrong with the first rows of every data set on this machine, and with their tokens in any of the models.

    Sets on the hub are not read, and without a tokenizer nothing is tokenized.
    """
    if verb != "fit" and not needs_samples(run, verb):
        return []
    checked, target = Models(), models.target
    tokenizer = None
    if target is not None and has_tokenizer(target):
        tokenizer = checked.attempt(partial(load_tokenizer, target))
    samples: dict[str, list[Sample]] = {}
    for name, settings in _local(run.data.abilities).items():
        read = partial(_read_samples, run, f"data.abilities.{name}", settings, tokenizer, target)
        samples[name] = checked.attempt(read) or []
    for name, evaluation in _local(run.data.evaluations).items():
        checked.attempt(partial(_check_prompts, run, name, evaluation, tokenizer, target))
    if tokenizer is not None and needs_samples(run, verb):
        for i, folder in models.sources.items():
            source = run.sources[i]
            own = [sample for name in source.abilities for sample in samples.get(name, [])]
            if own and has_tokenizer(folder):
                checked.attempt(partial(_check_source, source.model, folder, tokenizer, own))
    return checked.issues


def _local(sets: Mapping[str, _Settings]) -> dict[str, _Settings]:
    """The first rows of each set that needs no network, in the order of the file."""
    return {
        name: replace(settings, limit=min(settings.limit or _ROWS, _ROWS), shuffle_seed=None, per_group=None)
        for name, settings in sets.items()
        if len(settings.path) < 4096 and source_kind(settings.path) in ("file", "folder", "lab")
    }


def _read_samples(
    run: Run, where: str, settings: AbilityData, tokenizer: PreTrainedTokenizerBase | None, target: Path | None
) -> list[Sample]:
    conversations = list(iter_conversations(settings, where))
    if tokenizer is None or target is None:
        return []
    template = resolve_template(settings, where, tokenizer, run.data.template)
    encoder = Encoder(template, tokenizer, run.data.max_length)
    locations, messages = zip(*conversations, strict=True)
    samples = [sample for sample in encoder.encode_batch(messages, locations) if sample is not None]
    raise_if_any(token_id_issues(largest_id(samples), target, where))
    return samples


def _check_prompts(
    run: Run,
    name: str,
    settings: EvaluationData,
    tokenizer: PreTrainedTokenizerBase | None,
    target: Path | None,
) -> None:
    where = f"data.evaluations.{name}"
    if tokenizer is None or target is None:
        read_items(settings, where)
        return
    prompts = read_prompts(name, settings, tokenizer, run.data.template)
    raise_if_any(token_id_issues(largest_id(prompts), target, where))


def _check_source(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> None:
    """Raise if a source reads the samples of its abilities unlike the target, as profiling would."""
    texts = (sample.text for sample in samples)
    raise_if_any(tokenizer_issues(tokenizer, load_tokenizer(folder), texts, False, name))
    raise_if_any(token_id_issues(largest_id(samples), folder, name))
