"""docs/models.md: a row for every model type that transformers knows, and rows that are still true."""

from __future__ import annotations

import pytest

from act_lightning.architecture import decoder_obstacle
from scripts.models_page import NO, PAGE, YES, Row, page, read_rows, try_type
from tests.model_types import MODEL_TYPES

ROWS = {row.model_type: row for row in read_rows(PAGE.read_text(encoding="utf-8"))}
AGAIN = ("llama", "gpt_oss", "mamba", "gemma3", "zaya", "jetmoe", "longcat_flash", "deepseek_v32", "zamba2")


def test_every_type_has_a_row_and_every_refusal_its_reason() -> None:
    assert tuple(ROWS) == MODEL_TYPES
    for model_type, row in ROWS.items():
        assert row.note == f"refused: {decoder_obstacle(model_type)}" or decoder_obstacle(model_type) is None
        assert NO not in (row.profile, row.layerwise, row.packing, row.merge, row.fit) or row.note
    assert page(list(ROWS.values())) == PAGE.read_text(encoding="utf-8")


def test_rows_are_read_as_they_are_written() -> None:
    for row in (Row("a", YES, note="why"), Row("b")):
        assert read_rows(row.markdown()) == [row]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", AGAIN)
def test_rows_are_true(model_type: str) -> None:
    row = try_type(model_type)
    assert row.markdown() == ROWS[model_type].markdown()
