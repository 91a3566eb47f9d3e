"""``bin:`` before a model's name: the same weights, and nothing but weights."""

from __future__ import annotations

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from act_lightning.checkpoints import bin_conversion
from act_lightning.checkpoints.models import load_model, locate
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError
from tests.tiny import save_model, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("fresh_cache")


def pickled(folder: Path, architecture: str = "llama", shards: str = "5GB", legacy: bool = False) -> Path:
    """The folder with every safetensors file turned into a pickle."""
    save_model(tiny_model(architecture, dtype=torch.bfloat16), tiny_tokenizer(), folder, shards)
    for path in list(folder.glob("*.safetensors")):
        twin = path.with_name(path.name.replace("model", "pytorch_model").replace("safetensors", "bin"))
        torch.save(load_file(path), twin, _use_new_zipfile_serialization=not legacy)
        path.unlink()
    if (index := folder / "model.safetensors.index.json").is_file():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    return folder


@pytest.mark.parametrize(
    ("architecture", "shards", "legacy"),
    [("llama", "5GB", False), ("llama", "20KB", False), ("gpt2", "5GB", False), ("llama", "5GB", True)],
)
def test_the_same_weights_by_the_same_keys(architecture: str, shards: str, legacy: bool, tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model", architecture, shards, legacy)
    twin = locate(f"bin:{folder}")
    assert (twin.name, len(list(twin.glob("*.safetensors")))) == ("model", len(list(folder.glob("*.bin"))))
    expected = dict(tiny_model(architecture, dtype=torch.bfloat16).named_parameters())
    with CheckpointReader(twin) as reader:
        assert all(torch.equal(reader.read(name), parameter) for name, parameter in expected.items())
    assert load_model(twin).dtype == torch.bfloat16
    written = (twin / "config.json").stat().st_mtime_ns
    assert locate(f"bin:{folder}") == twin
    assert (twin / "config.json").stat().st_mtime_ns == written, "converted once"


def test_of_several_at_once_one_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, loaded, load = pickled(tmp_path / "model"), [], bin_conversion._load

    def slow_load(path: Path) -> dict[str, torch.Tensor]:
        loaded.append(path)
        time.sleep(0.5)
        return load(path)

    monkeypatch.setattr(bin_conversion, "_load", slow_load)
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(locate, [f"bin:{folder}"] * 4))
    assert len(loaded) == 1
    assert len(set(places)) == 1
    assert sorted(path.name for path in places[0].parent.iterdir()) == [".lock", "model"]


def test_without_the_flag_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ActError, match="write bin: before the model's name"):
        CheckpointReader(pickled(tmp_path / "model"))
    assert not (tmp_path / "cache" / "converted").exists()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_what_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    for content, reason in (
        (pickle.dumps(Evil(), protocol=2), "must be a readable file of tensors"),
        (b"junk", "readable file"),
    ):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ActError, match=reason):
            locate(f"bin:{folder}")
    torch.save({"a": torch.ones(2), "step": 3}, folder / "pytorch_model.bin")
    with pytest.raises(ActError, match="must hold tensors by name and nothing else"):
        locate(f"bin:{folder}")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ActError, match=r"must hold pytorch_model\.bin"):
        locate(f"bin:{folder}")
    assert not list((tmp_path / "cache" / "converted").rglob("*.safetensors"))


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model", shards="20KB")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../other.bin"}}))
    with pytest.raises(ActError, match="whose index names them"):
        locate(f"bin:{folder}")
