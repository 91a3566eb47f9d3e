"""Items of evaluation sets, answered by a model and judged: data and evaluation put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from transformers import PreTrainedModel

from act_lightning.data import (
    AbilityDataModule,
    EvaluationData,
    Item,
    MicroBatch,
    Prompt,
    collate,
    collate_prompts,
    strict_pattern,
)
from act_lightning.evaluation import (
    Generated,
    Record,
    Verdict,
    can_identify,
    generate_answers,
    greedy_matches,
    judge_choice,
    judge_code,
    judge_exact,
    judge_number,
    language_of,
)


def judge(item: Item, settings: EvaluationData, output: str) -> Verdict:
    """What an output is taken for.

    Args:
        item: The item that it answers.
        settings: Those of its evaluation set.
        output: What the model wrote.
    """
    pattern = strict_pattern(settings)
    if settings.kind == "choice" and pattern:
        return judge_choice(output, item.reference, item.options, pattern)
    if settings.kind == "number" and pattern:
        return judge_number(output, item.reference, pattern)
    if item.program:
        return judge_code(output, item.program.prompt, item.program.test, item.program.entry_point)
    return judge_exact(output, item.reference)


class TeacherForced:
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


class Generation:
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
        return [judge(self.prompts[row].item, self.settings, output.text).correct for row, output in pairs]


def places(prompts: Sequence[Prompt], rows: Sequence[int], name: str) -> list[str]:
    """Where rows of a set stand, for messages.

    Args:
        prompts: Those of the set.
        rows: Numbers in the set.
        name: The set's.
    """
    return [f"{prompts[row].item.place} (set {name})" for row in rows]


def answered(row: int, prompt: Prompt, settings: EvaluationData, generated: Generated) -> Record:
    """A record of what a model wrote, judged.

    Args:
        row: The item's number in its set.
        prompt: The item.
        settings: Those of its set.
        generated: What the model wrote.
    """
    verdict = judge(prompt.item, settings, generated.text)
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
