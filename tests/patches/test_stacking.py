"""Several patches: apart, in a chain, and on the same rows in an order that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from act_lightning.errors import ActError
from act_lightning.patches.apply import apply_patch, revert_patch
from act_lightning.patches.make import make_patch
from act_lightning.patches.patch_file import open_patch
from tests.front_door import left
from tests.tiny import save_model, tiny_model, tiny_tokenizer

Q, EMBEDDING = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


class Bench:
    """A base, and patches that set some rows or columns of it to a value."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = save_model(tiny_model("llama"), tiny_tokenizer(), root / "base")

    def patch(self, name: str, key: str, place: object, value: float, over: Path | None = None) -> Path:
        tuned = save_model(tiny_model("llama"), tiny_tokenizer(), self.root / f"tuned-{name}")
        weights = tensors(over or self.base)
        weights[key][place] = value
        save_file(weights, tuned / "model.safetensors", {"format": "pt"})
        return make_patch(over or self.base, tuned, self.root / f"{name}.safetensors").path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_patches_on_different_rows_go_side_by_side(bench: Bench, tmp_path: Path) -> None:
    patches = [bench.patch("a", Q, slice(0, 3), 1.0), bench.patch("b", Q, slice(3, 5), 2.0)]
    apply_patch(bench.base, patches, tmp_path / "both")
    found = tensors(tmp_path / "both")[Q]
    assert found[:3].eq(1).all()
    assert found[3:5].eq(2).all()
    assert torch.equal(found[5:], tensors(bench.base)[Q][5:])
    with pytest.raises(ActError, match="exactly these patches"):
        revert_patch(tmp_path / "both", patches[:1], tmp_path / "out")
    revert_patch(tmp_path / "both", patches, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (bench.base / "model.safetensors").read_bytes()


def test_patches_on_the_same_rows_are_refused_or_stacked(bench: Bench, tmp_path: Path) -> None:
    first, second = bench.patch("a", Q, slice(0, 3), 1.0), bench.patch("b", Q, slice(2, 5), 2.0)
    before = left(tmp_path)
    with pytest.raises(ActError, match=rf"touches 32 of {Q}. Give --stack"):
        apply_patch(bench.base, [first, second], tmp_path / "out")
    assert left(tmp_path) == before
    for order, row in (([first, second], 2.0), ([second, first], 1.0)):
        apply_patch(bench.base, order, tmp_path / "stacked", stack=True, overwrite=True)
        assert tensors(tmp_path / "stacked")[Q][2].eq(row).all(), "the later one wins"
        revert_patch(tmp_path / "stacked", order, tmp_path / "out", stack=True, overwrite=True)
        assert (tmp_path / "out/model.safetensors").read_bytes() == (bench.base / "model.safetensors").read_bytes()


def test_a_row_of_one_meets_a_column_of_another(bench: Bench, tmp_path: Path) -> None:
    row = bench.patch("row", EMBEDDING, 7, 1.0)
    column = bench.patch("column", EMBEDDING, (slice(None), 3), 2.0)
    with pytest.raises(ActError, match=f"touches 1 of {EMBEDDING}"):
        apply_patch(bench.base, [row, column], tmp_path / "out")


def test_a_patch_made_for_the_result_of_another_follows_it(bench: Bench, tmp_path: Path) -> None:
    first = bench.patch("a", Q, slice(0, 3), 1.0)
    apply_patch(bench.base, [first], tmp_path / "one")
    second = bench.patch("b", Q, slice(2, 5), 2.0, over=tmp_path / "one")
    digest = apply_patch(bench.base, [first, second], tmp_path / "two")
    assert digest == open_patch(second).record.result == apply_patch(tmp_path / "one", [second], tmp_path / "alike")
    assert revert_patch(tmp_path / "two", [first, second], tmp_path / "out") == open_patch(first).record.base
    with pytest.raises(ActError, match="order of their making"):
        apply_patch(bench.base, [second, first, first], tmp_path / "out")
    with pytest.raises(ActError, match="named once"):
        apply_patch(bench.base, [first, first], tmp_path / "out", stack=True)
