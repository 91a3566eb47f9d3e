"""A patch makes the tuned bits of the base, and the base's files of the patched model; nothing else is ever written."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

from act_lightning.cards.card import new_card
from act_lightning.checkpoints.manifest import MANIFEST
from act_lightning.checkpoints.weight_files import read_header
from act_lightning.errors import ActError
from act_lightning.patches.apply import apply_patch, revert_patch
from act_lightning.patches.encoding import StoredTensor, Words
from act_lightning.patches.make import make_patch
from act_lightning.patches.patch_file import open_patch
from tests.front_door import left
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

Edit = Callable[[dict[str, Tensor]], object]


def a_base(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.bfloat16, **config: object) -> Path:
    """A tiny model in four shards or so, with a file that no export knows."""
    model = tiny_model(architecture, dtype=dtype, **config)
    save_model(model, tiny_tokenizer(), folder, max_shard_size="30KB")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# The base\n")
    return folder


def edited(base: Path, folder: Path, edit: Edit) -> Path:
    """A copy of ``base`` whose tensors were changed in place, as one file each shard."""
    shutil.copytree(base, folder)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, {"format": "pt"})
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return {key: values for path in sorted(folder.glob("*.safetensors")) for key, values in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the card, which tells of what was done, and the list of files."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("README.md", MANIFEST))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[key].view(torch.uint8), wanted[key].view(torch.uint8)) for key in wanted if wanted[key].ndim
    )


def rows_of(step: int, columns: int = 0) -> Edit:
    """Moves every ``step``-th row of each matrix and vector, and as many columns of embeddings."""

    def edit(tensors: dict[str, Tensor]) -> None:
        for key, values in tensors.items():
            values[1::step] = (values[1::step].float() * 1.01 + 0.003).to(values.dtype)
            if columns and "embed" in key:
                values[:, ::columns] = -values[:, ::columns]

    return edit


def not_finite(tensors: dict[str, Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = torch.nan


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_base(tmp_path_factory.mktemp("patches") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    return edited(base, base.with_name("tuned"), rows_of(16, 8))


@pytest.fixture(scope="module")
def patch(base: Path, tuned: Path) -> Path:
    return make_patch(base, tuned, base.with_name("a.safetensors")).path


@pytest.mark.parametrize(
    ("architecture", "dtype", "config"),
    [
        ("llama", torch.bfloat16, {}),
        ("qwen2", torch.float32, {"tie_word_embeddings": True}),
        ("gpt2", torch.float16, {}),
        ("gemma3_text", torch.float64, {}),
    ],
)
def test_apply_then_revert(tmp_path: Path, architecture: str, dtype: torch.dtype, config: dict[str, object]) -> None:
    base = a_base(tmp_path / "base", architecture, dtype, **config)
    tuned = edited(base, tmp_path / "tuned", rows_of(16, 8))
    patch = make_patch(base, tuned, tmp_path / "p" / "a.safetensors").path
    apply_patch(base, [patch], tmp_path / "patched")
    assert same_bits(weights(tmp_path / "patched"), weights(tuned))
    revert_patch(tmp_path / "patched", [patch], tmp_path / "reverted")
    assert contents(tmp_path / "reverted") == contents(base), "whole files, byte for byte"
    assert left(tmp_path / "p") == ["a.safetensors"]


def test_where_a_patch_comes_from(tmp_path: Path, base: Path, tuned: Path) -> None:
    folder = shutil.copytree(tuned, tmp_path / "tuned")
    transfer = {"sources": {"s": {"model": "/home/me/models/other", "scale": 0.4}}}
    (folder / "transfer.json").write_text(json.dumps(transfer))
    (folder / "README.md").write_text(new_card(str(base), "seed_everything: 7", transfer, "fit"))
    origin = make_patch(base, folder, tmp_path / "a.safetensors", ("org/base", str(folder))).record.provenance
    assert (origin["base"], origin["tuned"]) == ("org/base", "tuned")
    assert origin["transfer"]["sources"]["s"] == {"model": "other", "scale": 0.4}
    assert origin["recipe"] == {"seed_everything": 7}
    assert origin["licenses"] == {"org/base": {"license": "mit"}, "base": {"license": "mit"}, "other": {}}
    assert str(tmp_path) not in json.dumps(origin)
    assert "/home/me" not in json.dumps(origin)


def test_a_fine_tuned_model_in_other_shards(tmp_path: Path, base: Path) -> None:
    model = sibling_of(tiny_model("llama"), seed=5).to(torch.bfloat16)
    tuned = save_model(model, tiny_tokenizer(), tmp_path / "tuned")
    patch = make_patch(base, tuned, tmp_path / "a.safetensors")
    assert patch.record.tensors.keys() == weights(base).keys(), "every tensor has changed"
    apply_patch(base, [patch.path], tmp_path / "patched")
    assert same_bits(weights(tmp_path / "patched"), weights(tuned))
    assert {path.name for path in tmp_path.glob("patched/*.safetensors")} == {
        p.name for p in base.glob("*.safetensors")
    }


def test_keys_with_and_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", "gpt2", torch.float32)
    for path in base.glob("*.safetensors"):  # as the hub's own GPT-2
        save_file({key.removeprefix("transformer."): one for key, one in load_file(path).items()}, path)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key.removeprefix("transformer."): file for key, file in index["weight_map"].items()}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    tuned = save_model(sibling_of(tiny_model("gpt2"), seed=2), tiny_tokenizer(), tmp_path / "tuned")
    apply_patch(base, [make_patch(base, tuned, tmp_path / "a.safetensors").path], tmp_path / "patched")
    found = {f"transformer.{key}": values for key, values in weights(tmp_path / "patched").items()}
    assert same_bits(found, weights(tuned))


def test_a_tied_matrix_that_only_the_tuned_model_stores_twice(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", tie_word_embeddings=True)
    tuned = save_model(
        sibling_of(tiny_model("llama", dtype=torch.bfloat16, tie_word_embeddings=True), 2),
        tiny_tokenizer(),
        tmp_path / "t",
    )
    stored = load_file(tuned / "model.safetensors")
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, tuned / "model.safetensors")
    apply_patch(base, [make_patch(base, tuned, tmp_path / "a.safetensors").path], tmp_path / "patched")
    assert same_bits(weights(tmp_path / "patched"), stored)


def test_the_file_is_about_as_large_as_what_moved(patch: Path) -> None:
    record = open_patch(patch).record
    selected = sum(
        change.rows * (change.shape[1:] or (1,))[0] + change.columns * (change.shape[0] - change.rows)
        for change in record.tensors.values()
    )
    metadata = len(json.dumps(asdict(record)))
    assert patch.stat().st_size < 2 * selected + metadata + 8000, "the header has a line for each part"
    embedding = record.tensors["model.embed_tokens.weight"]
    assert (embedding.rows, embedding.columns) == (19, 4), "rows and columns of one matrix"
    parts = sum(entry.size for key, entry in open_patch(patch).header.entries.items() if ":xor" in key)
    assert parts < selected * 2, "packed"


def test_the_card_of_a_patched_model(tmp_path: Path, base: Path, patch: Path) -> None:
    digest = apply_patch(base, [patch], tmp_path / "patched")
    card = ModelCard((tmp_path / "patched" / "README.md").read_text())
    assert card.data.license == "mit"
    assert digest == open_patch(patch).record.result
    assert digest in card.text
    assert str(base.parent) not in card.text


@pytest.mark.parametrize("case", ["twice", "another model", "reverted where it is not"])
def test_a_patch_fits_one_base(tmp_path: Path, base: Path, tuned: Path, patch: Path, case: str) -> None:
    out = tmp_path / "out"
    other = edited(base, tmp_path / "other", lambda tensors: [one.mul_(2) for one in tensors.values()])
    before = left(tmp_path)
    call, words = {
        "twice": (lambda: apply_patch(tuned, [patch], out), "has it applied already"),
        "another model": (lambda: apply_patch(other, [patch], out), "has other weights"),
        "reverted where it is not": (lambda: revert_patch(base, [patch], out), "and has none"),
    }[case]
    with pytest.raises(ActError, match=words):
        call()
    with pytest.raises(ActError, match="other weights"):
        revert_patch(other, [patch], out)
    assert left(tmp_path) == before, "nothing is written"


def test_a_model_of_another_shape_is_named(tmp_path: Path, patch: Path, base: Path) -> None:
    with pytest.raises(ActError, match=r"must be stored as BF16"):
        apply_patch(a_base(tmp_path / "b", hidden_size=64), [patch], tmp_path / "out")
    with pytest.raises(ActError, match="lacks"):
        apply_patch(a_base(tmp_path / "c", num_hidden_layers=1), [patch], tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda base, out: shutil.copytree(base, out), "must differ from the base"),
        (lambda base, out: a_base(out, dtype=torch.float32), "must store the base's dtypes"),
        (lambda base, out: a_base(out, num_hidden_layers=1), "must have the base's parameters"),
        (lambda base, out: a_base(out, vocab_size=320), "must have the base's shapes"),
        (lambda base, out: a_base(out, tie_word_embeddings=True), None),
        (
            lambda base, out: edited(base, out, lambda t: [one.view(-1)[:1].fill_(torch.nan) for one in t.values()]),
            "NaN",
        ),
    ],
)
def test_models_that_do_not_pair(tmp_path: Path, base: Path, make: Callable[..., object], words: str | None) -> None:
    make(base, tmp_path / "tuned")
    if words is None:  # tied over an untied base: both matrices are there, and equal
        make_patch(base, tmp_path / "tuned", tmp_path / "a.safetensors")
        with pytest.raises(ActError, match="stores them apart"):
            make_patch(tmp_path / "tuned", base, tmp_path / "b.safetensors")
        return
    with pytest.raises(ActError, match=words):
        make_patch(base, tmp_path / "tuned", tmp_path / "a.safetensors")
    assert left(tmp_path)[0] == "tuned", "no patch, and nothing temporary"


def test_files_that_are_no_patch(tmp_path: Path, base: Path, tuned: Path, patch: Path) -> None:
    data, copy = patch.read_bytes(), tmp_path / "copy.safetensors"
    for content, words in (
        (data[:-10], "truncated"),
        (b"PK", "readable safetensors"),
        ((next(base.glob("*.safetensors"))).read_bytes(), "must be an ability patch"),
        (data.replace(b'\\"format\\":1', b'\\"format\\":7'), "must have format 1, and has 7"),
        (data.replace(b'\\"tensors\\"', b'\\"tensorz\\"'), "readable record"),
        (
            re.sub(rb'(?<=\\"parameters\\":)\d{5,}', lambda digits: b"1e999".ljust(len(digits[0])), data),
            "readable record",
        ),
        (data[:-40] + bytes(40), "undamaged|promises"),
    ):
        copy.write_bytes(content)
        with pytest.raises(ActError, match=words):
            apply_patch(base, [copy], tmp_path / "out")
    with pytest.raises(ActError, match="among a model's own files"):
        make_patch(base, base, next(base.glob("*.safetensors")))
    copy.write_bytes(b"notes")
    with pytest.raises(ActError, match="must be free"):
        make_patch(base, tuned, copy)
    assert left(tmp_path) == ["copy.safetensors"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, base: Path, patch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act_lightning.patches.apply.reflink", lambda *_: False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ActError, match="File too large"):
            apply_patch(base, [patch], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_model_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, base: Path, patch: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is read once, and what is hashed is what is written, whenever the model changes."""
    model, blocks, read = shutil.copytree(base, tmp_path / "model"), StoredTensor.blocks, []

    def racing(tensor: StoredTensor) -> Iterator[Words]:
        if len(read) == int(share * len(weights(base))):  # every later byte is another
            for path in model.glob("*.safetensors"):
                content = bytearray(path.read_bytes())
                start = read_header(path).data_start
                content[start:] = bytes(byte ^ 1 for byte in content[start:])
                path.write_bytes(content)
        read.append(tensor.start)
        yield from blocks(tensor)

    monkeypatch.setattr(StoredTensor, "blocks", racing)
    monkeypatch.setattr("act_lightning.patches.apply.reflink", lambda *_: False)
    with pytest.raises(ActError, match="has other weights"):
        apply_patch(model, [patch], tmp_path / "out")
    assert len(read) == len(weights(base))
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is written"


def test_a_flipped_bit_in_any_part_is_refused(tmp_path: Path, base: Path, patch: Path) -> None:
    opened, copy = open_patch(patch), tmp_path / "copy.safetensors"
    content = patch.read_bytes()
    for key in opened.record.tensors:
        for part in ("rows", "xor0"):
            damaged = bytearray(content)
            damaged[opened.header.data_start + opened.header.entries[f"{key}:{part}"].start] ^= 0x10
            copy.write_bytes(damaged)
            with pytest.raises(ActError, match=f"must hold {part} of {key} undamaged.*SHA-256"):
                open_patch(copy).changes(key)
