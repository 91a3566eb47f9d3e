"""Names and rows against the model in memory and safetensors' own reading."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter

from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError
from tests.tiny import each_architecture, save_model, tiny_model, tiny_tokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def saved(folder: Path, architecture: str = "llama", shards: str = "5GB", **changes: object) -> Path:
    return save_model(tiny_model(architecture, **changes), tiny_tokenizer(), folder, shards)


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("architecture", "shards"), each_architecture("5GB", "20KB"))
def test_every_parameter_is_found(architecture: str, shards: str, tmp_path: Path) -> None:
    expected = dict(tiny_model(architecture).named_parameters(remove_duplicate=False))
    with CheckpointReader(saved(tmp_path, architecture, shards)) as reader:
        assert reader.names == tuple(expected)
        for name, parameter in expected.items():
            assert torch.equal(reader.read(name), parameter)
            assert reader.spec.shapes[name] == tuple(parameter.shape)
            key = reader.keymap.keys[name]
            (file,) = (file for file, header in reader.headers.items() if key in header.entries)
            assert torch.equal(load_file(tmp_path / file)[key], parameter)


@pytest.mark.parametrize("rows", [[299, 300], [0, 300], [-1, 0], [-1, 5], [300]])
def test_no_row_beyond_a_tensor_is_read_from_its_neighbors(rows: list[int], tmp_path: Path) -> None:
    with CheckpointReader(saved(tmp_path)) as reader:
        assert torch.equal(reader.rows(HEAD, torch.tensor([298, 299])), reader.read(HEAD)[-2:])
        outside = next(row for row in rows if not 0 <= row < 300)
        with pytest.raises(IndexError, match=rf"lm_head\.weight has 300 rows in .*, none of them number {outside}"):
            reader.rows(HEAD, torch.tensor(rows))


def test_gpt2_of_the_hub_without_prefix_and_with_masks(tmp_path: Path) -> None:
    folder = saved(tmp_path, "gpt2")
    stored = load_file(folder / "model.safetensors")
    bare = {key.removeprefix("transformer."): tensor for key, tensor in stored.items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool) for i in range(2)}
    rewrite(folder, bare | masks)
    with CheckpointReader(folder) as reader:
        assert reader.keymap.keys["lm_head.weight"] == reader.keymap.keys["transformer.wte.weight"] == "wte.weight"
        assert set(reader.keymap.others) == set(masks)
        for name, parameter in tiny_model("gpt2").named_parameters():
            assert torch.equal(reader.read(name), parameter)


def test_renamings_of_transformers_are_followed(tmp_path: Path) -> None:
    expected = dict(tiny_model("granitemoe", num_local_experts=2, num_experts_per_tok=1).named_parameters())
    with CheckpointReader(saved(tmp_path, "granitemoe", num_local_experts=2, num_experts_per_tok=1)) as reader:
        assert reader.keymap.keys["model.layers.0.block_sparse_moe.router.weight"].endswith(".router.layer.weight")
        assert all(torch.equal(reader.read(name), parameter) for name, parameter in expected.items())


def test_rows_that_are_rearranged_on_loading_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))  # where no other test has read this model
    folder = saved(tmp_path)
    turned = WeightConverter("q_proj.weight", "q_proj.weight", [Transpose(0, 1)])
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: [turned])
    with pytest.raises(
        ActError, match=r"must store rows as the model holds them, .* model\.layers\.0\.self_attn\.q_proj"
    ):
        CheckpointReader(folder)


def test_prefixless_keys_and_old_frequencies(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    stored = load_file(folder / "model.safetensors")
    prefixless = {key.removeprefix("model."): tensor for key, tensor in stored.items()}
    frequencies = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    with CheckpointReader(rewrite(folder, prefixless | frequencies)) as reader:
        assert reader.keymap.keys["model.norm.weight"] == "norm.weight"
        assert reader.keymap.others == tuple(frequencies)


def test_tied_stored_under_the_head_alone_or_twice(tmp_path: Path) -> None:
    folder = saved(tmp_path, tie_word_embeddings=True)
    stored = load_file(folder / "model.safetensors")
    matrix = stored.pop(EMBEDDING)
    with CheckpointReader(rewrite(folder, stored | {HEAD: matrix})) as reader:
        assert reader.keymap.keys[EMBEDDING] == HEAD
        assert reader.keymap.ties == ((EMBEDDING, HEAD),)
    rewrite(folder, stored | {HEAD: matrix, EMBEDDING: matrix.clone()})
    assert CheckpointReader(folder).keymap.keys[EMBEDDING] == EMBEDDING
    rewrite(folder, stored | {HEAD: matrix, EMBEDDING: matrix + 1})
    with pytest.raises(ActError, match="must hold equal values, for the config ties them"):
        CheckpointReader(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("qwen2", dtype=dtype)
    rows, elements = torch.tensor([7, 8, 9, 2, 299]), torch.tensor([31, 0, 5])
    with CheckpointReader(save_model(model, tiny_tokenizer(), tmp_path, "20KB")) as reader:
        values = reader.rows(HEAD, rows)
        assert values.dtype == dtype
        assert torch.equal(values, model.lm_head.weight[rows])
        assert reader.bytes_read == 5 * 32 * dtype.itemsize
        bias = "model.layers.1.self_attn.q_proj.bias"
        assert torch.equal(reader.rows(bias, elements), model.get_parameter(bias)[elements])
        assert reader.rows(HEAD, torch.tensor([], dtype=torch.int64)).shape == (0, 32)


def resident_bytes(path: Path) -> int:
    """How much of a file lies in the page cache."""
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(path.stat().st_size), vector) == 0
    return sum(flags & 1 for flags in vector) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no page cache")
def test_of_scattered_rows_the_disk_reads_no_more_than_their_pages(tmp_path: Path) -> None:
    path = saved(tmp_path, vocab_size=1 << 17, tie_word_embeddings=True) / "model.safetensors"
    expected = load_file(path)[EMBEDDING][5::4096].clone()
    with CheckpointReader(tmp_path) as reader:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if (before := resident_bytes(path)) >= path.stat().st_size:
            pytest.skip("a file system in memory")
        assert torch.equal(reader.rows(EMBEDDING, torch.arange(5, 1 << 17, 4096)), expected)
    assert resident_bytes(path) - before <= 2 * len(expected) * mmap.PAGESIZE < path.stat().st_size / 20


def test_values_outlive_the_reader(target_folder: Path) -> None:
    with CheckpointReader(target_folder) as reader:
        kept = reader.rows(HEAD, torch.tensor([1])), reader.read("model.norm.weight")
    assert torch.equal(kept[0], tiny_model().lm_head.weight[1:2])
    assert torch.equal(kept[1], tiny_model().model.norm.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(bad: float, tmp_path: Path) -> None:
    folder = saved(tmp_path, dtype=torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    stored[HEAD][17, 3] = bad
    with CheckpointReader(rewrite(folder, stored)) as reader:
        reader.rows(HEAD, torch.tensor([16, 18]))
        message = r"model\.safetensors = 'lm_head\.weight'.* row 17 "
        with pytest.raises(ActError, match=message):
            reader.rows(HEAD, torch.tensor([4, 17]))
        with pytest.raises(ActError, match=message):
            reader.read(HEAD)


def test_wrong_tensors_are_listed_together(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    stored = load_file(folder / "model.safetensors")
    del stored["model.norm.weight"]
    stored["model.adapter.weight"] = torch.ones(2)
    stored[HEAD] = torch.ones(5, 32)
    stored["model.layers.0.mlp.up_proj.weight"] = torch.ones(48, 32, dtype=torch.int8)
    with pytest.raises(ActError) as caught:
        CheckpointReader(rewrite(folder, stored))
    text = str(caught.value)
    for part in ("model.norm.weight", "model.adapter.weight", "lm_head.weight (5, 32)", "up_proj.weight I8"):
        assert part in text
    assert len(caught.value.issues) == 4


def test_untied_config_without_a_stored_head(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    stored = load_file(folder / "model.safetensors")
    del stored[HEAD]
    with pytest.raises(ActError, match=r"lm_head\.weight.*must hold every parameter"):
        CheckpointReader(rewrite(folder, stored))
