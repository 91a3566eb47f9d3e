"""Evaluate a model on all evaluation sets of a data module, each process on its share of the items."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed
from transformers import PreTrainedModel

from act_lightning.architecture import evaluating
from act_lightning.checkpoints.files import write_file
from act_lightning.console import Console
from act_lightning.data.batches import collate, token_budget_batches
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.loaders import join_micro_batches, shard_evenly
from act_lightning.data.tasks import collate_prompts
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.escaping import terminal_text
from act_lightning.evaluation.generation import Generation, Generator, generate_answers, is_sharded, nan_error
from act_lightning.evaluation.grading import Grade, can_identify_language, grade, identify_language
from act_lightning.evaluation.intervals import bootstrap
from act_lightning.evaluation.results import RESULTS, EvaluatedModel, Record, SetResult, results_as_json
from act_lightning.evaluation.sandbox import open_sandbox, sandbox_issues
from act_lightning.evaluation.tables import ItemScores, results_as_csv, results_as_markdown, results_table


class Evaluator:
    """Collects the graded answers of a test, batch by batch, and summarizes them over all processes.

    Attributes:
        records: The answers that this process graded, by set.
    """

    def __init__(self, data: AbilityDataModule) -> None:
        self.data = data
        self.records: dict[str, list[Record]] = {name: [] for name in data.evaluation_names}
        sets = data.evaluations.values()
        if any(settings.language for settings in sets) and not can_identify_language():
            message = "The language of outputs is not identified: pip install 'act-lightning[language]'"
            warnings.warn(message, stacklevel=2)
        raise_if_any(sandbox_issues(data.evaluations))
        for name, settings in data.evaluations.items():
            if settings.kind == "code":
                rank_zero_info(f"{name}: code runs in {open_sandbox(settings.sandbox)}")

    def evaluate_batch(self, generate: Generator, batch: Mapping[str, Any], set_index: int) -> None:
        """Generate and grade the answers to a batch of the data module's test loader for a set."""
        name = self.data.evaluation_names[set_index]
        settings, prompts = self.data.evaluations[name], self.data.prompts[name]
        identify = settings.language is not None and settings.kind != "code" and can_identify_language()
        for row, output, result in generate_and_grade(self.data, name, generate, batch):
            prompt = prompts[row]
            record = Record(
                row=row,
                id=prompt.item.identity,
                prompt=prompt.text,
                prediction=output.text,
                reference=prompt.item.reference,
                tokens=output.tokens,
                truncated=output.truncated,
                options=len(prompt.item.options),
                language=identify_language(output.text) if identify else None,
                flag=prompt.item.flag,
                **asdict(result),
            )
            self.records[name].append(record)

    def gather(self) -> tuple[dict[str, SetResult], dict[str, list[Record]]]:
        """Results and records of all processes by set, the records in the order of rows.

        All processes must call this, and get the same.
        """
        results = {}
        all_records = gather_lists(self.records)
        for name, records in all_records.items():
            records.sort(key=lambda record: record.row)
            settings, items = self.data.evaluations[name], [prompt.item for prompt in self.data.prompts[name]]
            tokens = torch.tensor([record.tokens for record in records], dtype=torch.float32)
            languages = [record.language for record in records if record.language]
            results[name] = SetResult(
                role=settings.role,
                kind=settings.kind,
                metric=settings.main_metric,
                language=settings.language,
                total=len(records),
                correct=sum(record.correct for record in records),
                flexible=sum(record.flexible_correct for record in records),
                answered=sum(record.answered for record in records),
                truncated=sum(record.truncated for record in records),
                tokens=(float(tokens.mean()), *bootstrap(tokens)),
                chance=sum(1 / len(item.options) for item in items if item.options) / len(items),
                worded=len(languages),
                in_language=sum(language == settings.language for language in languages),
                flagged=sum(item.flag is not None for item in items),
            )
        return results, all_records


def publish(
    evaluations: Path,
    model: EvaluatedModel,
    results: Mapping[str, SetResult],
    records: Mapping[str, Sequence[Record]],
) -> None:
    """Print a table; write ``results.json``, ``.csv`` and ``.md``, and every generation to ``<set>.jsonl``.

    They stand in ``evaluations``, or where those of another model stand there, in a folder of their own below it.
    """
    folder = model.folder(evaluations)
    for name, lines in records.items():
        text = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in lines)
        write_file(folder / f"{name}.jsonl", text)
    write_file(folder / "results.csv", results_as_csv(results))
    write_file(folder / "results.md", results_as_markdown(results))
    write_file(folder / RESULTS, results_as_json(model, results))
    Console().print(results_table(results))
    print(terminal_text(f"results of {model.name} written to {folder}"))


def score_model(
    data: AbilityDataModule,
    model: PreTrainedModel,
    tokens_per_batch: int,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], object] = lambda items: None,
    names: Iterable[str] | None = None,
) -> ItemScores:
    """Which items of the evaluation sets a model in memory answers correctly by their metrics, without its answers.

    An answer that must be one exact string is decided by a teacher-forced pass over the references; any other is
    generated greedily and graded. ``data`` is set up for testing; ``tokens_per_batch`` bounds rows × length of a batch,
    as in :func:`~act_lightning.evaluation.generation.generate_answers`. Processes ``0 ≤ rank < world_size`` share the
    items, and all get all scores; they call a sharded model, which needs all of them, equally often, with items that
    do not count if need be.
    ``progress`` is called with the number of items of each batch that this process has scored. ``names`` are those of
    the sets, by default all.
    """
    scored: dict[str, list[tuple[int, bool]]] = {}
    for name in data.evaluations if names is None else names:
        settings = data.evaluations[name]
        metric, prompts = settings.main_metric, data.prompts[name]
        is_exact = settings.kind == "exact" and metric == "exact_match"
        if is_exact:
            lengths = [len(sample.input_ids) for sample in data.references[name]]
        else:
            lengths = [len(prompt.input_ids) + settings.max_new_tokens for prompt in prompts]
        scored[name] = []
        micro_batches = shard_evenly(token_budget_batches(lengths, tokens_per_batch), rank, world_size)
        if not is_exact and not is_sharded(model):
            micro_batches = join_micro_batches(micro_batches)
        for micro_batch in micro_batches:
            rows = micro_batch.rows
            if is_exact:
                references = collate([data.references[name][row] for row in rows], 0)
                correct = greedy_matches(model, references, _locations(data, name, rows)).tolist()
            else:
                batch = collate_prompts(prompts, 0, micro_batch)
                generate = partial(generate_answers, model, data.tokenizer, tokens_per_batch=tokens_per_batch)
                correct = [result.counts(metric) for _, _, result in generate_and_grade(data, name, generate, batch)]
            if micro_batch.counts:
                scored[name] += zip(rows, correct, strict=True)
                progress(len(rows))
    if world_size > 1:
        scored = gather_lists(scored)
    return ItemScores({name: "".join("01"[correct] for _, correct in sorted(pairs)) for name, pairs in scored.items()})


def generate_and_grade(
    data: AbilityDataModule, name: str, generate: Generator, batch: Mapping[str, Any]
) -> list[tuple[int, Generation, Grade]]:
    """Row, output and grade of each item in a batch of an evaluation set."""
    settings, rows = data.evaluations[name], batch["rows"]
    outputs = generate(batch, settings.max_new_tokens, _locations(data, name, rows))
    # a batch that only keeps processes in step has outputs, but no rows
    pairs = zip(rows, outputs, strict=False)
    return [(row, output, grade(data.prompts[name][row].item, settings, output.text)) for row, output in pairs]


def _locations(data: AbilityDataModule, name: str, rows: Sequence[int]) -> list[str]:
    return [f"{data.prompts[name][row].item.location} (set {name})" for row in rows]


def greedy_matches(model: PreTrainedModel, batch: Mapping[str, Tensor], locations: Sequence[str] = ()) -> Tensor:
    """Whether greedy decoding would give each row's reference answer, token for token, bool ``[rows]``.

    Greedy decoding gives the reference if and only if every argmax along the reference does, because up to the first
    difference both have read the same tokens. So one teacher-forced pass decides, including the token that ends the
    turn. An answer that is spelled with other tokens than the tokenizer's own counts as different.

    ``batch`` holds ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[rows, positions]``, padded on the right;
    labels stand at their own token (not shifted), -100 where there is no answer token. ``locations`` say where each row
    comes from, for messages; by default its index in the batch.

    Raises:
        ActError: A row has no answer token, or the logits are NaN.
    """
    labels = batch["labels"].to(model.device)[:, 1:]
    is_answer = labels != IGNORED
    if not bool(is_answer.any(dim=1).all()):
        row = int(is_answer.any(dim=1).int().argmin())
        raise ActError(
            ConfigIssue("labels", f"row {row}", "must hold an answer token", "Leave rows without answers out.")
        )
    columns = is_answer.any(dim=0).nonzero().squeeze(1)
    with evaluating(model):
        logits = cast(Any, model)(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            logits_to_keep=columns,
            use_cache=False,
        ).logits
    is_answer, labels = is_answer[:, columns], labels[:, columns]
    is_nan = (logits.isnan().any(dim=-1) & is_answer).any(dim=1)
    if bool(is_nan.any()):
        raise nan_error(int(is_nan.int().argmax()), locations)
    return cast(Tensor, ((logits.argmax(-1) == labels) | ~is_answer).all(dim=1))


def gather_lists(lists: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Lists by name, each joined with those of all processes, which must all call this and get the same."""
    gathered: list[Any] = [lists]
    if distributed.is_available() and distributed.is_initialized():
        gathered = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, lists)
    return {name: [item for part in gathered for item in part[name]] for name in lists}
