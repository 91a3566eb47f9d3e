"""lm-evaluation-harness itself, over the tasks in configs/lm_eval, with small files in the place of the hub's sets."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

import act_lightning
from act_lightning.data.ability_data import (
    LANGUAGES,
    NAMESPACES,
    PROCESS,
    EvaluationData,
    math_pattern,
    science_question,
    strict_pattern,
)
from act_lightning.data.loaders import MicroBatch
from act_lightning.data.tasks import Prompt, collate_prompts, read_prompts
from act_lightning.evaluation.generation import generate_answers
from act_lightning.evaluation.grading import grade
from tests.evaluation.test_grading import outputs
from tests.evaluation.test_sandbox import HOLDS
from tests.tiny import tiny_model, tiny_tokenizer, write_jsonl

pytest.importorskip("lm_eval")
TASKS = Path(act_lightning.__file__).parent.parent / "configs" / "lm_eval"
INCORRECT = [f"Incorrect Answer {number}" for number in (1, 2, 3)]
SANDBOX = NAMESPACES if HOLDS else PROCESS
KINDS: dict[str, dict[str, Any]] = {
    "math": {"kind": "number", "columns": {"prompt": "question", "answer": "{answer_number}"}},
    "science": {
        "kind": "choice",
        "columns": {"prompt": "Question", "answer": "Correct Answer"},
        "incorrect": INCORRECT,
    },
    "code": {
        "kind": "code",
        "columns": {"prompt": "prompt", "answer": "canonical_solution"},
        "allow_code_execution": True,
        "sandbox": SANDBOX,
        "template": "{prompt}",
    },
}
ONE = {"prompt": "def one():\n    '''One.'''\n\n", "canonical_solution": "    return 1\n", "entry_point": "one"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "math": [{"question": f"Add {number}.", "answer": None, "answer_number": 18} for number in range(40)],
    "science": [
        {
            "Question": f"What is {number}?",
            "Correct Answer": " gold [1] ring",
            **dict(zip(INCORRECT, options, strict=True)),
        }
        for number, options in enumerate([("Gold", "an apple, red", "½ of it")] * 40)
    ],
    "code": [
        ONE | {"task_id": str(number), "test": "def check(candidate):\n    assert candidate() == 1\n"}
        for number in range(6)
    ],
}
CODE_OUTPUTS = [
    "    return 1\n",
    "    return 1\n\n\ndef two():\n    return (",
    "    return 2\n",
    "    return 1\nprint(one())\nassert False",
    "",
    "    return one\n```\nDone.",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tasks as they are shipped, but for where their rows come from."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shutil.copytree(TASKS, tmp_path / "tasks")
    for kind, rows in ROWS.items():
        base = tmp_path / "tasks" / kind / f"_{kind}_yaml"
        hub = next(line for line in base.read_text().splitlines() if line.startswith("dataset_path:"))
        split = "test" if kind == "math" else "train"
        files = json.dumps({"data_files": {split: str(write_jsonl(tmp_path / f"{kind}.jsonl", rows))}})
        base.write_text(base.read_text().replace(hub, f"dataset_path: json\ndataset_kwargs: {files}"))
    return tmp_path


def prompts_of(folder: Path, kind: str, language: str, template: str = "chat") -> tuple[EvaluationData, list[Prompt]]:
    settings = EvaluationData(
        str(folder / f"{kind}.jsonl"), role="keep", language=language, question="benchmax", **KINDS[kind]
    )
    return settings, read_prompts(kind, settings, tiny_tokenizer(), template)


def evaluated(folder: Path, model: Any, kind: str, language: str, **settings: Any) -> list[dict[str, Any]]:
    """lm-evaluation-harness's samples: a dict for each row and filter."""
    return evaluated_all(folder, model, [f"act_{kind}_{language}"], **settings)[f"act_{kind}_{language}"]


@pytest.fixture(autouse=True)
def _sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_SANDBOX", SANDBOX)


def evaluated_all(folder: Path, model: Any, tasks: list[str], **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """The same for several tasks."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        **settings,
    )
    assert found is not None
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    return samples


def scripted(texts: list[str]) -> Any:
    """A model that says what it is told to, row by row."""
    from lm_eval.api.model import LM

    class Scripted(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [self._cut(texts[request.doc_id], request.args[1]["until"]) for request in requests]

        def _cut(self, text: str, stops: list[str]) -> str:
            return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]

    return Scripted()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Its loggers and its generators of random numbers are set by every call."""
    state = random.getstate()
    yield
    random.setstate(state)


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of lm_eval and what it brings


@pytest.mark.parametrize(("kind", "languages"), [("math", LANGUAGES), ("science", LANGUAGES), ("code", ("en",))])
def test_both_give_the_same_verdicts_on_the_same_outputs(folder: Path, kind: str, languages: tuple[str, ...]) -> None:
    sets = {language: prompts_of(folder, kind, language) for language in languages}
    rows = len(sets[languages[0]][1])
    texts = CODE_OUTPUTS if kind == "code" else outputs(400)[1 :: 400 // rows][:rows]
    if kind == "math":
        texts = [*(spoken(language, number) for language in languages for number in ("18", "18.", "1,8")), *texts][
            :rows
        ]
    found = evaluated_all(folder, scripted(texts), [f"act_{kind}_{language}" for language in languages])
    for language, (settings, prompts) in sets.items():
        samples = found[f"act_{kind}_{language}"]
        assert len(samples) == rows * (1 if kind == "code" else 2)
        correct = 0
        for sample in samples:
            row = sample["doc_id"]
            result = grade(prompts[row].item, settings, texts[row])
            own = result.flexible_correct if sample["filter"] == "flexible-extract" else result.correct
            assert bool(sample["exact_match"]) is own, (language, texts[row], sample["filter"])
            correct += own
        assert 0 < correct < len(samples)


def spoken(language: str, number: str) -> str:
    """An answer in the form that a language's pattern asks for."""
    before, _, after = math_pattern(language).partition(r"(\-?[0-9\.\,]+)")
    return f"{before}{number}{after}"


@pytest.mark.parametrize(("kind", "language"), [("math", "te"), ("science", "th"), ("code", "hu")])
def test_both_let_a_model_read_and_say_the_same(
    folder: Path, kind: str, language: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    from lm_eval.models.huggingface import HFLM

    model = tiny_model(max_position_embeddings=1024)
    plain = kind == "code"
    _, prompts = prompts_of(folder, kind, language)
    samples = evaluated(
        folder,
        HFLM(pretrained=model, tokenizer=tokenizer, max_length=1024, batch_size=2),
        kind,
        language,
        limit=4,
        apply_chat_template=not plain,
        gen_kwargs={"max_gen_toks": 8},
    )
    batch = collate_prompts(prompts, 0, MicroBatch((0, 1, 2, 3)))
    answers = [one.text for one in generate_answers(model, tokenizer, batch, 8)]
    for sample in samples:
        assert sample["arguments"][0][0] == prompts[sample["doc_id"]].text
        assert sample["resps"][0][0] == answers[sample["doc_id"]]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_task_has_the_facts_of_our_sets(language: str) -> None:
    def task(kind: str) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load((TASKS / kind / f"{language}.yaml").read_text(encoding="utf-8"))
        return content

    math, science, code = (task(kind) for kind in KINDS)
    assert [one["dataset_name"] for one in (math, science, code)] == [language] * 3
    settings = EvaluationData("x.jsonl", role="keep", language=language, question="benchmax", **KINDS["math"])
    assert math["filter_list"][0]["filter"][0]["regex_pattern"] == strict_pattern(settings)
    options = "\n".join(f"({letter}) {{{{choice{place}}}}}" for place, letter in enumerate("ABCD", start=1))
    expected = science_question(language).replace("{prompt}", "{{Question}}").replace("{options}", options)
    assert science["doc_to_text"] == expected


def test_limits_and_patterns_are_those_of_our_sets() -> None:
    """Of the overlay in configs/data for mathematics and science, of Table 4's config for code."""

    def base(kind: str) -> dict[str, Any]:
        text = (TASKS / kind / f"_{kind}_yaml").read_text(encoding="utf-8").replace("!function ", "")
        content: dict[str, Any] = yaml.safe_load(text)
        return content

    def own(file: str) -> dict[str, Any]:
        content = yaml.safe_load((TASKS.parent / file).read_text(encoding="utf-8"))
        sets: dict[str, Any] = content["data"]["evaluations"]
        return sets

    tasks = {kind: base(kind) for kind in KINDS}
    limits = {kind: task["generation_kwargs"]["max_gen_toks"] for kind, task in tasks.items()}
    assert limits == {"math": 1024, "science": 2048, "code": 768}
    for name, one in (own("data/benchmax.yaml") | own("paper/table4.yaml")).items():
        task = tasks[name.split("-")[0]]
        assert (one["path"], one["split"]) == (task["dataset_path"], task["test_split"])
        assert one["max_new_tokens"] == task["generation_kwargs"]["max_gen_toks"]
    strict, flexible = (one["filter"][0] for one in tasks["science"]["filter_list"])
    settings = EvaluationData("x.jsonl", role="keep", question="benchmax", language="sw", **KINDS["science"])
    assert strict["regex_pattern"] == strict_pattern(settings)
    assert (flexible["function"], flexible["group_select"]) == ("multi_choice_regex", -1)
    for kind in ("math", "science"):
        (metric,) = tasks[kind]["metric_list"]
        assert (metric["metric"], metric["ignore_case"], metric["ignore_punctuation"]) == ("exact_match", True, True)
        assert tasks[kind]["num_fewshot"] == 0
