"""The verb ``init``: write a commented config for two models and data files, from what these files say themselves."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import torch
import yaml

from act_lightning.checkpoints.compatibility import has_tokenizer, sibling_issues
from act_lightning.checkpoints.files import check_writable, last_part, write_file
from act_lightning.checkpoints.models import load_config, load_tokenizer, locate, resolve_dtype
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.config_schema import FILE as SCHEMA
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import iter_conversations
from act_lightning.data.labels import Encoder
from act_lightning.data.loading import open_rows, source_kind
from act_lightning.data.templates import make_template
from act_lightning.errors import ActError, ConfigIssue, raise_if_any, summarize_names
from act_lightning.escaping import terminal_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 1000  # of each set that are read
_MULTIPLE, _UNBOUNDED = 64, 1 << 30
_PROMPTS = ("prompt", "query", "question", "problem", "input", "instruction", "user", "source", "text")
_ANSWERS = ("answer", "response", "completion", "output", "solution", "target", "assistant", "label", "answers")
_PLAIN_TEMPLATE = "alpaca"
_TRANSFER = """\
transfer:                        # recommended; without it, the paper's rule
  selection: attribution         # channels that lower the answers' loss most
  share: parameters
  ratio: 0.02                    # p: how many of them
  scale: 1.0                     # λ: how far towards the source
"""
_SEPARATORS = re.compile(r"[-_.\s]+")


@dataclass(frozen=True)
class DataSet:
    """One data set, as far as it was read.

    Attributes:
        name: The ability's name.
        settings: Where its rows are, and which columns hold what.
        rows: How many rows were read, at most 1,000.
        longest: Tokens of the longest of them; ``None`` without a tokenizer.
    """

    name: str
    settings: AbilityData
    rows: int
    longest: int | None


def main(arguments: Sequence[str]) -> int:
    """Write the config, given what follows the verb, and return the exit status.

    Raises:
        ActError: The models are no siblings, a data set cannot be read, or the file cannot be written.
    """
    args = _parser().parse_args(list(arguments))
    _check_out(args.out, args.overwrite)
    target, source = (
        locate(args.target, weights=False),
        locate(args.source, None, "SOURCE", weights=False, adapters=True),
    )
    raise_if_any(sibling_issues(target, source, "SOURCE"))
    tokenizer = load_tokenizer(target) if has_tokenizer(target) else None
    template = "chat" if tokenizer is None or tokenizer.chat_template else _PLAIN_TEMPLATE
    columns = {name: column for name, column in (("prompt", args.prompt), ("answer", args.answer)) if column}
    paths = [*args.data, *args.keep]
    sets = _read_sets(paths, columns, tokenizer, template)
    text = "".join(_config(args, sets[: len(args.data)], sets[len(args.data) :], target, template))
    write_file(args.out, text)
    print(terminal_text(f"{args.out} written: {summarize_names([each.name for each in sets])}"))
    print(terminal_text(f"next: {PROGRAM} plan --config {shlex.quote(str(args.out))}"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser(
        prog=f"{PROGRAM} init",
        description=VERBS["init"].about,
        epilog="Names of abilities come from the files' names. Columns, lengths, the template and whether the models "
        "are siblings are read from the files.",
    )
    parser.add_argument("target", metavar="TARGET", help="The model to be improved: a folder or hub id.")
    parser.add_argument("source", metavar="SOURCE", help="A sibling that has the abilities.")
    about = "A set whose ability is to be taken from the source: JSONL, JSON, CSV, Parquet; may be repeated."
    parser.add_argument("data", metavar="DATA", nargs="+", help=about)
    about = "A set to train on as well, of what the target must keep."
    parser.add_argument("--keep", metavar="DATA", nargs="+", default=[], help=about)
    parser.add_argument("--prompt", metavar="COLUMN", help="The column of prompts, where it cannot be guessed.")
    parser.add_argument("--answer", metavar="COLUMN", help="The column of answers, where it cannot be guessed.")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("recover.yaml"), help="By default recover.yaml."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace FILE.")
    return parser


def _check_out(out: Path, overwrite: bool) -> None:
    """Raise an :class:`ActError` if the file cannot or must not be written."""
    if out.suffix not in (".yaml", ".yml"):
        raise ActError(ConfigIssue("--out", str(out), "must end in .yaml", "Name a file such as recover.yaml."))
    if not str(out).isprintable():
        raise ActError(ConfigIssue("--out", str(out), "must be printable text", "Choose another name."))
    if out.is_dir():
        raise ActError(ConfigIssue("--out", str(out), "must be a file, and is a folder", "Choose another name."))
    if out.exists() and not overwrite:
        hint = "Add --overwrite to replace it, or choose another --out."
        raise ActError(ConfigIssue("--out", str(out), "must not be replaced unasked", hint))
    raise_if_any(check_writable(out.absolute().parent, "--out"))


def _read_sets(
    paths: Sequence[str], columns: Mapping[str, str], tokenizer: PreTrainedTokenizerBase | None, template: str
) -> list[DataSet]:
    """Read the first rows of every set, and report what is wrong with any of them at once."""
    sets, issues = [], list[ConfigIssue]()
    for name, path in zip(ability_names(paths), paths, strict=True):
        try:
            sets.append(_read_set(name, path, columns, tokenizer, template))
        except ActError as error:
            issues += error.issues
    repeated = [path for i, path in enumerate(paths) if path in paths[:i]]
    issues += [ConfigIssue("DATA", path, "must be named once", "Drop one of the two.") for path in repeated]
    raise_if_any(issues)
    return sets


def _read_set(
    name: str, path: str, columns: Mapping[str, str], tokenizer: PreTrainedTokenizerBase | None, template: str
) -> DataSet:
    settings = AbilityData(path, split="train" if source_kind(path) == "hub" else None, limit=_ROWS)
    settings = replace(settings, columns=dict(columns) or guess_columns(settings, path))
    conversations = list(iter_conversations(settings, path))
    longest = None
    if tokenizer is not None:
        encoder = Encoder(make_template(template, tokenizer, "data.template"), tokenizer, _UNBOUNDED)
        locations, messages = zip(*conversations, strict=True)
        samples = [sample for sample in encoder.encode_batch(messages, locations) if sample is not None]
        if not samples:
            problem, hint = f"must have an answer in one of its first {_ROWS:,} rows", "Name its column with --answer."
            raise ActError(ConfigIssue("DATA", path, problem, hint))
        longest = max(len(sample.input_ids) for sample in samples)
    return DataSet(name, settings, len(conversations), longest)


def guess_columns(settings: AbilityData, where: str) -> dict[str, str] | None:
    """Which columns hold prompt and answer, by the first row; ``None`` if the row has one of our shapes.

    Raises:
        ActError: The set cannot be read, or no guess is possible.
    """
    try:
        next(iter(iter_conversations(replace(settings, limit=1), where)))
        return None
    except ActError:
        row = next((row for _, row in islice(open_rows(settings, where), 1)), None)
        if row is None:
            raise
        names = {name.lower(): name for name, value in row.items() if isinstance(value, str)}
        prompts, answers = ([names[name] for name in known if name in names] for known in (_PROMPTS, _ANSWERS))
        if prompts and answers:
            return {"prompt": prompts[0], "answer": answers[0]}
        problem = f"must have columns whose names tell prompt and answer, and has {summarize_names(list(row))}"
        hint = "Name them with --prompt COLUMN --answer COLUMN."
        raise ActError(ConfigIssue("DATA", settings.path, problem, hint)) from None


def ability_names(paths: Sequence[str]) -> list[str]:
    """A name for each path: the file's, without the words that the names of all begin or end with.

    >>> ability_names(["data/train-science-ar.jsonl", "data/train-math-en.jsonl"]), ability_names(["a b/gsm8k.parquet"])
    (['science-ar', 'math-en'], ['gsm8k'])
    >>> ability_names(["ar/test.jsonl", "en/test.jsonl", "data/*.jsonl"])
    ['ar-test', 'en-test', 'data']
    """
    words = [_SEPARATORS.split(_stem(path)) for path in paths]
    shortest = min(map(len, words)) if len({*map(tuple, words)}) > 1 else 1
    while shortest > 1 and len({each[0] for each in words}) == 1:
        words, shortest = [each[1:] for each in words], shortest - 1
    while shortest > 1 and len({each[-1] for each in words}) == 1:
        words, shortest = [each[:-1] for each in words], shortest - 1
    names = [_clean("-".join(each)) for each in words]
    parents = [_clean(f"{Path(path).parent.name}-{name}") for path, name in zip(paths, names, strict=True)]
    names = [parent if names.count(name) > 1 else name for name, parent in zip(names, parents, strict=True)]
    return [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)]


def _stem(path: str) -> str:
    """The file's name without extension; of a pattern, a folder's or what is left of the file's."""
    name = last_part(path.partition(":")[2] if path.startswith("lab:") else path)
    stem = name.rpartition(".")[0] if "." in name else name
    return stem.strip("*?[]-_.") or Path(path).parent.name


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "ability"


def _config(
    args: argparse.Namespace, recovered: Sequence[DataSet], kept: Sequence[DataSet], target: Path, template: str
) -> Iterator[str]:
    """The text of the config, section by section."""
    run = f"runs/{_clean(last_part(args.target))}"
    dtype = str(resolve_dtype("auto", target)).removeprefix("torch.")
    yield f"# yaml-language-server: $schema={SCHEMA}\n#\n"
    yield f"# Takes {summarize_names([each.name for each in recovered])} from a sibling model:\n#\n"
    quoted = shlex.quote(str(args.out))
    for verb, about in (("plan", "what will happen"), ("merge", "transfer alone"), ("fit", "transfer and fine-tune")):
        yield f"#   {PROGRAM} {verb:<5} --config {quoted}  # {about}\n"
    yield f"\nseed_everything: 42\nmodel:\n  target: {_scalar(args.target)}\n"
    yield f"  dtype: auto                    # as stored: {dtype}\n"
    yield "  learning_rate: 2.0e-5          # the paper's\n"
    yield "data:\n  abilities:                     # by name; limit: 1500 takes the first rows\n"
    for each in [*recovered, *kept]:
        count = f"{each.rows:,}" if each.rows < _ROWS else f"at least {each.rows:,}"
        longest = "" if each.longest is None else f", longest {each.longest:,} tokens"
        yield f"    {_scalar(each.name)}:  # {count} rows{longest}\n      path: {_scalar(each.settings.path)}\n"
        if each.settings.split:
            yield f"      split: {each.settings.split}\n"
        if each.settings.columns:
            yield "      columns:                   # our name: the file's\n"
            yield from (f"        {name}: {_scalar(column)}\n" for name, column in each.settings.columns.items())
    if template == _PLAIN_TEMPLATE:
        yield f"  template: {template}               # the target has no chat template: name its own\n"
    yield from _lengths([*recovered, *kept], target)
    yield dedent("""\
          batch_size: 1                  # samples at once
          validation: []                 # or a share to hold out, such as 0.1
        #  evaluations:                  # what `test` grades; see docs/evaluation.md
        #    held-out: {path: test.jsonl, role: recover, max_new_tokens: 64}
        profile:
          sources:                       # siblings, and what to take from each
        """)
    names = ", ".join(_scalar(each.name) for each in recovered)
    yield f"    - model: {_scalar(args.source)}\n      abilities: [{names}]\n"
    yield _TRANSFER
    yield dedent("""\
        trainer:
          accelerator: auto
          accumulate_grad_batches: 16    # micro-batches in an update: the paper's 16
          max_epochs: 1
        """)
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        yield "  precision: bf16-mixed          # float32 weights, bfloat16 arithmetic\n"
    yield f"  default_root_dir: {_scalar(run)}\n"


def _lengths(sets: Sequence[DataSet], target: Path) -> Iterator[str]:
    """Setting ``max_length``: what no row that was read exceeds, as far as the model has positions."""
    longest = max((each.longest or 0 for each in sets), default=0)
    if not longest:
        return
    length = -(-longest // _MULTIPLE) * _MULTIPLE
    positions = getattr(load_config(target).get_text_config(), "max_position_embeddings", None)
    limit = min(length, positions) if isinstance(positions, int) and positions > 0 else length
    about = (
        "longer samples are cut" if limit >= longest else f"the model's positions; the longest, {longest:,}, are cut"
    )
    yield f"  max_length: {limit:<19}# {about}\n"


def _scalar(text: str) -> str:
    """Text as YAML reads it: as it is, or quoted."""
    if re.fullmatch(r"[A-Za-z/][\w./+-]*(:[\w.@/-]+)?", text, re.ASCII) and yaml.safe_load(text) == text:
        return text
    return str(yaml.safe_dump(text, default_style='"', width=sys.maxsize, allow_unicode=True)).strip()
