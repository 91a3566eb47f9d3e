"""Same weights, same identity; other weights, another."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from act_lightning.checkpoints.weight_files import identify, identify_module
from act_lightning.errors import ActError
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer


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
