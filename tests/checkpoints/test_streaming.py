"""A merge from disk to disk: what changes, what stays to the byte, and what is left when it breaks off."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from act_lightning.checkpoints import streaming
from act_lightning.checkpoints.lock import lock_output
from act_lightning.checkpoints.models import load_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.streaming import merge_checkpoint
from act_lightning.errors import ActError
from tests.checkpoints.test_export import contents, largest_file
from tests.programs import PROGRAMS
from tests.tiny import save_model, tiny_model, tiny_tokenizer

HEAD, NORM = "lm_head.weight", "model.norm.weight"
READERS = Callable[[Tensor], Tensor]


@dataclass
class Doubling:
    """Twice some rows of some parameters."""

    chosen: dict[str, list[int]]
    at_once: int = 3

    @property
    def names(self) -> list[str]:
        return list(self.chosen)

    def rows(self, name: str) -> Tensor:
        return torch.tensor(self.chosen[name])

    def changes(self, name: str, read: READERS, rows: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for part in rows.split(self.at_once):
            yield part, 2 * read(part)


SOME = {HEAD: [0, 1, 2, 17, 40, 41, 299], NORM: [5], "model.layers.1.mlp.up_proj.weight": list(range(48))}


def merged(out: Path, target: Path, change: Doubling, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    sha256 = merge_checkpoint(out, target, change, dtype, {"README.md": "# A card\n"}, overwrite=True)
    assert sha256 == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.safetensors")}
    return {name: values for path in out.glob("*.safetensors") for name, values in load_file(path).items()}


def check(found: dict[str, Tensor], target: Path, dtype: torch.dtype | None = None) -> None:
    with CheckpointReader(target) as reader:
        for name in reader.names:
            expected = reader.read(name)
            if name in SOME:
                expected[torch.tensor(SOME[name])] *= 2
            assert torch.equal(found[name], expected.to(dtype or expected.dtype)), name


@pytest.mark.parametrize("cloned", [True, False])
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_rows_change_and_all_else_stays_to_the_byte(
    shards: str, cloned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(origin: Path, copy: Path) -> bool:
        shutil.copyfile(origin, copy)
        return True

    monkeypatch.setattr(streaming, "reflink", clone if cloned else lambda *_: False)
    if cloned:  # as on a file system with reflinks, where only what changes is written
        monkeypatch.setattr(streaming, "_MAX_REFLINK_SHARE", 2)
    target = save_model(tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer(), tmp_path / "target", shards)
    check(merged(tmp_path / "out", target, Doubling(SOME)), target)
    before, after = contents(target), contents(tmp_path / "out")
    assert after.pop("README.md") == b"# A card\n"
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith(".safetensors"))
    assert all(len(after[name]) == len(before[name]) for name in before)


@pytest.mark.parametrize("threads", [1, 3])
def test_other_dtypes_are_rounded_once_on_any_number_of_threads(threads: int, tmp_path: Path) -> None:
    target = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target", "20KB")
    torch.set_num_threads(threads)
    check(merged(tmp_path / "out", target, Doubling(SOME), torch.bfloat16), target, torch.bfloat16)
    assert torch.get_num_threads() == threads


def test_what_is_no_parameter_is_copied_and_a_tied_matrix_changes_once(tmp_path: Path) -> None:
    target = save_model(tiny_model("gpt2"), tiny_tokenizer(), tmp_path / "target")
    stored = load_file(target / "model.safetensors")
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool).tril() for i in range(2)}
    bare = {key.removeprefix("transformer."): tensor for key, tensor in stored.items()} | masks
    save_file(bare, target / "model.safetensors", {"format": "pt"})
    found = merged(tmp_path / "out", target, Doubling({"lm_head.weight": [4]}))
    bare["wte.weight"][4] *= 2
    assert found.keys() == bare.keys()
    assert all(torch.equal(found[key], values) for key, values in bare.items())


def test_a_tied_matrix_that_is_stored_twice_changes_in_both_places(tmp_path: Path) -> None:
    target = save_model(tiny_model("llama", tie_word_embeddings=True), tiny_tokenizer(), tmp_path / "target")
    stored = load_file(target / "model.safetensors")
    stored[HEAD] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    expected = stored[HEAD].clone()
    expected[[4, 7]] *= 2
    for name in (HEAD, "model.embed_tokens.weight"):
        found = merged(tmp_path / "out", target, Doubling({name: [4, 7]}))
        assert torch.equal(found[HEAD], expected)
        assert torch.equal(found["model.embed_tokens.weight"], expected)
        assert load_model(tmp_path / "out").config.tie_word_embeddings


def test_nan_where_nothing_changes_is_found_too(tmp_path: Path) -> None:
    spoiled = tiny_model("llama")
    with torch.no_grad():
        spoiled.model.layers[0].mlp.up_proj.weight[31, 5] = float("nan")
    target = save_model(spoiled, tiny_tokenizer(), tmp_path / "target")
    with pytest.raises(ActError, match=r"layers\.0\.mlp\.up_proj\.weight.* row 31 "):
        merged(tmp_path / "out", target, Doubling(SOME))
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_of_a_reflink_the_bytes_that_stay_in_it_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(origin: Path, copy: Path) -> bool:
        tensors = load_file(origin)
        tensors["model.layers.0.mlp.up_proj.weight"][31, 5] = float("inf")
        save_file(tensors, copy, {"format": "pt"})
        return True

    monkeypatch.setattr(streaming, "reflink", clone)
    target = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target")
    with pytest.raises(ActError, match=r"layers\.0\.mlp\.up_proj\.weight.* row 31 "):
        merged(tmp_path / "out", target, Doubling({NORM: [5]}))


def test_a_file_is_hashed_as_it_is_written_and_in_small_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    pwrite = os.pwrite

    def recorded(descriptor: int, data: bytes, offset: int) -> int:
        writes.append(len(data))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", recorded)
    monkeypatch.setattr(streaming, "reflink", lambda *_: False)
    monkeypatch.setattr(streaming, "_BYTES_PER_WRITE", 1000)
    monkeypatch.setattr(streaming, "file_sha256", None)  # which reads a whole file again, perhaps from the disk
    target = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target", "20KB")
    check(merged(tmp_path / "out", target, Doubling(SOME)), target)
    assert max(writes) == 1000


def test_the_target_is_hashed_as_it_is_copied_and_may_be_refused(tmp_path: Path) -> None:
    def refuse(sha256: Mapping[str, str]) -> None:
        hashes.update(sha256)
        raise ValueError("another target")

    hashes: dict[str, str] = {}
    target = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target", "20KB")
    with pytest.raises(ValueError, match="another target"):
        merge_checkpoint(tmp_path / "out", target, Doubling(SOME), torch.bfloat16, {}, check=refuse)
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.glob("*.safetensors")}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("size", [64, 20_000])
def test_a_full_disk_leaves_the_earlier_result(size: int, target_folder: Path, tmp_path: Path) -> None:
    merged(tmp_path / "out", target_folder, Doubling(SOME))
    before = contents(tmp_path / "out")
    with largest_file(size), pytest.raises(ActError, match=r"must be writable \(File too large\)"):
        merged(tmp_path / "out", target_folder, Doubling({NORM: [1]}))
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_merge_leaves_no_half_and_the_next_one_finishes(target_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(PROGRAMS / "killed_merge.py"), str(tmp_path / "out"), str(target_folder)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".out.tmp-")
    with lock_output(tmp_path / "out", "merge", "output"):
        check(merged(tmp_path / "out", target_folder, Doubling(SOME)), target_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
