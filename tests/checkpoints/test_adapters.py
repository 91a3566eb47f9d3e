"""An adapter on its base: the rows that PEFT merges, and everything that is not a plain LoRA adapter of that base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from act_lightning.checkpoints.compatibility import sibling_issues
from act_lightning.checkpoints.models import load_quantized, locate
from act_lightning.checkpoints.reader import CheckpointReader, load_on_device
from act_lightning.checkpoints.weight_files import identify
from act_lightning.errors import ActError
from tests.adapters import save_adapter
from tests.model_types import tiny_type_config
from tests.tiny import save_model, tiny_model, tiny_tokenizer

LINEAR = ["q_proj", "v_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": "all-linear"}),
    "one rank": ("qwen2", {"target_modules": LINEAR, "r": 1}),
    "rslora": ("llama", {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"v_proj": 5}}),
    "alphas": ("llama", {"target_modules": LINEAR, "alpha_pattern": {"layers.1.self_attn.v_proj": 7, "q_proj": 3}}),
    "dora": ("llama", {"target_modules": [*LINEAR, "lm_head"], "use_dora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]}),
}


pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "base")


def joined(base: Path, adapter: Path) -> Path:
    return locate(f"{base}+{adapter}", None, "profile.sources[0].model", adapters=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_that_peft_merges(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    architecture, settings = CASES[case]
    model = tiny_model(architecture, dtype=dtype, tie_word_embeddings=False)
    base = save_model(model, tiny_tokenizer(), tmp_path / "base", "20KB")
    merged = save_adapter(base, tmp_path / "adapter", **settings)
    before, expected = dict(model.named_parameters()), dict(merged.named_parameters())
    assert before.keys() == expected.keys()
    assert any(not torch.equal(before[name], values) for name, values in expected.items())
    folder = joined(base, tmp_path / "adapter")
    loaded = dict(load_on_device(folder, dtype, torch.device("cpu")).named_parameters())
    in_half = dict(load_on_device(folder, torch.float16, torch.device("cpu")).named_parameters())
    with CheckpointReader(folder) as reader:
        for name, values in expected.items():
            assert torch.equal(reader.read(name), values), name
            assert torch.equal(loaded[name], values), name
            assert torch.equal(in_half[name], values.half()), name
            for index in (torch.randperm(len(values))[:7], torch.tensor([len(values) - 1]), torch.arange(2, 9)):
                assert torch.equal(reader.rows(name, index), values[index]), name


def test_the_joined_folder_copies_no_weights_and_follows_its_parts(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    folder = joined(base, tmp_path / "adapter")
    assert folder.name == "adapter"
    assert all(path.is_symlink() for path in folder.rglob("*") if not path.is_dir())
    digests = [identify(folder, verify=True)]
    assert digests[0].digest != identify(base).digest
    assert {"model.safetensors", ".adapter/adapter_model.safetensors"} < {*(digests[0].sha256 or {})}
    inode = folder.stat().st_ino
    assert (joined(base, tmp_path / "adapter"), folder.stat().st_ino) == (folder, inode), "made once"
    for file, value in (("adapter_config.json", 9), ("adapter_model.safetensors", None)):
        path = tmp_path / "adapter" / file
        if value is None:
            save_file({key: tensor * 2 for key, tensor in load_file(path).items()}, path)
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": value}))
        digests.append(identify(joined(base, tmp_path / "adapter")))
    assert len({identity.digest for identity in digests}) == 3
    tiny_tokenizer("{{ messages }}").save_pretrained(tmp_path / "adapter")
    assert (joined(base, tmp_path / "adapter") / "chat_template.jinja").read_text() == "{{ messages }}"


def edited(adapter: Path, config: Mapping[str, Any]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "IA3"}, "peft_type: 'IA3'"),
        ({"bias": "lora_only"}, "bias: 'lora_only'"),
        ({"init_lora_weights": "pissa_niter_4", "use_qalora": True}, "init_lora_weights: 'pissa_niter_4', use_qalora"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, r"'mlp.experts.gate_up_proj'\] \(LoRA on packed"),
        ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices: \[1, 2\]"),
        ({"a_setting_of_tomorrow": True}, "a_setting_of_tomorrow: True"),
        ({"lora_alpha": "8"}, "lora_alpha: '8'"),
        ({"alpha_pattern": {"(a+)+b": 1}}, r"alpha_pattern: .* \(not names of modules"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path in adapter_config.json is None"),
        ({"base_model_name_or_path": "Qwen/Qwen2.5-7B"}, r"the model that the adapter was trained on, Qwen/Qwen2.5-7B"),
    ],
)
def test_a_config_that_says_more_is_refused(config: dict[str, Any], problem: str, base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    edited(tmp_path / "adapter", config)
    with pytest.raises(ActError, match=problem):
        joined(base, tmp_path / "adapter")


def test_lora_on_packed_experts_is_refused_and_on_the_rest_of_a_mixture_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixture = AutoModelForCausalLM.from_config(tiny_type_config("qwen3_moe"), dtype=torch.float32)
    base = save_model(mixture, tiny_tokenizer(), tmp_path / "base")
    packed = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    save_adapter(base, tmp_path / "packed", **packed)
    with pytest.raises(ActError) as raised:
        joined(base, tmp_path / "packed")
    (issue,) = raised.value.issues
    assert issue.setting == "profile.sources[0].model"
    assert "target_parameters: ['mlp.experts.gate_up_proj'] (LoRA on packed experts)" in issue.problem
    assert issue.hint.startswith("Merge it with PEFT (merge_and_unload)")
    merged = save_adapter(base, tmp_path / "plain", target_modules=["q_proj", "o_proj"])
    with CheckpointReader(joined(base, tmp_path / "plain")) as reader:
        for name, values in merged.named_parameters():
            assert torch.equal(reader.read(name), values), name


def test_the_base_is_known_by_its_weights_or_its_name(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter)
    other = save_model(tiny_model("llama", seed=1), tiny_tokenizer(), tmp_path / "other")
    with pytest.raises(ActError, match=r"other': must be joined to the model that the adapter was trained on, .*base"):
        joined(other, adapter)
    shutil.copytree(base, tmp_path / "copy")
    joined(tmp_path / "copy", adapter)
    edited(adapter, {"base_model_name_or_path": "/nowhere/copy"})
    joined(tmp_path / "copy", adapter)
    edited(adapter, {"base_model_name_or_path": "owner/copy"})
    snapshot = tmp_path / "models--owner--copy" / "snapshots" / ("0" * 40)
    shutil.copytree(base, snapshot)
    joined(snapshot, adapter)
    with pytest.raises(ActError, match="Write owner/copy"):
        joined(base, adapter)


@pytest.mark.parametrize(
    ("tied", "rename", "problem"),
    [
        (True, {"self_attn.q_proj.lora_": "lm_head.lora_"}, r"lora_A.weight \(of a tied matrix\)"),
        (False, {"self_attn.q_proj": "self_attn.w_proj"}, "w_proj.lora_A.weight"),
        (False, {"self_attn.q_proj": "mlp.down_proj"}, r"down_proj.lora_A.weight \(4, 32\), .* for \(32, 48\)"),
        (False, {"q_proj.lora_A": "q_proj.lora_C"}, "q_proj.lora_C.weight"),
        (False, {"lora_A.weight": "base_layer.bias"}, "base_layer.bias"),
        (False, {"model.layers.0.self_attn.q_proj.lora_A": "model.norm"}, "base_model.model.model.norm.weight"),
    ],
)
def test_tensors_that_belong_to_no_matrix_are_named(
    tied: bool, rename: dict[str, str], problem: str, tmp_path: Path
) -> None:
    base = save_model(tiny_model("llama", tie_word_embeddings=tied), tiny_tokenizer(), tmp_path / "base")
    save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path, ((old, new),) = tmp_path / "adapter" / "adapter_model.safetensors", rename.items()
    tensors = {key: values for key, values in load_file(path).items() if ".0." in key}
    save_file({key.replace(f"model.layers.0.{old}" if tied else old, new): t for key, t in tensors.items()}, path)
    folder = joined(base, tmp_path / "adapter")
    target = save_model(tiny_model("llama", seed=1, tie_word_embeddings=tied), tiny_tokenizer(), tmp_path / "target")
    (issue,) = sibling_issues(target, folder, "profile.sources[0].model")
    assert "must change matrices of Linear, Conv1D and Embedding modules of its base, unlike" in issue.problem
    with pytest.raises(ActError, match=problem):
        CheckpointReader(folder)


def test_dora_of_a_transposed_matrix_is_refused(tmp_path: Path) -> None:
    base = save_model(tiny_model("gpt2"), tiny_tokenizer(), tmp_path / "base")
    save_adapter(base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True)
    with pytest.raises(ActError, match=r"c_attn.lora_magnitude_vector \(96,\) for \(32, 96\) with DoRA"):
        CheckpointReader(joined(base, tmp_path / "adapter"))


def test_values_that_are_not_finite_are_named(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key][3, 1] = float("nan")
    save_file(tensors, path)
    with CheckpointReader(joined(base, tmp_path / "adapter")) as reader, pytest.raises(ActError, match=f"{key}.*row 3"):
        reader.read(key.removeprefix("base_model.model.").replace("lora_B.", ""))


def test_an_adapter_is_named_with_its_base_and_only_as_a_source(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter)
    with pytest.raises(ActError, match=rf"holds an adapter. Write BASE\+{adapter}, with the model"):
        locate(adapter, adapters=True)
    with pytest.raises(ActError, match=r"holds an adapter. Merge the adapter"):
        locate(adapter)
    with pytest.raises(ActError, match="only a source may be an adapter"):
        locate(f"{base}+{adapter}")
    folder = joined(base, adapter)
    assert locate(folder, adapters=True) == folder
    shutil.copytree(folder, tmp_path / "strange")
    for place, adapters in ((folder, False), (tmp_path / "strange", True)):
        with pytest.raises(ActError, match=r"must not hold a folder \.adapter"):
            locate(place, adapters=adapters)
    with pytest.raises(ActError, match=r"names two\. Download one"):
        locate("owner/base+owner/adapter", "main", adapters=True)
    with pytest.raises(ActError, match=r"profile\.quantization = '8bit': cannot be combined with an adapter"):
        load_quantized(folder, torch.float32, torch.device("cpu"), "8bit")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ActError, match=r"must hold adapter_model\.safetensors. Load and save the adapter with PEFT"):
        joined(base, adapter)
