"""Evaluate a model on all evaluation sets: every answer graded and counted once over all processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed
from transformers import PreTrainedModel

from act_lightning.checkpoints.files import write_file
from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.batches import collate
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.micro_batches import MicroBatch
from act_lightning.data.prompts import Prompt, collate_prompts
from act_lightning.data.tasks import Item
from act_lightning.data.wording import strict_pattern
from act_lightning.evaluation.code import without_network
from act_lightning.evaluation.generation import Generation, Generator, generate_answers, greedy_matches
from act_lightning.evaluation.grading import Grade, grade_choice, grade_code, grade_exact, grade_number
from act_lightning.evaluation.language import can_identify, language_of
from act_lightning.evaluation.metrics import Mean, Share
from act_lightning.evaluation.results import (
    Record,
    SetResult,
    as_csv,
    as_json,
    as_lines,
    as_markdown,
    as_table,
    role_means,
)


def grade(item: Item, settings: EvaluationData, output: str) -> Grade:
    """What an output is taken for.

    Args:
        item: The item that it answers.
        settings: Those of its evaluation set.
        output: What the model wrote.
    """
    pattern = strict_pattern(settings)
    if settings.kind == "choice" and pattern:
        return grade_choice(output, item.reference, item.options, pattern)
    if settings.kind == "number" and pattern:
        return grade_number(output, item.reference, pattern)
    if item.program:
        return grade_code(output, item.program.prompt, item.program.test, item.program.entry_point)
    return grade_exact(output, item.reference)


class TeacherForcedScoring:
    """Decides exact answers of one set by a pass over the references, without a generation.

    Args:
        data: The data module.
        name: The set.

    Attributes:
        lengths: Tokens of each item with its reference.
    """

    def __init__(self, data: AbilityDataModule, name: str) -> None:
        self.name, self.prompts, self.samples = name, data.prompts[name], data.references[name]
        self.lengths = [len(sample.input_ids) for sample in self.samples]

    def right(self, model: PreTrainedModel, rows: Sequence[int]) -> list[bool]:
        """Whether the model would answer each of these rows to the letter."""
        batch = collate([self.samples[row] for row in rows], 0)
        return [bool(one) for one in greedy_matches(model, batch, places(self.prompts, rows, self.name)).tolist()]


class GenerationScoring:
    """Decides answers of any kind of one set by generating and judging them.

    Args:
        data: The data module.
        name: The set.

    Attributes:
        lengths: Tokens of each item with the longest output.
    """

    def __init__(self, data: AbilityDataModule, name: str) -> None:
        self.name, self.prompts = name, data.prompts[name]
        self.settings, self.tokenizer = data.evaluations[name], data.tokenizer
        self.lengths = [len(prompt.input_ids) + self.settings.max_new_tokens for prompt in self.prompts]

    def right(self, model: PreTrainedModel, rows: Sequence[int]) -> list[bool]:
        """Whether the model answers each of these rows in the asked form and rightly."""
        batch = collate_prompts(self.prompts, 0, MicroBatch(tuple(rows)))
        where = places(self.prompts, rows, self.name)
        outputs = generate_answers(model, self.tokenizer, batch, self.settings.max_new_tokens, where)
        pairs = zip(rows, outputs, strict=True)
        return [grade(self.prompts[row].item, self.settings, output.text).correct for row, output in pairs]


def places(prompts: Sequence[Prompt], rows: Sequence[int], name: str) -> list[str]:
    """Where rows of a set stand, for messages.

    Args:
        prompts: Those of the set.
        rows: Numbers in the set.
        name: The set's.
    """
    return [f"{prompts[row].item.place} (set {name})" for row in rows]


def grade_generation(row: int, prompt: Prompt, settings: EvaluationData, generated: Generation) -> Record:
    """A record of what a model wrote, judged.

    Args:
        row: The item's number in its set.
        prompt: The item.
        settings: Those of its set.
        generated: What the model wrote.
    """
    verdict = grade(prompt.item, settings, generated.text)
    look = settings.language is not None and settings.kind != "code" and can_identify()
    return Record(
        row=row,
        id=prompt.item.identity,
        prompt=prompt.text,
        prediction=generated.text,
        reference=prompt.reference,
        tokens=generated.tokens,
        truncated=generated.truncated,
        options=len(prompt.item.options),
        language=language_of(generated.text) if look else None,
        flag=prompt.item.flag,
        **asdict(verdict),
    )


_COUNTED = ("correct", "flexible_correct", "answered", "truncated")


class Evaluator:
    """Answers, verdicts and metrics of all evaluation sets of a data module, on all processes.

    Args:
        data: The data module.
        device: Where metrics count; of a kind that the processes' backend can reduce.

    Attributes:
        records: What this process has judged, by set.
    """

    def __init__(self, data: AbilityDataModule, device: torch.device) -> None:
        self.data = data
        self.records: dict[str, list[Record]] = {name: [] for name in data.evaluation_names}
        self.shares = {name: {key: Share().to(device) for key in (*_COUNTED, "in_language")} for name in self.records}
        self.tokens = {name: Mean().to(device) for name in self.records}
        for message in _shortcomings(data.evaluations.values()):
            warnings.warn(message, stacklevel=2)

    def answer(self, answerer: Generator, batch: Mapping[str, Any], number: int) -> None:
        """Generate and judge what a batch of the set with this number asks.

        Args:
            answerer: Generates.
            batch: One of the data module's test loader; of one that does not count nothing is kept.
            number: Of the set.
        """
        name = self.data.evaluation_names[number]
        settings, prompts = self.data.evaluations[name], self.data.prompts[name]
        generated = answerer(batch, settings.max_new_tokens, places(prompts, batch["rows"], name))
        # a batch that only keeps processes in step has no rows
        pairs = zip(batch["rows"], generated, strict=False)
        self.add(name, [grade_generation(row, prompts[row], settings, one) for row, one in pairs])

    def add(self, name: str, records: Sequence[Record]) -> None:
        """Count judged answers of a set."""
        self.records[name] += records
        for key in _COUNTED:
            self.shares[name][key].update([getattr(record, key) for record in records])
        wanted, told = self.data.evaluations[name].language, [one.language for one in records if one.language]
        self.shares[name]["in_language"].update([language == wanted for language in told])
        self.tokens[name].update([record.tokens for record in records])

    def results(self) -> dict[str, SetResult]:
        """What was found, the same on all processes, which must all ask."""
        return {name: self._result(name) for name in self.records}

    def _result(self, name: str) -> SetResult:
        settings, items = self.data.evaluations[name], [prompt.item for prompt in self.data.prompts[name]]
        counts = {key: share.counts() for key, share in self.shares[name].items()}
        in_language, worded = counts["in_language"]
        return SetResult(
            role=settings.role,
            kind=settings.kind,
            language=settings.language,
            total=counts["correct"][1],
            correct=counts["correct"][0],
            flexible=counts["flexible_correct"][0],
            answered=counts["answered"][0],
            truncated=counts["truncated"][0],
            tokens=(float(self.tokens[name].compute()), *self.tokens[name].interval()),
            chance=sum(1 / len(item.options) for item in items if item.options) / len(items),
            worded=worded,
            in_language=in_language,
            flagged=sum(item.flag is not None for item in items),
        )

    def all_records(self) -> dict[str, list[Record]]:
        """What all processes have judged, in the order of the rows, the same on all of them, which must all ask."""
        found = of_all_processes(self.records)
        return {name: sorted(records, key=lambda record: record.row) for name, records in found.items()}


def of_all_processes(lists: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Lists by name, each joined with those of all processes, the same on all of them, which must all ask."""
    gathered: list[Any] = [lists]
    if distributed.is_available() and distributed.is_initialized():
        gathered = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, lists)
    return {name: [one for part in gathered for one in part[name]] for name in lists}


def logged(results: Mapping[str, SetResult]) -> dict[str, float]:
    """Results as a logger takes them: ``exact_match/<set>`` and so on, and the means ``keep`` and ``recover``.

    A share of nothing, such as that of right answers where none was given, is left out.

    Args:
        results: What was found.
    """
    found: dict[str, float] = {}
    for name, one in results.items():
        found |= {f"{key}/{name}": holds / total for key, (holds, total) in one.shares().items() if total}
        found[f"tokens/{name}"] = one.tokens[0]
    return found | {role: value for role, (value, _, _) in role_means(results).items()}


def publish(
    folder: Path, model: str, results: Mapping[str, SetResult], records: Mapping[str, Sequence[Record]]
) -> None:
    """Print a table; write ``results.json``, ``results.csv``, ``results.md``, and every generation to ``<set>.jsonl``.

    Args:
        folder: ``<default_root_dir>/evaluations``.
        model: What was evaluated.
        results: What was found.
        records: Every judged answer, by set.
    """
    for name, its in records.items():
        write_file(folder / f"{name}.jsonl", as_lines(its))
    write_file(folder / "results.csv", as_csv(results))
    write_file(folder / "results.md", as_markdown(results))
    write_file(folder / "results.json", as_json(model, results))
    Console().print(as_table(results))


def _shortcomings(sets: Iterable[EvaluationData]) -> Iterator[str]:
    """What this machine cannot do for these sets."""
    sets = list(sets)
    if any(one.language for one in sets) and not can_identify():
        yield "The language of outputs is not looked at: pip install 'act-lightning[language]'"
    if any(one.kind == "code" for one in sets) and not without_network():
        yield "Code that the model writes runs with access to the network: this machine cannot take it away (unshare)"
