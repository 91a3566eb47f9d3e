"""Headers against the safetensors library; files that are missing, truncated or of another format; identities."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from act_lightning.checkpoints.weight_files import (
    INDEX,
    identify,
    identify_module,
    is_weightless,
    read_header,
    read_headers,
)
from act_lightning.errors import ActError
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save_model(tiny_model(), tiny_tokenizer(), tmp_path / "sharded", "20KB")


def test_header_says_what_the_library_says(tmp_path: Path) -> None:
    tensors = {"ä": torch.ones(3, 2), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.tensor(True)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"format": "pt"})
    header = read_header(path)
    assert header.encode() == path.read_bytes()[: header.data_start]
    with safe_open(path, "pt") as file:
        assert set(header.entries) == set(file.keys())
        for key, entry in header.entries.items():
            assert (entry.dtype, entry.shape) == (tensors[key].dtype, tuple(tensors[key].shape))


def test_cast_header_is_one_the_library_accepts(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "mask": torch.ones(3, dtype=torch.int32), "b": torch.ones(2, 2)}, path)
    header = read_header(path).cast({"a", "b"}, torch.float16)
    path.write_bytes(header.encode() + bytes(header.data_size))
    with safe_open(path, "pt") as file:
        assert {key: file.get_tensor(key).dtype for key in file.keys()} == {
            "a": torch.float16,
            "b": torch.float16,
            "mask": torch.int32,
        }


@pytest.mark.parametrize("places", [[(0, 12), (0, 12)], [(0, 12), (16, 28)], [(-12, 0), (0, 12)], [(4, 16), (16, 28)]])
def test_tensors_that_do_not_lie_side_by_side_are_refused_as_by_the_library(
    places: list[tuple[int, int]], tmp_path: Path
) -> None:
    table = {
        key: {"dtype": "F32", "shape": [3], "data_offsets": place} for key, place in zip("ab", places, strict=True)
    }
    text = json.dumps(table).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(max(end for _, end in places)))
    with pytest.raises(SafetensorError):
        safe_open(path, "pt").__enter__()
    with pytest.raises(ActError, match=r"must be a readable safetensors file"):
        read_header(path)


def test_all_shards_are_read(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    found = {key: file for file, header in read_headers(sharded).items() for key in header.entries}
    assert found == index


def test_every_broken_file_is_named(sharded: Path) -> None:
    first, second, third, *_ = sorted(sharded.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    third.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ActError) as caught:
        read_headers(sharded, "model.target")
    assert [issue.value for issue in caught.value.issues] == [first.name, second.name, third.name]
    assert "truncated" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"12345678", (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little")])
def test_files_that_are_no_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ActError, match="must be a readable safetensors file"):
        read_headers(tmp_path, "model.target")


def test_shapes_that_do_not_fill_their_bytes(tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ActError, match="a has 8 bytes for shape"):
        read_headers(tmp_path, "model.target")


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../a.safetensors"}}'])
def test_broken_index(index: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ActError, match="must be a JSON index"):
        read_headers(tmp_path, "model.target")


def test_index_of_other_shards(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    shutil.copyfile(second, first)
    with pytest.raises(ActError, match="must find every tensor in the file it names"):
        read_headers(sharded, "model.target")


def test_other_formats_are_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert is_weightless(tmp_path)
    with pytest.raises(ActError, match=r"profile\.sources = .*must hold weights"):
        read_headers(tmp_path, "profile.sources")
    (tmp_path / "pytorch_model.bin").touch()
    assert not is_weightless(tmp_path)
    with pytest.raises(ActError, match=r"only pytorch_model\.bin\. Convert them to safetensors"):
        read_headers(tmp_path, "model.target")


def test_a_copy_is_the_same_model(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    snapshot = shutil.copytree(target_folder, tmp_path / "models--a--b" / "snapshots" / commit)
    (snapshot / "config.json").write_text("{}")
    original, copy = identify(target_folder), identify(snapshot)
    assert original.digest == copy.digest
    assert (original.commit, copy.commit) == (None, commit)
    assert identify(source_folder).digest != original.digest


@pytest.mark.parametrize("position", [0, 64 * 1024 - 1])
def test_one_byte_within_the_sample_counts(position: int, tmp_path: Path) -> None:
    model = tiny_model(vocab_size=1000)  # 128,000 bytes of embedding
    folder = save_model(model, tiny_tokenizer(), tmp_path / "model")
    before = identify(folder).digest
    flat = model.model.embed_tokens.weight.data.view(-1).view(torch.uint8)
    flat[position] ^= 1
    assert identify(save_model(model, tiny_tokenizer(), folder)).digest != before


def test_whole_files_are_hashed_on_request(tmp_path: Path) -> None:
    folder = save_model(tiny_model(), tiny_tokenizer(), tmp_path, "20KB")
    plain, verified = identify(folder), identify(folder, verify=True)
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert verified.sha256 == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert plain.files == {name: len(data) for name, data in files.items()}
    assert (plain.sha256, plain.digest) == (None, verified.digest)


def test_weights_in_memory() -> None:
    model = tiny_model("gpt2", dtype=torch.bfloat16)
    digest = identify_module(model).digest
    assert digest == identify_module(tiny_model("gpt2", dtype=torch.bfloat16)).digest
    assert digest != identify_module(tiny_model("gpt2")).digest
    assert digest != identify_module(sibling_of(model, seed=1)).digest
    assert digest != identify_module(tiny_model("gpt2", dtype=torch.bfloat16, n_layer=1, num_hidden_layers=1)).digest


def test_weights_not_there_yet() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2)
    with pytest.raises(ActError, match="is on the meta device"):
        identify_module(module)
