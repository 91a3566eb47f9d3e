"""What a person is shown of the data, in color, without, and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.inspection import Inspection, Piece, highlight, inspect, legend, print_inspection, split_pieces
from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError
from tests.tiny import write_jsonl


@pytest.fixture
def data(tmp_path: Path, target_folder: Path) -> AbilityDataModule:
    """Six rows, one of them empty and one too long, and an evaluation set that shares a prompt."""
    answers = ["one", "", "x" * 300, "four", "пять", "six"]
    rows = [{"prompt": f"Say {i}!", "answer": answer} for i, answer in enumerate(answers)]
    evaluation = [{"prompt": "say 3", "answer": "four"}, {"prompt": "Say it", "answer": "it"}]
    return AbilityDataModule(
        abilities={"say": AbilityData(str(write_jsonl(tmp_path / "say.jsonl", rows)))},
        evaluations={"e": EvaluationData(str(write_jsonl(tmp_path / "e.jsonl", evaluation)), role="keep")},
        max_length=128,
        target=str(target_folder),
    )


def printed(inspection: Inspection, **options: Any) -> str:
    console = Console(file=(out := io.StringIO()), width=120, highlight=False, **options)
    print_inspection(inspection, as_json=False, console=console)
    return out.getvalue()


def test_counts(data: AbilityDataModule) -> None:
    inspection = inspect(data)
    say, evaluation = (one.figures for one in inspection.sets)
    assert (say.rows, say.samples, say.dropped, say.cut, say.longest) == (6, 5, 1, 1, 128)
    samples = data.tokenized["say"].samples
    assert say.tokens == sum(len(sample.input_ids) for sample in samples)
    assert say.answer_tokens == data.tokenized["say"].tokens
    assert sum(say.lengths.values()) == 5
    assert say.lengths[128] == 1
    assert (evaluation.rows, evaluation.dropped) == (2, 0)
    (overlap,) = inspection.overlaps
    assert (overlap.first, overlap.second, overlap.same_text, overlap.share) == ("say", "e", 1, 0.5)


def test_pieces_tell_prompt_answer_and_special_tokens(data: AbilityDataModule) -> None:
    (first, *_), (evaluated, *_) = (one.samples for one in inspect(data, samples=2).sets)
    assert first == [
        Piece("<|im_start|>", answer=False, special=True),
        Piece("user\nSay 0!", answer=False, special=False),
        Piece("<|im_end|>", answer=False, special=True),
        Piece("\n", answer=False, special=False),
        Piece("<|im_start|>", answer=False, special=True),
        Piece("assistant\n", answer=False, special=False),
        Piece("one", answer=True, special=False),
        Piece("<|im_end|>", answer=True, special=True),
    ]
    assert [piece.text for piece in evaluated if piece.answer] == ["four", "<|im_end|>"]


def test_kinds_are_apart_with_and_without_color(data: AbilityDataModule) -> None:
    inspection = inspect(data)
    plain = printed(inspection)
    assert "⟨<|im_start|>⟩user\nSay 0!⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n⟦one⟨<|im_end|>⟩⟧" in plain
    assert "\x1b" not in plain
    bright = printed(inspection, force_terminal=True, color_system="standard")
    assert "\x1b[2muser\x1b[0m\n\x1b[2mSay 0!\x1b[0m" in bright
    assert "⟦\x1b[1;32mone\x1b[0m\x1b[1;35m⟨<|im_end|>⟩\x1b[0m⟧" in bright
    assert len({str(span.style) for span in legend().spans}) == 4


def test_report_on_the_terminal(data: AbilityDataModule) -> None:
    text = printed(inspect(data))
    assert "ability say, sample 3 of 3" in text
    assert text.count("evaluation e, sample") == 2
    assert "≤ 128" in text
    assert "warning: say and e share prompts, 50.0 % of one of them: 1 of say are in e (1 as the same text)" in text
    data.evaluations.clear()
    assert "no two sets share more than 1 % of their prompts" in printed(inspect(data))


def test_json(data: AbilityDataModule, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect(data), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["sets"][0]["figures"]["dropped"] == 1
    assert found["sets"][0]["samples"][0][0] == {"text": "<|im_start|>", "answer": False, "special": True}
    assert found["overlaps"][0]["share"] == 0.5


def test_held_out_and_evaluations_alone(data: AbilityDataModule) -> None:
    data.validation = 0.2
    assert [(one.kind, one.figures.samples) for one in inspect(data).sets] == [
        ("ability", 4),
        ("held out", 1),
        ("evaluation", 2),
    ]
    data.abilities.clear()
    assert [one.name for one in inspect(data).sets] == ["e"]


def test_all_faults_come_before_work(data: AbilityDataModule) -> None:
    data.abilities["gone"] = AbilityData("gone.jsonl")
    data.max_length = 0
    with pytest.raises(ActError, match=r"(?s)data\.abilities\.gone\.path.*data\.max_length"):
        inspect(data)


def test_long_pieces_are_shown_by_their_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor(tokenizer("a" * 2000 + "b")["input_ids"])
    (piece,) = split_pieces(Sample(ids, torch.full_like(ids, IGNORED)), tokenizer)
    shown = highlight([piece]).plain
    assert shown == "a" * 400 + " …[1,201 characters]… " + "a" * 399 + "b"


def test_a_row_cannot_command_the_terminal() -> None:
    shown = highlight([Piece("a\x1b[2Jb\r\n\u202ec\x9b", answer=True, special=False)])
    console = Console(file=(out := io.StringIO()), width=80, force_terminal=True, color_system="standard")
    console.print(shown, soft_wrap=True)
    assert "\x1b[2J" not in out.getvalue()
    assert shown.plain == r"⟦a\u001b[2Jb\u000d" "\n" r"\u202ec\u009b⟧"
