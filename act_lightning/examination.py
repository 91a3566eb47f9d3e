"""An evaluation of all sets: every answer counted once over all processes, then logged, shown and written."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed

from act_lightning.answering import answered, places
from act_lightning.checkpoints import write_file
from act_lightning.data import AbilityDataModule, EvaluationData
from act_lightning.evaluation import (
    Answerer,
    Mean,
    Record,
    SetResult,
    Share,
    as_csv,
    as_json,
    as_lines,
    as_markdown,
    as_table,
    can_identify,
    role_means,
    without_network,
)

_COUNTED = ("correct", "flexible_correct", "answered", "truncated")


class Examination:
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

    def answer(self, answerer: Answerer, batch: Mapping[str, Any], number: int) -> None:
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
        self.add(name, [answered(row, prompts[row], settings, one) for row, one in pairs])

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
