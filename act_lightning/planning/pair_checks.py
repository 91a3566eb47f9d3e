"""How source and target differ, from their files: configs, stored precision, tokenizers, a sample of weight rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from act_lightning.checkpoints.compatibility import (
    config_differences,
    has_tokenizer,
    match_vocabularies,
    read_vocabulary,
)
from act_lightning.checkpoints.files import read_json
from act_lightning.checkpoints.models import load_config, resolve_dtype
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import is_weightless
from act_lightning.errors import ActError, ConfigIssue, Level, summarize_names

_MATRICES, _ROWS = 16, 16
_UNRELATED, _DISTANT = 0.1, 0.5
_OTHER_BASE = "Choose a source fine-tuned from the target's own base model."
_TEMPLATE = "chat_template.jinja"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_SHOWN_TOKENS = 3


def weight_notes(setting: str, name: str, folder: Path) -> list[ConfigIssue]:
    """A note where a folder holds a config but no weights."""
    if not is_weightless(folder):
        return []
    message = f"{folder} holds a config but no weights, so only shapes were compared"
    local = Path(name).expanduser().is_dir()
    hint = "Put the weights there before the run." if local else "The run will fetch them."
    return [ConfigIssue(setting, ..., message, hint, "note")]


def config_notes(target: Path, source: Path, setting: str) -> list[ConfigIssue]:
    """Notes on configs that differ: values, stored dtype, size of the vocabulary."""
    hint = "Nothing to do: the target's config is kept. The paper's own pair differs in such values."
    notes = [
        (f"{key}: {target_value!r} in the target, {source_value!r} in the source", hint)
        for key, (target_value, source_value) in config_differences(target, source).items()
    ]
    target_dtype, source_dtype = (
        str(resolve_dtype("auto", folder)).removeprefix("torch.") for folder in (target, source)
    )
    if target_dtype != source_dtype:
        hint = "Nothing to do: differences are taken in float32, and rounded once."
        notes.append((f"stored as {source_dtype}, the target as {target_dtype}", hint))
    target_size, source_size = (int(load_config(folder).get_text_config().vocab_size) for folder in (target, source))
    if target_size != source_size:
        message = f"a vocabulary of {source_size:,} entries, and the target's has {target_size:,}"
        hint = (
            "Nothing to do: entries are matched by the tokenizers' tokens, and those without a partner keep every bit."
        )
        notes.append((message, hint))
    return [ConfigIssue(setting, ..., message, hint, "note") for message, hint in notes]


def buffer_notes(target: Path, source: Path, setting: str) -> list[ConfigIssue]:
    """A note on buffers that checkpoints hold and that differ in two models with weights."""
    with CheckpointReader(target) as target_reader, CheckpointReader(source) as source_reader:
        buffers, others = target_reader.buffers(), source_reader.buffers()
    different = [
        name
        for name, values in buffers.items()
        if name not in others or not torch.equal(values.double(), others[name].double())
    ]
    if not different:
        return []
    message = f"{len(different)} stored buffers differ: {summarize_names(different)}"
    hint = "Nothing to do: buffers have no channels, so the target's are kept."
    return [ConfigIssue(setting, ..., message, hint, "note")]


@dataclass(frozen=True)
class Lineage:
    """How closely two models are related, judged by a sample of rows.

    Attributes:
        cosine: Mean cosine of a row in target and source: near 1 for siblings.
        chance: The same of rows that do not belong together, which is what unrelated models of this shape give.
        difference: ‖source − target‖ / ‖target‖ over the sample: √2 for unrelated models of one scale.
        rows: How many rows were read.
    """

    cosine: float
    chance: float
    difference: float
    rows: int

    def issues(self, setting: str) -> list[ConfigIssue]:
        """An error for an unrelated source, a warning for a distant or an identical one."""
        rows = f"{self.rows} sampled rows"
        agreement = f"{rows} agree with a cosine of {self.cosine:.3f}, unrelated ones with {self.chance:.3f}"
        if self.difference == 0:
            message = f"{rows} are equal in target and source: it has hardly anything to transfer"
            hint = "Check that the two are not one model under two names."
            return [ConfigIssue(setting, ..., message, hint, "warning")]
        if self.cosine - self.chance < _UNRELATED:
            return [ConfigIssue(setting, ..., f"the source is no sibling of the target: {agreement}", _OTHER_BASE)]
        if self.cosine < _DISTANT:
            message = f"the source is a distant relative at best: {agreement}"
            return [ConfigIssue(setting, ..., message, _OTHER_BASE, "warning")]
        return []


def lineage(target: Path, source: Path) -> Lineage | None:
    """Compare a few rows of matrices all over two models with weights; ``None`` if no matrices have one shape.

    Vocabulary matrices are left out because their rows may be numbered differently.

    Raises:
        ActError: A value that was read is NaN or infinite, or weights are incomplete.
    """
    with CheckpointReader(target) as target_reader, CheckpointReader(source) as source_reader:
        pairs = list(_sample_rows(target_reader, source_reader))
    if not pairs:
        return None
    cosines = torch.cat([cosine_similarity(target_rows, source_rows, dim=1) for target_rows, source_rows in pairs])
    chances = torch.cat(
        [cosine_similarity(target_rows, source_rows.roll(1, 0), dim=1) for target_rows, source_rows in pairs]
    )
    squares = [
        torch.stack([(source_rows - target_rows).square().sum(), target_rows.square().sum()])
        for target_rows, source_rows in pairs
    ]
    change, size = torch.stack(squares).sum(0).tolist()
    return Lineage(float(cosines.mean()), float(chances.mean()), (change / size) ** 0.5 if size else 0.0, len(cosines))


def _sample_rows(target: CheckpointReader, source: CheckpointReader) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of both models, float64, from matrices that lie in a layer of both."""
    tied = {name for group in target.keymap.ties for name in group}
    names = [
        name
        for name in target.names
        if name not in tied
        and any(part.isdigit() for part in name.split("."))
        and len(target.spec.shapes[name]) == 2
        and name in source.names
        and target.spec.shapes[name] == source.spec.shapes[name]
    ]
    step = max(len(names) // _MATRICES, 1)
    for name in names[::step][:_MATRICES]:
        height = target.spec.shapes[name][0]
        index = torch.linspace(0, height - 1, min(_ROWS, height)).long()
        yield target.rows(name, index).double(), source.rows(name, index).double()


def tokenizer_issues(target: Path, source: Path, setting: str) -> list[ConfigIssue]:
    """Warnings and notes on tokens, special tokens and chat templates; none if either folder has no tokenizer."""
    if not (has_tokenizer(target) and has_tokenizer(source)):
        return []
    try:
        return _token_issues(target, source, setting) + _template_issues(target, source, setting)
    except ActError:
        return []  # whatever needs the tokenizers reports this


def _token_issues(target: Path, source: Path, setting: str) -> list[ConfigIssue]:
    target_vocabulary, source_vocabulary = read_vocabulary(target), read_vocabulary(source)
    issues = []
    if renumbered := [
        token for token, number in target_vocabulary.items() if source_vocabulary.get(token, number) != number
    ]:
        message = f"{len(renumbered)} tokens have another number in the source: {_examples(renumbered)}"
        hint = "Rows of the vocabulary are matched by token; profiling refuses texts that the two encode differently."
        issues.append(ConfigIssue(setting, ..., message, hint, "warning"))
    for owner, tokens in (
        ("target", target_vocabulary.keys() - source_vocabulary.keys()),
        ("source", source_vocabulary.keys() - target_vocabulary.keys()),
    ):
        if tokens:
            message = f"{len(tokens)} tokens are the {owner}'s alone: {_examples(sorted(tokens))}"
            hint = "Nothing to do, unless the abilities' texts use them."
            issues.append(ConfigIssue(setting, ..., message, hint, "note"))
    match = match_vocabularies(target, source)
    if match is not None and match.missing:
        message = f"{match.missing} entries of the target's vocabulary have no partner in the source"
        hint = "Nothing to do: they keep every bit, and the report names them."
        issues.append(ConfigIssue(setting, ..., message, hint, "note"))
    return issues


def _examples(tokens: list[str]) -> str:
    return ", ".join(map(repr, tokens[:_SHOWN_TOKENS])) + (" …" if len(tokens) > _SHOWN_TOKENS else "")


def _template_issues(target: Path, source: Path, setting: str) -> list[ConfigIssue]:
    """Chat templates and special tokens that differ."""
    target_settings, source_settings = _tokenizer_settings(target), _tokenizer_settings(source)
    issues = []
    if target_settings["chat_template"] != source_settings["chat_template"]:
        level: Level = "warning" if target_settings["chat_template"] is None else "note"
        used = "the target has none" if target_settings["chat_template"] is None else "the target's is used for both"
        message = f"the chat templates differ: {used}, also where the source was trained on its own"
        hint = "Nothing to do, or write a data.template that suits both."
        issues.append(ConfigIssue(setting, ..., message, hint, level))
    for key in _SPECIAL_TOKENS:
        if target_settings[key] != source_settings[key]:
            message = f"{key}: {target_settings[key]!r} in the target, {source_settings[key]!r} in the source"
            hint = "Nothing to do: the target's tokenizer is kept."
            issues.append(ConfigIssue(setting, ..., message, hint, "note"))
    return issues


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Chat template and special tokens, as the tokenizer's files give them."""
    try:
        content = read_json(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        content = {}
    content = content if isinstance(content, dict) else {}
    values = {key: content.get(key) for key in ("chat_template", *_SPECIAL_TOKENS)}
    if (folder / _TEMPLATE).is_file():
        values["chat_template"] = (folder / _TEMPLATE).read_text(encoding="utf-8")
    return {key: value.get("content") if isinstance(value, dict) else value for key, value in values.items()}
