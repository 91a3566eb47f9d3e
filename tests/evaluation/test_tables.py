"""Tables of models side by side, against numbers worked out by hand."""

import csv
import io

import pytest
from rich.console import Console

from act_lightning.evaluation.intervals import wilson
from act_lightning.evaluation.tables import ItemScores, ModelRow, models_csv, models_table

ROLES = {"sums": "keep", "words": "recover", "verbs": "recover"}
ROWS = [
    ModelRow("target", None, ItemScores({"sums": "1" * 9 + "0", "words": "1000", "verbs": "00000"})),
    ModelRow("transfer", 0.0123, ItemScores({"sums": "1" * 8 + "00", "words": "1110", "verbs": "11111"})),
]


def test_mean_counts_every_set_alike() -> None:
    assert ROWS[0].scores.mean(["words", "verbs"])[0] == pytest.approx((0.25 + 0) / 2)


def test_table_shows_every_model_with_means_by_role() -> None:
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    console.print(models_table(ROWS, ROLES))
    lines = console.file.getvalue().splitlines()
    transfer = next(line for line in lines if "transfer" in line)
    assert transfer.split()[:3] == ["transfer", "1.23%", "80.0"]
    assert transfer.split()[-1] == "87.5"  # (75 + 100) / 2


def test_csv_has_a_line_for_each_model_and_set() -> None:
    lines = list(csv.DictReader(io.StringIO(models_csv(ROWS, ROLES))))
    assert [(line["model"], line["set"]) for line in lines[:4]] == [
        ("target", "sums"),
        ("target", "words"),
        ("target", "verbs"),
        ("transfer", "sums"),
    ]
    assert float(lines[0]["low"]) == pytest.approx(wilson(9, 10)[0])
    assert lines[0]["parameter_share"] == ""
    assert lines[3]["parameter_share"] == "0.0123"


def test_sets_of_one_role_only() -> None:
    models_table(ROWS, {"sums": "keep"})
    assert "recover" not in models_csv(ROWS, {"sums": "keep"})


def test_models_are_compared_with_the_first_on_the_same_items() -> None:
    first = ModelRow("target", None, ItemScores({"sums": "1100", "words": "000"}))
    other = ModelRow("transfer", 0.5, ItemScores({"sums": "1011", "words": "111"}))
    assert ModelRow.from_json(other.to_json()) == other
    assert other.to_json()["correct"] == {"sums": 3, "words": 3}
    assert other.to_json()["total"] == {"sums": 4, "words": 3}
    lines = list(csv.DictReader(io.StringIO(models_csv([first, other], {"sums": "keep", "words": "recover"}))))
    assert [(line["gained"], line["lost"]) for line in lines] == [("", ""), ("", ""), ("2", "1"), ("3", "0")]
    assert float(lines[3]["p_value"]) == 0.25
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    console.print(models_table([first, other], {"sums": "keep", "words": "recover"}))
    assert "+2 −1" in console.file.getvalue()  # type: ignore[attr-defined]
