"""Channels against a slow re-statement, the paper's own number, and weights that no channel owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from act_lightning.channels import ElementSelection, add_to_channels, as_matrix, inventory
from act_lightning.errors import ActError
from tests.model_types import tiny_type_config
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
        ElementSelection(columns=torch.tensor([[False, True, False]])),
        ElementSelection(torch.tensor([False] * 5), torch.tensor([[True, False, False]])),
    ]
    for one in parts:
        assert bool(one) == bool(one.expand(shape).any())
        for other in parts:
            both = one.union(other)
            assert torch.equal(both.expand(shape), one.expand(shape) | other.expand(shape))
            assert both.count(shape) == int(both.expand(shape).sum())
            touched = both.expand(shape).any(1).nonzero().flatten()
            assert torch.equal(both.touched_rows(5), touched)


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


def test_parameters_without_a_channel_are_kept_and_counted() -> None:
    model = tiny_model("llama")
    put_parameter(model)
    found = inventory(model)
    assert found.unowned == ("model.layers.1.mlp.gain",)
    assert found.unowned_by_kind() == {"model.layers.*.mlp.gain": 32}
    every = torch.ones(found.total, dtype=torch.bool)
    assert found.count_elements(every) == found.parameters - 32
    assert found.count_elements(every, found.unowned) == found.parameters


SPARSE = {
    "mixtral": set[str](),
    "qwen3_moe": set[str](),
    "gpt_oss": {"model.layers.*.self_attn.sinks"},
    "deepseek_v3": set[str](),
    "qwen3_next": {"model.layers.*.linear_attn.A_log", "model.layers.*.linear_attn.dt_bias"},
    "laguna": set[str](),
    "llama4_text": set[str](),
    "mamba": {"backbone.layers.*.mixer.A_log", "backbone.layers.*.mixer.D"},
    "cohere": set[str](),
}
"""The kinds of parameters without a channel, of model types with experts, routers, convolutions, norms of heads."""


def sparse_model(model_type: str) -> PreTrainedModel:
    extra = {"use_qk_norm": True} if model_type == "cohere" else {}
    return AutoModelForCausalLM.from_config(tiny_type_config(model_type, **extra))


@pytest.mark.parametrize("model_type", SPARSE)
def test_channels_of_experts_routers_convolutions_and_norms_of_heads(model_type: str) -> None:
    model = sparse_model(model_type)
    found = inventory(model)
    expected = reference.channels(model)
    assert [(m.name, i) for m in found.modules for i in range(m.count)] == [(name, i) for name, _, i in expected]
    assert set(found.unowned_by_kind()) == SPARSE[model_type]
    sizes = [sum(parameter[index].numel() for parameter, index in reference.pieces(m, i)) for _, m, i in expected]
    assert found.sizes().tolist() == sizes
    for share in (0.003, 0.3):
        check_elements(model, random_mask(found.total, share))
    every = torch.ones(found.total, dtype=torch.bool)
    assert found.count_elements(every, found.unowned) == found.parameters


@pytest.mark.parametrize("model_type", SPARSE)
def test_sums_by_channel_take_any_blocks_of_rows(model_type: str) -> None:
    model = sparse_model(model_type)
    found, numbers = inventory(model), torch.Generator().manual_seed(0)
    values = {name: torch.randint(9, shape, generator=numbers).double() for name, shape in found.shapes.items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = torch.zeros(found.total, dtype=torch.float64)
    for number, (_, module, i) in enumerate(reference.channels(model)):
        for parameter, index in reference.pieces(module, i):
            expected[number] += values[names[id(parameter)]][index].sum()
    for step in (1, 7, 1000):
        sums = torch.zeros(found.total, dtype=torch.float64)
        for module, span in found.spans():
            for owned in module.owned:
                matrix = as_matrix(values[owned.name])
                for start in range(0, len(matrix), step):
                    rows = matrix[start : start + step]
                    add_to_channels(sums[span], owned, found.shapes[owned.name], start, rows)
        assert torch.equal(sums, expected)


def test_towers_of_other_modalities_have_no_channels() -> None:
    model = reference.on_meta(multimodal_config())
    found = inventory(model)
    inside = ("model.language_model.", "lm_head.")
    assert all(f"{module.name}.".startswith(inside) for module in found.modules)
    assert all(not name.startswith(inside) for name in found.unowned)
    text = reference.on_meta(multimodal_config().text_config)
    assert found.total == inventory(text).total


def multimodal_config() -> PretrainedConfig:
    """Gemma 3 with a tower for images of 28 by 28 pixels."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    text = tiny_config("gemma3_text").to_dict()
    return AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)


def test_experts_of_an_unknown_layout_are_refused() -> None:
    class StrangeExperts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrices = nn.Parameter(torch.ones(4, 3, 2))

    model: Any = tiny_model("llama")
    model.model.layers[0].mlp.experts = StrangeExperts()
    with pytest.raises(ActError, match=r"layout that is known, unlike model\.layers\.0\.mlp\.experts\.matrices"):
        inventory(model)
