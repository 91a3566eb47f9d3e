"""Checkpoints in the layout of the hub, of which transformers makes parameters by joining or splitting tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from act_lightning.architecture import persistent_buffers
from act_lightning.checkpoints.export import export_model
from act_lightning.checkpoints.model_spec import read_model_spec
from act_lightning.checkpoints.models import load_model
from act_lightning.checkpoints.reader import CheckpointReader, load_on_device
from act_lightning.errors import ActError
from act_lightning.patches.make import match_tensors
from tests.front_door import basic, call, changed, run
from tests.model_types import tiny_type_config
from tests.tiny import perturb, save_model, sibling_of, tiny_tokenizer, write_jsonl

MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next")


pytestmark = pytest.mark.usefixtures("fresh_cache")


def mixture(model_type: str, dtype: torch.dtype = torch.bfloat16, **overrides: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(tiny_type_config(model_type, **overrides), dtype=torch.float32)
    return sibling_of(model, seed=2, scale=0.1).to(dtype).eval()


def stored(folder: Path) -> dict[str, Tensor]:
    return {key: values for path in sorted(folder.glob("*.safetensors")) for key, values in load_file(path).items()}


def assert_same(values: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert values.keys() == expected.keys()
    assert not [key for key in expected if not torch.equal(values[key], expected[key])]


@pytest.mark.parametrize("model_type", MIXTURES)
def test_parameters_are_read_and_written_as_transformers_does(model_type: str, tmp_path: Path) -> None:
    model = mixture(model_type)
    folder = save_model(model, tiny_tokenizer(), tmp_path / "model", "20KB")
    parameters = dict(model.named_parameters())
    with CheckpointReader(folder) as reader:
        assert len(reader.headers) > 3
        assert {*reader.names} == {*parameters}
        packed = [name for name in parameters if "experts." in name and parameters[name].ndim == 3]
        assert packed
        assert set(reader.keymap.pieces) == ({*packed} if model_type != "gpt_oss" else set())
        for name, values in parameters.items():
            assert torch.equal(reader.read(name), values), name
            matrix = values.view(-1, values.shape[-1]) if values.ndim > 1 else values
            index = torch.randperm(len(matrix))[:11]
            assert torch.equal(reader.rows(name, index), matrix[index]), name
            filled = torch.empty_like(values[1:])
            reader.fill(name, filled, 1)
            assert torch.equal(filled, values[1:]), name
    assert read_model_spec(folder) == read_model_spec(folder), "from the cache, too"

    other = sibling_of(model, seed=5)
    calls: list[str] = []

    def get(name: str) -> Tensor:
        calls.append(name)
        return other.get_parameter(name)

    for dtype in (None, torch.float32):
        calls.clear()
        export_model(tmp_path / f"exported {dtype}", folder, get, dtype, buffers=persistent_buffers(other))
        assert calls == CheckpointReader(folder).stored_names, "each once, in the order of other processes"
        expected = save_model(other.to(dtype or torch.bfloat16), tiny_tokenizer(), tmp_path / f"saved {dtype}", "20KB")
        assert_same(stored(tmp_path / f"exported {dtype}"), stored(expected))
        assert load_model(tmp_path / f"exported {dtype}").dtype == (dtype or torch.bfloat16)
        other.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("qwen3_moe", ("--transfer.selection", "random", "--transfer.ratio", "0.03")),
        ("mixtral", ("--transfer.selection", "random", "--transfer.ratio", "0.5", "--model.export_dtype", "float32")),
        ("deepseek_v3", ("--transfer.selection", "all", "--transfer.method", "ties")),
        ("gpt_oss", ("--transfer.selection", "random", "--transfer.ratio", "0.2")),
        ("qwen3_next", ("--transfer.selection", "random", "--transfer.ratio", "0.2", "--transfer.method", "dare")),
    ],
)
def test_a_merge_is_the_injection_in_memory(model_type: str, options: tuple[str, ...], tmp_path: Path) -> None:
    model = mixture(model_type)
    target = save_model(model, tiny_tokenizer(), tmp_path / "target", "20KB")
    source = save_model(sibling_of(model, seed=6), tiny_tokenizer(), tmp_path / "source", "3KB")
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "answer": "b"}])
    config = changed(basic(tmp_path, target, source, data), "model.learning_rate", ...)
    outcome = run("merge", config, *options)
    assert outcome.status == 0, outcome.err
    merged = tmp_path / "run" / "merged"
    before, after = stored(target), stored(merged)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key].float(), after[key].float()) for key in before)

    (tmp_path / "memory").mkdir()
    injected = changed(config, "trainer.default_root_dir", str(tmp_path / "memory" / "run"))
    injected = changed(injected, "trainer.max_steps", 0)
    outcome = run("fit", injected, *options, "--trainer.precision", "bf16-true")
    assert outcome.status == 0, outcome.err
    in_memory = stored(tmp_path / "memory" / "run" / "model")
    if "float32" in options:
        after, in_memory = ({key: t.bfloat16() for key, t in tensors.items()} for tensors in (after, in_memory))
    assert_same(after, in_memory)
    assert dict(load_on_device(merged, torch.bfloat16, torch.device("cpu")).named_parameters()).keys() == {
        name for name, _ in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("model_type", "prefix", "as_transformers_names_them"),
    [
        ("gemma3", "language_model.model.", False),
        ("gemma3", "model.language_model.", True),
        ("gemma4", "model.language_model.", False),
        ("got_ocr2", "language_model.model.", False),
        ("llama4", "language_model.model.", False),
        ("qwen3_5", "model.language_model.", False),
        ("qwen3_5_moe", "model.language_model.", False),
    ],
)
def test_the_text_of_a_multimodal_checkpoint_moves_and_all_else_stays(
    model_type: str, prefix: str, as_transformers_names_them: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    target = AutoModelForImageTextToText.from_config(tiny_type_config(model_type), dtype=torch.float32).eval()
    perturb(target, 0, 0.15)
    for name, model in (("target", target), ("source", sibling_of(target, seed=1))):
        model.save_pretrained(tmp_path / name, save_original_format=not as_transformers_names_them)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "answer": "b c d"}, {"prompt": "e", "answer": "f"}])
    config = changed(basic(tmp_path, tmp_path / "target", tmp_path / "source", data), "model.learning_rate", ...)
    outcome = run("merge", config, "--transfer.ratio", "0.2", "--transfer.scope", "module")
    assert outcome.status == 0, outcome.err
    before, after, theirs = (stored(tmp_path / name) for name in ("target", "run/merged", "source"))
    assert before.keys() == after.keys()
    text = {key for key in before if key.startswith((prefix, "lm_head", "language_model.lm_head"))}
    assert len(text) > 20
    assert len(before) - len(text) > 20
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved <= text
    assert {f"{prefix}embed_tokens.weight", f"{prefix}layers.0.input_layernorm.weight"} <= moved
    for key in moved:
        at = before[key] != after[key]
        expected = before[key] + 0.4 * (theirs[key] - before[key])
        torch.testing.assert_close(after[key][at], expected[at], rtol=1e-5, atol=1e-6)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "merged")
    loaded = {name: values for name, values in merged.named_parameters() if "language_model" in name}
    norm = next(values for name, values in loaded.items() if name.endswith("layers.0.input_layernorm.weight"))
    assert torch.equal(norm, after[f"{prefix}layers.0.input_layernorm.weight"])
    if model_type not in ("llama4", "qwen3_5", "qwen3_5_moe"):  # whose text has the same names without the rest
        return
    AutoModelForCausalLM.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    assert not any("vision" in key or "visual" in key for key in stored(tmp_path / "text"))
    outcome = run(
        "merge",
        changed(config, "profile.sources.0.model", str(tmp_path / "text")),
        *("--transfer.ratio", "0.2", "--transfer.scope", "module", "--trainer.default_root_dir", tmp_path / "again"),
    )
    assert outcome.status == 0, outcome.err
    assert_same(stored(tmp_path / "again" / "merged"), after)


def test_patches_go_by_stored_tensors(tmp_path: Path) -> None:
    model = mixture("qwen3_moe")
    base = save_model(model, tiny_tokenizer(), tmp_path / "base")
    other = sibling_of(model, seed=6)
    tuned = save_model(other, tiny_tokenizer(), tmp_path / "tuned", "20KB")
    for arguments in (
        ("make", "--base", base, "--tuned", tuned, "--out", tmp_path / "p.safetensors"),
        ("apply", "--model", base, "--patch", tmp_path / "p.safetensors", "--out", tmp_path / "patched"),
    ):
        outcome = call("patch", *arguments)
        assert outcome.status == 0, outcome.err
    assert_same(stored(tmp_path / "patched"), stored(tuned))
    packed = tmp_path / "packed"
    other.save_pretrained(packed, save_original_format=False)
    with CheckpointReader(packed) as reader:
        assert not reader.keymap.pieces
    with pytest.raises(
        ActError, match=r"must store its parameters as the base does, and model\.layers\.0\.mlp\.experts"
    ):
        match_tensors(base, packed)
