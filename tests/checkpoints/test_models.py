"""Models, configs and tokenizers loaded whole, and folders and hub ids found."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as hf_logging

from act_lightning.checkpoints import reader
from act_lightning.checkpoints.models import (
    load_config,
    load_model,
    load_tokenizer,
    locate,
    meta_model,
    resolve_dtype,
)
from act_lightning.errors import ActError
from act_lightning.profiling.offload import DiskWeights
from tests.memory import PeakMemory
from tests.programs import PROGRAMS
from tests.tiny import ARCHITECTURES, PAD_ID, save_model, tiny_config, tiny_model, tiny_tokenizer
from tests.training.processes import on_processes

COMMIT = "0123456789" * 4


@pytest.fixture
def folder(target_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(target_folder, tmp_path / "broken")


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_meta_model_has_the_shapes_and_ties_of_the_real_one(architecture: str, tmp_path: Path) -> None:
    tiny_config(architecture).save_pretrained(tmp_path)
    state = torch.get_rng_state()
    meta, real = meta_model(tmp_path), tiny_model(architecture)
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert [(n, p.shape) for n, p in meta.named_parameters()] == [(n, p.shape) for n, p in real.named_parameters()]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("tied", [True, False])
def test_the_row_of_the_padding_token_is_loaded_too(tied: bool, tmp_path: Path) -> None:
    """Youtu's own initialization would zero it."""
    saved = tiny_model("youtu", tie_word_embeddings=tied)
    assert saved.get_input_embeddings().weight[PAD_ID].all()
    loaded = load_model(save_model(saved, tiny_tokenizer(), tmp_path))
    for name, parameter in saved.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    for name, buffer in saved.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_model_is_loaded_quietly(
    dtype: torch.dtype | None, target_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    model = load_model(target_folder, dtype)
    assert not model.training
    for name, parameter in tiny_model().named_parameters():
        assert torch.equal(model.get_parameter(name), parameter.to(dtype or torch.float32))
    assert capfd.readouterr() == ("", "")
    assert (verbosity, bars) == (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled())


def test_model_is_loaded_on_the_host_whatever_the_default_device_is(target_folder: Path) -> None:
    """A Trainer builds modules with its device as the default; transformers would dispatch to it with accelerate."""
    with torch.device("meta"):
        model = load_model(target_folder)
    assert {values.device.type for values in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert torch.equal(model.get_input_embeddings().weight, tiny_model().get_input_embeddings().weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [True, False])
def test_buffers_of_a_model_without_weights_are_those_of_a_loaded_one(
    dtype: torch.dtype, stored: bool, tmp_path: Path
) -> None:
    """Buffers that a checkpoint holds are read; transformers initializes those that it should hold and lacks."""
    folder = save_model(tiny_model("gemma4_text"), tiny_tokenizer(), tmp_path)
    if not stored:
        file = folder / "model.safetensors"
        kept = {key: values for key, values in load_file(file).items() if not key.endswith("layer_scalar")}
        save_file(kept, file, {"format": "pt"})
    expected = dict(load_model(folder, dtype).named_buffers())
    assert ({float(expected[f"model.layers.{layer}.layer_scalar"]) for layer in (0, 1)} != {1.0}) == stored
    weights = DiskWeights(folder, dtype, torch.device("cpu"))
    with closing(weights):
        buffers = dict(weights.model.named_buffers())
        assert buffers.keys() == expected.keys()
        for name, values in expected.items():
            assert buffers[name].dtype == values.dtype, name
            assert torch.equal(buffers[name], values), name


def test_dtype_is_that_of_most_elements(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    model.model.norm.float()
    save_model(model, tiny_tokenizer(), tmp_path)
    edit_config(tmp_path, dtype="float32")
    assert resolve_dtype("auto", tmp_path) == torch.bfloat16
    assert load_model(tmp_path).model.norm.weight.dtype == torch.bfloat16
    assert resolve_dtype("float16", tmp_path) == torch.float16
    with pytest.raises(ActError, match=r"model\.dtype = 'int8'"):
        resolve_dtype("int8", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert resolve_dtype("auto", tmp_path) == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.pop("lm_head.weight"), r"lm_head\.weight.*must hold every parameter"),
        (lambda stored: stored.update(more=torch.ones(1)), "more.*parameters of the model only"),
        (lambda stored: stored.update({"model.norm.weight": torch.ones(9)}), r"model\.norm\.weight.*shapes"),
        (lambda stored: stored["model.norm.weight"].fill_(torch.nan), r"model\.norm\.weight.* row 0 "),
    ],
)
def test_weights_that_do_not_fit(change: object, message: str, folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    change(stored)  # type: ignore[operator]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ActError, match=message):
        load_model(folder)


def test_tied_by_config_but_stored_twice(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(ActError, match="must hold equal values, for the config ties them"):
        load_model(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "none_such"}, "must hold a config.json that transformers knows"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "unquantized"),
        ({"model_type": "t5"}, "must be a decoder of text alone, and it is the decoder of an encoder-decoder"),
        ({"model_type": "bert"}, "must be a decoder of text alone, and its attention looks in both directions"),
        ({"model_type": "whisper"}, "must be a decoder of text alone, and it reads or writes speech"),
        ({"model_type": "clip"}, "must be the config of a causal language model"),
    ],
)
def test_configs_that_are_refused(values: dict[str, object], message: str, folder: Path) -> None:
    edit_config(folder, **values)
    with pytest.raises(ActError, match=message):
        meta_model(folder)


def test_broken_config_and_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ActError, match="must hold a tokenizer"):
        load_tokenizer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ActError, match=r"must hold a config\.json"):
        load_config(folder)


def test_tokenizer(target_folder: Path) -> None:
    assert load_tokenizer(target_folder)("two answers").input_ids == tiny_tokenizer()("two answers").input_ids


def test_folder_is_located(target_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target_folder.parent)
    assert locate(target_folder) == target_folder
    assert locate("target").samefile(target_folder)
    for model in (tmp_path / "absent", "./absent", "a/b/c", "~/no such folder"):
        with pytest.raises(ActError, match=r"model\.target = .*must be a folder that exists"):
            locate(model)
    with pytest.raises(ActError, match=r"sources = .*must hold a config\.json"):
        locate(tmp_path, setting="sources")
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ActError, match="Merge the adapter into its base model first"):
        locate(tmp_path)
    with pytest.raises(ActError, match="must be a hub id where a revision"):
        locate(target_folder, "main")


def test_hub_model_is_found_in_the_cache(target_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--some--model"
    snapshot = shutil.copytree(target_folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    assert locate("some/model") == locate("some/model", COMMIT) == locate("some/model", weights=False) == snapshot
    for model, revision in (("some/model", "f" * 40), ("other/model", None)):
        with pytest.raises(ActError, match="that can be fetched"):
            locate(model, revision)


@pytest.mark.slow
def test_processes_share_the_weights_of_a_pair(tmp_path: Path) -> None:
    """Two processes take as much memory as one: what is stored in the dtype of the models stays in its files."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "dtype": torch.bfloat16}
    folders = [tmp_path / name for name in ("target", "source")]
    for folder in folders:
        tiny_model("llama", **sizes).save_pretrained(folder)
    growths = []
    for processes in (1, 2):
        on_processes(processes, PROGRAMS / "measured_load.py", tmp_path / "growth.json", *folders)
        growths.append(json.loads((tmp_path / "growth.json").read_text()))
    assert 0.5 < growths[0] < 1.5, "else it is not the weights that are measured"
    assert growths[1] < 1.25 * growths[0]


def test_another_device_is_given_weights_in_parts(target_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host never holds them together, whatever their dtype: here, in front of a device that has no memory."""
    monkeypatch.setattr(reader, "_FILLED_BYTES_AT_ONCE", 1 << 12)
    with PeakMemory() as memory:
        model = reader.load_on_device(target_folder, torch.float64, torch.device("meta"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert 0 < memory.peak < sum(parameter.nbytes for parameter in model.parameters()) / 8
