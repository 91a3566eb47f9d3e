"""fp8 blocks and mxfp4 as plain weights: the values that transformers gives, the keys of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from act_lightning.checkpoints.models import load_config, load_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError
from tests.checkpoints.test_hub_layout import mixture, stored
from tests.front_door import call
from tests.tiny import save_model, tiny_tokenizer

BLOCK = 16
CONFIGS = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": []},
}


def quantized(folder: Path, kind: str) -> dict[str, Tensor]:
    """A tiny mixture as the hub stores it in ``kind``; returns the plain values that it stands for."""
    model = mixture("gpt_oss", intermediate_size=64) if kind == "mxfp4" else mixture("deepseek_v3")
    save_model(model, tiny_tokenizer(), folder, "20KB")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIGS[kind]}))
    plain, index = {}, {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {}
        for key, values in load_file(path).items():
            if kind == "fp8" and values.ndim == 2 and "_proj" in key and "layers" in key:
                grid = [-(-side // BLOCK) for side in values.shape]
                scales = torch.rand(grid) + 0.5
                tensors |= {key: values.float().to(torch.float8_e4m3fn), f"{key}_scale_inv": scales}
                spread = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
                plain[key] = (tensors[key].float() * spread[: values.shape[0], : values.shape[1]]).bfloat16()
                if not any(side % BLOCK for side in values.shape):
                    theirs = Fp8Dequantize(None)._dequantize_one(tensors[key], scales, torch.bfloat16)
                    assert torch.equal(theirs, plain[key])
            elif kind == "mxfp4" and key.endswith(("experts.gate_up_proj", "experts.down_proj")):
                experts, inner, rows = values.shape
                blocks = torch.randint(0, 256, (experts, rows, inner // 32, 16), dtype=torch.uint8)
                scales = torch.randint(120, 130, (experts, rows, inner // 32), dtype=torch.uint8)
                tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
                plain[key] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
            else:
                tensors[key] = plain[key] = values
        save_file(tensors, path, {"format": "pt"})
        index |= dict.fromkeys(tensors, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return plain


@pytest.mark.parametrize("kind", CONFIGS)
def test_values_are_those_of_transformers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    plain = quantized(tmp_path / "model", kind)
    with pytest.raises(ActError, match=r"quantized: .*Run `python -m act_lightning dequantize --model .* --out DIR`"):
        load_config(tmp_path / "model")
    options = ("dequantize", "--model", tmp_path / "model", "--dtype", "bfloat16", "--out", tmp_path / "plain")
    outcome = call(*options)
    assert outcome.status == 0, outcome.err
    assert f"tensors of {kind} as bfloat16" in outcome.out
    written = stored(tmp_path / "plain")
    assert written.keys() == plain.keys()
    assert not [key for key, values in plain.items() if not torch.equal(written[key], values)]
    model = load_model(tmp_path / "plain")
    with CheckpointReader(tmp_path / "plain") as reader:
        assert all(torch.equal(reader.read(name), values) for name, values in model.named_parameters())
    assert "Add --overwrite" in call(*options).err
    assert call(*options, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("kind", "edit", "problem"),
    [
        ("fp8", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "fp8 blocks or mxfp4, and has {'quant_m"),
        ("fp8", {"quantization_config": None}, "fp8 blocks or mxfp4, and has None"),
        ("fp8", {"quantization_config": CONFIGS["mxfp4"]}, "must be plain, or in fp8 blocks or mxfp4, and is F8_E4M3"),
        ("fp8", {"quantization_config": CONFIGS["fp8"] | {"weight_block_size": [8, 8]}}, "must hold scales"),
    ],
)
def test_what_is_quantized_otherwise_is_refused(
    kind: str, edit: dict[str, object], problem: str, tmp_path: Path
) -> None:
    quantized(tmp_path / "model", kind)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | edit))
    options = ("--model", tmp_path / "model", "--dtype", "bfloat16", "--out", tmp_path / "plain")
    outcome = call("dequantize", *options)
    assert outcome.status == 1
    assert problem in outcome.err
    assert not (tmp_path / "plain").exists()
