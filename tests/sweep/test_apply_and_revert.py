"""After any points, and after an error in the middle of one, the model is the target to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from act_lightning.channels import inventory
from act_lightning.checkpoints.models import load_model
from act_lightning.errors import ActError
from act_lightning.merging import TIES, TaskArithmetic
from act_lightning.sweep.runner import Stopwatch, apply_and_revert
from act_lightning.transfer.preparation import PreparedTransfer
from act_lightning.transfer.selection import SelectedSource
from tests.reference.act import assert_same_bits
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tied embeddings, whose matrix moves by rows and by columns."""
    root = tmp_path_factory.mktemp("pair")
    target = tiny_model("qwen2", dtype=request.param, tie_word_embeddings=True)
    source = sibling_of(target, 1)
    return tuple(save_model(m, tiny_tokenizer(), root / n) for m, n in ((target, "t"), (source, "s")))  # type: ignore[return-value]


def bits(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def prepared(model: Any, source: Path, mask: Tensor, scale: float, method: Any) -> PreparedTransfer:
    one = SelectedSource("s", "s", source, scale, 0.5, {"d": mask}, {"d": 1})
    return PreparedTransfer(inventory(model), [one], method, 0, {}, scale)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=3),
    share=st.sampled_from([0.02, 0.5, 1.0]),
    scale=st.sampled_from([-0.3, 0.1, 0.4, 1.0]),
    method=st.sampled_from([TaskArithmetic(), TIES(density=0.3)]),
)
def test_points_leave_no_trace(
    pair: tuple[Path, Path], seeds: list[int], share: float, scale: float, method: Any
) -> None:
    model = load_model(pair[0])
    before = bits(model)
    total = inventory(model).total
    for seed in seeds:
        mask = torch.rand(total, generator=torch.Generator().manual_seed(seed)) < share
        mask[0] = True
        stopwatch = Stopwatch(CPU)
        with apply_and_revert(model, lambda mask=mask: prepared(model, pair[1], mask, scale, method), stopwatch):  # type: ignore[misc]
            inside = bits(model)
        assert any(not torch.equal(inside[name], values) for name, values in before.items())
        assert {"selecting", "applying", "reverting"} <= stopwatch.seconds.keys()
        assert_same_bits(bits(model), before)


def test_an_error_leaves_no_trace(pair: tuple[Path, Path]) -> None:
    model = load_model(pair[0])
    before, everything = bits(model), torch.ones(inventory(model).total, dtype=torch.bool)
    good = prepared(model, pair[1], everything, 0.5, TaskArithmetic())
    with pytest.raises(KeyError), apply_and_revert(model, lambda: good, Stopwatch(CPU)):
        raise KeyError
    assert_same_bits(bits(model), before)
    too_much = replace(good, sources=[replace(good.sources[0], scale=3e38)])
    model.get_parameter("model.norm.weight").data += 1e4
    before = bits(model)
    with pytest.raises(ActError, match="must be finite"), apply_and_revert(model, lambda: too_much, Stopwatch(CPU)):
        pass
    assert_same_bits(bits(model), before)
