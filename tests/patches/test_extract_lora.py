"""A change as an adapter: what PEFT loads is the truncated SVD, and the error is the one that is told."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.adapters import save_adapter
from tests.front_door import call, left
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer


def extract(base: Path, tuned: object, rank: int, out: Path, *options: str) -> str:
    folders = ("--base", base, "--tuned", tuned, "--out", out)
    outcome = call("patch", "extract-lora", *folders, "--rank", rank, *options)
    assert outcome.status == 0, outcome.err
    return outcome.out


@pytest.mark.parametrize("rank", [3, 32])
def test_peft_loads_the_truncated_svd(rank: int, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = tiny_model("qwen2", tie_word_embeddings=False)
    tuned = sibling_of(base, seed=1)
    with torch.no_grad():  # as a transfer: some rows move, a module not at all
        for name, parameter in tuned.named_parameters():
            kept = dict(base.named_parameters())[name]
            parameter[2::3] = kept[2::3]
            if "layers.0.self_attn.q_proj" in name:
                parameter.copy_(kept)
    folders = [save_model(model, tiny_tokenizer(), tmp_path / name) for name, model in (("b", base), ("t", tuned))]
    shown = extract(*folders, rank, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "extraction.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in tests/adapters.py
        loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[0]), tmp_path / "out")
        merged = dict(loaded.merge_and_unload().named_parameters())
    targets = dict(tuned.named_parameters())
    squares: dict[str, list[float]] = {}
    for name, before in base.named_parameters():
        change = (targets[name] - before).detach().double().numpy()
        kind = (
            name.removesuffix(".weight").split(".")[-1] if name.endswith("weight") else ".".join(name.split(".")[-2:])
        )
        if "_proj.weight" in name:
            u, s, vh = np.linalg.svd(change, full_matrices=False)
            nearest = before.detach().double().numpy() + (u[:, :rank] * s[:rank]) @ vh[:rank]
            assert np.allclose(merged[name].detach().numpy(), nearest, atol=2e-6), name
            missing = float((s[rank:] ** 2).sum())
        else:
            assert torch.equal(merged[name], before), name
            missing = float((change**2).sum())
        entry = squares.setdefault(kind, [0.0, 0.0])
        entry[0] += float((change**2).sum())
        entry[1] += missing
    told = {share["name"]: (share["changed"], share["left_out"]) for share in record["adapted"] + record["omitted"]}
    assert told.keys() == squares.keys()
    for kind, (changed, missing) in squares.items():
        assert told[kind] == pytest.approx((changed**0.5, missing**0.5), abs=1e-5), kind
    assert {share["name"] for share in record["omitted"]} == {name for name in squares if "_proj" not in name} | {
        f"{name}_proj.bias" for name in "qkv"
    }
    totals = [sum(values) for values in zip(*squares.values(), strict=True)]
    assert record["error"]["whole"] == pytest.approx((totals[1] / totals[0]) ** 0.5, rel=1e-4)
    assert f"{record['error']['whole']:.2%} of the whole" in shown
    assert (record["error"]["adapted"] < 1e-4) == (rank == 32)


def test_an_adapter_is_extracted_again_and_replaced_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    base = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "base")
    merged = save_adapter(base, tmp_path / "adapter", r=4)
    extract(base, f"{base}+{tmp_path / 'adapter'}", 4, tmp_path / "again")
    record = json.loads((tmp_path / "again" / "extraction.json").read_text())
    assert record["error"]["whole"] < 1e-5
    assert record["tuned"] == "base+adapter"
    assert left(tmp_path / "again") == [
        ".act_lightning.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "extraction.json",
    ]
    tuned = save_model(merged, tiny_tokenizer(), tmp_path / "merged")
    options = ("patch", "extract-lora", "--base", base, "--out", tmp_path / "again")
    for tuned_folder, rank, problem in (
        (tuned, 4, "Add --overwrite"),
        (tuned, 0, "must be at least 1"),
        (base, 4, "must differ from the base in a Linear"),
    ):
        extra = [] if "overwrite" in problem else ["--overwrite"]
        refused = call(*options, "--tuned", tuned_folder, "--rank", rank, *extra)
        assert refused.status == 1
        assert problem in refused.err
    extract(base, tuned, 2, tmp_path / "again", "--overwrite")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["r"] == 2
    larger = save_model(tiny_model("llama", vocab_size=320), tiny_tokenizer(), tmp_path / "larger")
    refused = call(*options, "--tuned", larger, "--rank", 2, "--overwrite")
    assert "must have the base's vocabulary" in refused.err
