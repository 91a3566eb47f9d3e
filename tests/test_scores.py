"""Score files: written whole, read in the model's order, told apart by what they were measured on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from act_lightning.channels import ChannelInventory, ModuleChannels, inventory
from act_lightning.errors import ActError
from act_lightning.scores import ScoreRecord, encode_record, read_record, read_scores, score_path, write_scores
from tests.tiny import tiny_model

RECORD = ScoreRecord(
    tokens=120,
    samples=10,
    dropped=2,
    models={"target": "a/target", "source": "a/source"},
    identities={"target": {"digest": "t" * 64, "commit": None}, "source": {"digest": "s" * 64, "commit": "c"}},
    data="d" * 64,
    dtype="bfloat16",
    versions={"torch": "2.13"},
)


@pytest.fixture(scope="module")
def channels() -> ChannelInventory:
    return inventory(tiny_model("qwen2"))


@pytest.fixture
def scores(channels: ChannelInventory) -> torch.Tensor:
    return torch.rand(channels.total)


@pytest.fixture
def path(tmp_path: Path, channels: ChannelInventory, scores: torch.Tensor) -> Path:
    path = score_path(tmp_path, "source", "science-ar")
    write_scores(path, channels, scores, RECORD)
    return path


def test_the_file_is_as_the_contract_says(path: Path, channels: ChannelInventory) -> None:
    assert path.parts[-2:] == ("source", "science-ar.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {module.name for module in channels.modules}
        for module in channels.modules:
            tensor = file.get_tensor(module.name)
            assert (tensor.shape, tensor.dtype) == ((module.count,), torch.float32)
        record = json.loads(file.metadata()["act"])
    assert {"tokens", "samples", "dropped", "models", "identities", "dtype", "versions"} <= set(record)
    assert [name.name for name in path.parent.iterdir()] == [path.name]


def test_what_was_written_is_read(path: Path, channels: ChannelInventory, scores: torch.Tensor) -> None:
    assert torch.equal(read_scores(path, channels), scores)
    assert read_record(path) == RECORD


def test_the_order_is_the_models_and_never_the_files(
    path: Path, channels: ChannelInventory, scores: torch.Tensor
) -> None:
    tensors = load_file(path)
    path.unlink()
    for number, name in enumerate(reversed(list(tensors))):  # a file that holds its tensors in another order
        tensors[name] = tensors.pop(name).to(torch.float64 if number % 2 else torch.float32)
    save_file(tensors, path, {"act": encode_record(RECORD, tensors)})
    assert torch.equal(read_scores(path, channels), scores)


def test_a_record_of_a_later_version_is_still_read(path: Path) -> None:
    save_file({}, path, {"act": encode_record(RECORD, {}, {"a later field": 1})})
    assert read_record(path) == RECORD


def test_a_flipped_bit_anywhere_is_refused_or_changes_no_value(tmp_path: Path) -> None:
    channels = ChannelInventory((ModuleChannels("a", 3, ()), ModuleChannels("b", 2, ())), {}, {})
    scores, path = torch.rand(5), tmp_path / "a.safetensors"
    write_scores(path, channels, scores, RECORD)
    content, refused = path.read_bytes(), 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert read_record(path) == RECORD, position
            assert torch.equal(read_scores(path, channels), scores), position
        except ActError:
            refused += 1
    assert refused > 0.99 * len(content)


def test_the_checksum_is_of_names_dtypes_shapes_and_bytes(path: Path, channels: ChannelInventory) -> None:
    tensors, listing = load_file(path), []
    for name in sorted(tensors):
        digest = hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()
        listing.append([name, "F32", list(tensors[name].shape), digest])
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["act"])
    sha256 = values.pop("sha256")
    for key, text in (
        ("tensors", json.dumps(listing, separators=(",", ":"))),
        ("record", json.dumps(values, sort_keys=True)),
    ):
        assert sha256[key] == hashlib.sha256(text.encode()).hexdigest()


def test_scores_without_a_checksum_are_refused(path: Path, channels: ChannelInventory) -> None:
    save_file(load_file(path), path, {"act": json.dumps(dataclasses.asdict(RECORD))})
    for read in (read_record, lambda path: read_scores(path, channels)):
        with pytest.raises(ActError, match=r"must carry the SHA-256 of its scores.*Delete the file"):
            read(path)


@pytest.mark.parametrize(
    "change", [{"tokens": "1"}, {"tokens": True}, {"identities": []}, {"identities": {"target": 1}}, {"scorer": "x"}]
)
def test_records_of_other_types_are_refused(path: Path, change: dict[str, Any]) -> None:
    save_file({}, path, {"act": encode_record(RECORD, {}, change)})
    with pytest.raises(ActError, match="must be a readable score file"):
        read_record(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_neither_written_nor_read(
    path: Path, channels: ChannelInventory, scores: torch.Tensor, value: float
) -> None:
    tensors, before = load_file(path), path.read_bytes()
    scores[-1] = value
    with pytest.raises(ActError, match=r"'lm_head' for ability 'science-ar' must be finite"):
        write_scores(path, channels, scores, RECORD)
    assert path.read_bytes() == before
    tensors["lm_head"][0] = value
    save_file(tensors, path, {"act": encode_record(RECORD, tensors)})
    with pytest.raises(ActError, match="'lm_head' for ability 'science-ar'"):
        read_scores(path, channels)


def test_scores_of_other_modules_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ActError, match="one tensor for each module of the target"):
        read_scores(path, inventory(tiny_model("qwen2", num_hidden_layers=1)))
    with pytest.raises(ActError, match="one tensor for each module of the target"):
        read_scores(path, inventory(tiny_model("qwen2", vocab_size=301)))


def test_files_that_hold_no_scores_are_refused(path: Path, channels: ChannelInventory) -> None:
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:-1], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ActError, match="must be a readable score file"):
            read_scores(path, channels)
        with pytest.raises(ActError, match="must be a readable score file"):
            read_record(path)
    for metadata in (None, {"act": "{"}, {"act": "{}"}, {"act": "[]"}, {"act": "[" * 100_000}):
        save_file({}, path, metadata)
        with pytest.raises(ActError, match="must be a readable score file"):
            read_record(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": "e" * 64}, "data was dddddddddddd…, is eeeeeeeeeeee…"),
        ({"dtype": "float32"}, "dtype was bfloat16, is float32"),
        ({"positions": "all"}, "positions was answer, is all"),
        ({"format": 99}, "format was 1, is 99"),
        ({"identities": {**RECORD.identities, "source": {"digest": "x"}}}, "source was ssssssssssss…, is x"),
    ],
)
def test_a_change_is_told(change: dict[str, Any], told: str) -> None:
    assert RECORD.changes(dataclasses.replace(RECORD, **change)) == [told]


def test_names_counts_and_versions_do_not_matter() -> None:
    other: dict[str, Any] = {"models": {"target": "copy", "source": "copy"}, "versions": {"torch": "3"}, "tokens": 1}
    assert RECORD.changes(dataclasses.replace(RECORD, **other)) == []
