"""Packed rows: how they are made, for which models, and that nothing comes out but what single samples give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    modeling_flash_attention_utils,
)
from transformers.integrations import flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.models.gptj import modeling_gptj

from act_lightning.channels import inventory
from act_lightning.data.batches import (
    collate,
    drop_implied,
    known_masks,
    pack,
    packing_obstacle,
    should_pack,
    unbatch,
)
from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.scorers import Activation
from act_lightning.training.attention_compile import set_attention
from act_lightning.training.loss import answer_loss
from tests.loops import compare_on_batch, messages, random_samples
from tests.tiny import ARCHITECTURES, sibling_of, tiny_config, tiny_model

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
APART: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 1},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 2},
    "gptj": {"rotary_dim": 4},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "bloom": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "minimax": {"num_key_value_heads": 2, "layer_types": ["linear_attention", "full_attention"]},
}
FLASH: dict[str, dict[str, Any]] = {  # these pass positions on to flash attention
    "llama": {},
    "gpt2": {},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 48},
    "opt": TOGETHER["opt"],
}
LOST: dict[str, dict[str, Any]] = {  # these keep samples apart by a mask, which flash attention does not take
    "gpt_bigcode": {},
    "persimmon": {"intermediate_size": 48},
    "moshi": {"num_key_value_heads": 4, "ffn_dim": 48},
    "ctrl": {"dff": 48},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
}
EQUAL = {"llama": {}, "qwen2": {}, "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}}


def config_of(architecture: str, changes: dict[str, Any]) -> PretrainedConfig:
    named = {name: value for name, value in (SMALL | changes).items() if value is not None}
    return AutoConfig.for_model(architecture, **named)


def some(count: int = 5, longest: int = 24, seed: int = 0) -> list[Sample]:
    samples = random_samples(count, longest, seed)
    return [Sample(torch.tensor(ids), torch.tensor(labels)) for ids, labels in samples]


def difference_when_packed(model: PreTrainedModel) -> float:
    """A plain re-statement: the largest difference that packing makes to any logit."""
    ids = torch.randint(3, 90, (1, 21), generator=torch.Generator().manual_seed(5))
    positions = torch.cat([torch.arange(9), torch.arange(12)])[None]
    with torch.no_grad():
        alone = torch.cat([model(part, use_cache=False).logits for part in ids.split([9, 12], 1)], 1)
        return float((model(ids, position_ids=positions, use_cache=False).logits - alone).abs().max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_architectures_we_name_keep_samples_apart(architecture: str) -> None:
    assert packing_obstacle(tiny_config(architecture)) is None
    assert difference_when_packed(tiny_model(architecture)) < 1e-5


@pytest.mark.parametrize("architecture", APART)
def test_others_that_do(architecture: str) -> None:
    assert packing_obstacle(config_of(architecture, APART[architecture])) is None


@pytest.mark.parametrize("architecture", TOGETHER)
def test_models_that_mix_samples_are_recognized(architecture: str) -> None:
    config = config_of(architecture, TOGETHER[architecture])
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape)
    assert difference_when_packed(model) > 0.1
    assert f"{architecture} " in str(packing_obstacle(config))


BATCHES = {
    "padded": collate(some(), 0),
    "packed": pack(some()),
    "of one length": collate(some(1) * 3, 0),
    "of one sample": pack(some(1)),
}


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masks_are_the_same_to_the_bit_where_nobody_asks_the_device(architecture: str, attention: str) -> None:
    model = tiny_model(architecture)
    set_attention(model, attention)
    for name, batch in BATCHES.items():
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        kept = drop_implied(inputs)
        assert len(kept) == (2 if name in ("padded", "packed") else 1)
        with torch.no_grad():
            expected = model(**inputs, use_cache=False).logits
            with known_masks(kept):
                found = model(**kept, use_cache=False).logits
        assert torch.equal(found, expected), name


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention of ``[rows, tokens, heads, features]``."""
    query, key, value = (values.transpose(1, 2) for values in (query, key, value))
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def attend_by_length(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, softmax_scale: float | None, **_: object
) -> Tensor:
    """The same of samples in one row, whose beginnings are told."""
    lengths = cu_seqlens_q.diff().tolist()
    parts = zip(*(values[None].split(lengths, 1) for values in (query, key, value)), strict=True)
    return torch.cat([attend(*part, softmax_scale)[0] for part in parts])


@pytest.fixture
def flash_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own code around flash attention, with kernels that need no GPU."""

    def attend_all(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float | None) -> Tensor:
        return attend(query, key, value, softmax_scale)

    def arguments(softmax_scale: float | None = None, **_: object) -> dict[str, float | None]:
        return {"softmax_scale": softmax_scale}

    kernels = (attend_all, attend_by_length, None, None, None), (arguments, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *_, **__: kernels)
    monkeypatch.setattr(flash_attention, "get_target_dtype", lambda *_: None)
    monkeypatch.setattr(
        PreTrainedModel, "_check_and_adjust_attn_implementation", lambda self, name, *_, **__: name or "eager"
    )
    for modeling in (modeling_gptj, modeling_gpt_neo):
        forward = modeling_flash_attention_utils._flash_attention_forward
        monkeypatch.setattr(modeling, "_flash_attention_forward", forward, raising=False)


@pytest.mark.parametrize("architecture", [*FLASH, *LOST])
def test_flash_attention_needs_to_know_where_samples_begin(architecture: str, flash_kernels: None) -> None:
    config = config_of(architecture, (FLASH | LOST)[architecture])
    if architecture in LOST:
        assert packing_obstacle(config) is None, "with a mask"
    torch.manual_seed(1)
    flashing = copy.deepcopy(config)
    flashing._attn_implementation = "flash_attention_2"
    model = AutoModelForCausalLM.from_config(copy.deepcopy(flashing)).eval()
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape)
    difference, obstacle = difference_when_packed(model), packing_obstacle(flashing)
    assert (obstacle is None) == (difference < 1e-4) == (architecture in FLASH), (difference, obstacle)
    if obstacle:
        assert obstacle.startswith(f"{architecture} with flash_attention_2 does not keep")
        assert not should_pack("auto", flashing, by_length=False)
    assert ALL_ATTENTION_FUNCTIONS["flash_attention_2"] is flash_attention.flash_attention_forward


def test_real_sizes_are_tried_small_and_leave_random_numbers_alone() -> None:
    large = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    config = AutoConfig.for_model("qwen2", **large, num_attention_heads=28, num_key_value_heads=4)
    before, original = torch.get_rng_state(), config.to_dict()
    assert packing_obstacle(config) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert config.to_dict() == original
    assert packing_obstacle(AutoConfig.for_model("gemma3_text")) is None, "sliding and full attention"


def test_a_model_that_cannot_be_tried_is_padded() -> None:
    assert "could not be tried in small" in str(packing_obstacle(AutoConfig.for_model("mamba")))


def test_the_setting_decides() -> None:
    llama, bloom = tiny_config("llama"), config_of("bloom", {})
    assert should_pack("auto", llama, by_length=False)
    assert not should_pack("auto", llama, by_length=True), (
        "padding like lengths is less work than attention that is hidden"
    )
    assert should_pack(True, llama, by_length=True)
    assert not should_pack(False, llama, by_length=False)
    with messages() as said:
        assert not should_pack("auto", bloom, by_length=False)
    assert said == ["rows are padded, not packed: bloom does not keep the samples of a packed row apart"]
    with pytest.raises(ActError, match=r"data.packing = True: must be left to a model that can: bloom"):
        should_pack(True, bloom, by_length=False)
    llama._attn_implementation = "flash_attention_2"
    assert should_pack("auto", llama, by_length=True), "flash attention skips what is hidden"


@pytest.mark.parametrize("first_is_answer", [False, True])
@pytest.mark.parametrize("architecture", EQUAL)
def test_loss_and_gradients_equal_single_samples(architecture: str, first_is_answer: bool) -> None:
    model, samples = tiny_model(architecture, **EQUAL[architecture]), some()
    if first_is_answer:
        for sample in samples:
            sample.labels[0] = sample.input_ids[0]
    found = []
    for batches in ([pack([sample]) for sample in samples], [collate([one], 0) for one in samples], [pack(samples)]):
        model.zero_grad()
        losses = [answer_loss(model, batch) for batch in batches]
        torch.stack([loss for loss, _ in losses]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        total = torch.stack([loss.detach() for loss, _ in losses]).sum()
        found.append((float(total), sum(tokens for _, tokens in losses), gradients))
    tokens = found[0][1]
    for loss, counted, gradients in found[1:]:
        assert counted == tokens
        assert loss / tokens == pytest.approx(found[0][0] / tokens, abs=1e-6)
        for name, values in gradients.items():
            torch.testing.assert_close(values / tokens, found[0][2][name] / tokens, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("architecture", EQUAL)
def test_scores_equal_single_samples(architecture: str) -> None:
    """Also where the length of the row is a number of heads, which needs one more column."""
    target = tiny_model(architecture, **EQUAL[architecture])
    source, channels = sibling_of(target, seed=1), inventory(target)
    four = [
        Sample(torch.tensor([5, 6, 7]), torch.tensor([IGNORED, 6, 7])),
        Sample(torch.tensor([8]), torch.tensor([8])),
    ]
    for samples in (some(), four):
        found = []
        for batches in ([collate([sample], 0) for sample in samples], [pack(samples)]):
            metric = ChannelMeans(channels, Activation())
            counted = sum(compare_on_batch(target, [source], batch, [metric]) for batch in batches)
            assert counted == sum(int((sample.labels != IGNORED).sum()) for sample in samples)
            found.append(metric.compute())
        assert float((found[1] - found[0]).abs().max() / found[0].max()) < 1e-6


def test_packing_is_undone() -> None:
    samples = some()
    batch = pack(samples)
    assert set(batch) == {"input_ids", "position_ids", "labels"}, "a mask of ones would hide where samples begin"
    again = unbatch(batch)
    assert [one.labels.tolist() for one in again] == [one.labels.tolist() for one in samples]
