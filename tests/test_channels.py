"""Channels against a slow re-statement, the paper's own number, and weights that no channel owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from act_lightning.channels import ElementSelection, inventory
from act_lightning.errors import ActError
from tests.reference import channels as reference
from tests.tiny import ARCHITECTURES, tiny_config, tiny_model

TYING = [("llama", True), ("llama", False), ("gpt2", True), ("gpt_neox", True), ("gemma3_text", True), ("phi3", False)]


def random_mask(total: int, share: float) -> torch.Tensor:
    return torch.rand(total) < share


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_order_and_number_of_channels(architecture: str) -> None:
    model = tiny_model(architecture)
    found = inventory(model)
    expected = [(name, i) for name, _, i in reference.channels(model)]
    assert [(module.name, i) for module, span in found.spans() for i in range(span.stop - span.start)] == expected
    assert [i for _, span in found.spans() for i in range(span.start, span.stop)] == list(range(len(expected)))
    assert found.total == len(expected)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_meta_device_is_enough(architecture: str) -> None:
    assert inventory(reference.on_meta(tiny_config(architecture))) == inventory(tiny_model(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_elements_that_move(architecture: str) -> None:
    model = tiny_model(architecture)
    found = inventory(model)
    for share in (0.003, 0.1, 0.9):
        check_elements(model, random_mask(found.total, share))


@pytest.mark.parametrize(("architecture", "tied"), TYING)
def test_tied_matrix_is_two_modules_and_one_parameter(architecture: str, tied: bool) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    found = inventory(model)
    embedding = next(name for name, _ in model.named_parameters())
    owners = [(m.count, owned.dim) for m in found.modules for owned in m.owned if owned.name == embedding]
    assert owners == ([(32, 1), (300, 0)] if tied else [(32, 1)])
    assert len(set(found.aliases.values())) == len(found.shapes) == len(found.aliases) - tied
    check_elements(model, random_mask(found.total, 0.2))


def check_elements(model: PreTrainedModel, mask: torch.Tensor) -> None:
    """Compare selections, expanded and counted, with marks set one channel at a time."""
    found = inventory(model)
    expected = reference.moved(model, set(mask.nonzero().flatten().tolist()))
    elements = found.elements(mask)
    assert elements.keys() == {name for name, marks in expected.items() if marks.any()}
    for name, selection in elements.items():
        shape = found.shapes[name]
        assert torch.equal(selection.expand(shape), expected[name]), name
        assert selection.count(shape) == int(selection.expand(shape).sum()), name
    assert found.count_elements(mask) == sum(int(marks.sum()) for marks in expected.values())


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "qwen2"])
def test_all_channels_move_everything(architecture: str) -> None:
    found = inventory(tiny_model(architecture))
    assert found.count_elements(torch.ones(found.total, dtype=torch.bool)) == found.parameters
    assert found.elements(torch.zeros(found.total, dtype=torch.bool)) == {}


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma3_text"])
def test_sizes(architecture: str) -> None:
    model = tiny_model(architecture)
    expected = [
        sum(parameter[index].numel() for parameter, index in reference.pieces(module, i))
        for _, module, i in reference.channels(model)
    ]
    assert inventory(model).sizes().tolist() == expected


def test_split_and_join() -> None:
    found = inventory(tiny_model("olmo2"))
    flat = torch.rand(found.total)
    parts = found.split(flat)
    assert torch.equal(parts["lm_head"], flat[-300:])
    assert torch.equal(found.join(dict(reversed(parts.items()))), flat)


def test_union_of_selections() -> None:
    shape = torch.Size([5, 3])
    parts = [
        ElementSelection(),
        ElementSelection(rows=torch.tensor([True, False, False, True, False])),
        ElementSelection(rows=torch.tensor([False, False, False, True, True])),
        ElementSelection(columns=torch.tensor([False, True, False])),
        ElementSelection(torch.tensor([False] * 5), torch.tensor([True, False, False])),
    ]
    for one in parts:
        assert bool(one) == bool(one.expand(shape).any())
        for other in parts:
            both = one.union(other)
            assert torch.equal(both.expand(shape), one.expand(shape) | other.expand(shape))
            assert both.count(shape) == int(both.expand(shape).sum())


def test_golden_count_of_qwen() -> None:
    found = inventory(reference.qwen_7b(tied=False))
    assert found.total == 1_750_528
    assert found.parameters == 7_615_616_512


class Adapted(nn.Module):
    """Keeps the layer it adapts as PEFT's DoRA does."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.magnitude = nn.Parameter(torch.ones(32))
        self.lora_A = nn.ModuleDict({"default": nn.Linear(32, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, 32, bias=False)})


class Saved(nn.Module):
    """Keeps a trained copy beside a module as PEFT's ``modules_to_save`` does."""

    def __init__(self, original_module: nn.Module) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(32, 300)})


class Packed(nn.Module):
    """Keeps a quantized matrix in buffers as GPTQ does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(1, 32, dtype=torch.float16))


def put_parameter(model: Any) -> None:
    model.model.layers[1].mlp.gain = nn.Parameter(torch.ones(32))


def put_eight_bits(model: Any, dtype: torch.dtype = torch.int8) -> None:
    weight = torch.zeros(48, 32, dtype=dtype)
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight, requires_grad=False)


def put_eight_bit_floats(model: Any) -> None:
    put_eight_bits(model, torch.float8_e4m3fn)


def put_adapter(model: Any) -> None:
    model.model.layers[1].self_attn.o_proj = Adapted(model.model.layers[1].self_attn.o_proj)


def put_saved_copy(model: Any) -> None:
    model.lm_head = Saved(model.lm_head)


def put_packed(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = Packed()


ADAPTER = ["magnitude", "lora_A.default.weight", "lora_B.default.weight"]
UNOWNED = [
    (put_parameter, ["model.layers.1.mlp.gain"]),
    (put_eight_bits, ["model.layers.0.mlp.up_proj.weight"]),
    (put_eight_bit_floats, ["model.layers.0.mlp.up_proj.weight"]),
    (put_adapter, [f"model.layers.1.self_attn.o_proj.{part}" for part in ADAPTER]),
    (put_saved_copy, ["lm_head.modules_to_save.default.weight", "lm_head.modules_to_save.default.bias"]),
    (put_packed, ["model.layers.0.mlp.up_proj.qweight"]),
]


@pytest.mark.parametrize(("put", "names"), UNOWNED, ids=[put.__name__ for put, _ in UNOWNED])
def test_weights_that_no_channel_owns_are_named(put: Callable[[Any], None], names: list[str]) -> None:
    model = tiny_model("llama")
    put(model)
    with pytest.raises(ActError) as raised:
        inventory(model)
    assert f"unlike {', '.join(names)}. " in str(raised.value)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_mixture_of_experts_is_named(architecture: str) -> None:
    experts = {"mixtral": {"num_local_experts": 4}, "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16}}
    model = reference.on_meta(tiny_config(architecture, **experts[architecture]))
    unowned = {name for name, _ in model.named_parameters() if "experts" in name or name.endswith("mlp.gate.weight")}
    with pytest.raises(ActError, match=r"unlike .* and 1 more\. Merge adapters") as raised:
        inventory(model)
    shown = str(raised.value).split("unlike ")[1].split(" and ")[0].split(", ")
    assert len(unowned) == 6
    assert len(shown) == 5
    assert set(shown) < unowned
