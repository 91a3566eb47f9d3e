"""Model folders that a stranger made: refused with file, rule and remedy, soon, and before anything is built."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import pytest
import torch
from safetensors.torch import load_file

from act_lightning.checkpoints.model_spec import read_model_spec
from act_lightning.checkpoints.models import load_config, load_model, locate, meta_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import INDEX, read_header, read_headers
from act_lightning.errors import ActError
from tests.tiny import save_model, tiny_model, tiny_tokenizer

DEEP = "[" * 200_000
ENTRY = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'


@pytest.fixture
def folder(target_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(target_folder, tmp_path / "model"))


@pytest.mark.parametrize(
    "table",
    [
        '{"a":{"dtype":"U8","shape":[-2,-1],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[true,2],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0.0,2]}}',
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[false,2]}}',
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,4]}}',
        '{"a":{"dtype":["U8"],"shape":[2],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"NEW","shape":[-1],"data_offsets":[0,2]}}',
        f'{{"a":{ENTRY},"a":{ENTRY}}}',
        f'{{"__metadata__":{{"format":1}},"a":{ENTRY}}}',
        f'{{"__metadata__":[],"a":{ENTRY}}}'.replace("[],", "[1],"),
        f'{{"a":{ENTRY},"b":{DEEP}',
        DEEP,
        "[]",
        "null",
    ],
)
def test_headers(table: str, tmp_path: Path) -> None:
    path, text = tmp_path / "model.safetensors", table.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2))
    with pytest.raises(ActError, match=r"model\.safetensors.*must be a readable safetensors file.*Download"):
        read_header(path)


@pytest.mark.parametrize(
    "text", [DEEP, "{}", '{"weight_map":{"a":1}}', '{"weight_map":[]}', '{"weight_map":{"a":"../b"}}']
)
def test_indices(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ActError, match=r"must be a JSON index with a weight_map.*Download"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attn_implementation": "evil/kernel"}, "attn_implementation = 'evil/kernel': must be one of eager, sdpa"),
        ({"_attn_implementation": "paged|evil/kernel"}, "must be one of eager, sdpa"),
        ({"attn_implementation": {"": "evil/kernel"}}, "must be one of eager, sdpa"),
        ({"text_config": {"_attn_implementation": "evil/kernel"}}, "must be one of eager, sdpa"),
        ({"experts_implementation": "evil/kernel"}, "must be one of eager, sdpa"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: must be at most 21, the number of tensors"),
        ({"text_config": {"num_layers": 10**9}}, "must be at most 21"),
        ({"num_local_experts": 10**9}, "must be at most 32,768"),
        ({"num_labels": 10**9}, "must be at most 32,768"),  # each gets a name
        ({"vocab_size": 10**9}, "vocab_size = 1000000000: must be at most 2,097,152"),
        ({"num_hidden_layers": "two"}, "config.json that transformers knows|causal language model"),
        ({"hidden_size": None}, "config.json that transformers knows|causal language model"),
        ({"model_type": ["llama"]}, "config.json that transformers knows"),
    ],
)
def test_configs(values: dict[str, object], message: str, folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(content))
    start = perf_counter()
    for read in (meta_model, load_model, read_model_spec):
        with pytest.raises(ActError, match=message):
            read(folder)
    assert perf_counter() - start < 20


def test_layers_are_bounded_where_no_weights_tell(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    content = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ActError, match="must be at most 1,000"):
        meta_model(folder)


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 100_000, "[]", "", '{"model_type":"llama","model_type":"gpt2"}', "\xff"]
)
def test_configs_that_are_no_config(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ActError, match=r"must hold a config\.json that can be read.*complete folder"):
        load_config(folder)


@pytest.mark.parametrize("name", ["a" * 300, "a/" + "b" * 300, "~nobody-of-this-name/x", "a\0b"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ActError, match=r"model\.target.*must be a folder that exists"):
        locate(name)


@contextmanager
def few_files(count: int) -> Iterator[None]:
    """Let this process open only ``count`` more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    folder = save_model(tiny_model(num_hidden_layers=8), tiny_tokenizer(), tmp_path / "model", "2KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 50
    with few_files(16), CheckpointReader(folder) as reader:
        whole = {name: reader.read(name) for name in reader.names}
        scattered = {name: reader.rows(name, torch.tensor([3, 0, 2])) for name in reader.names}
    expected = {key: values for shard in shards for key, values in load_file(shard).items()}
    for name, values in expected.items():
        assert torch.equal(whole[name], values)
        assert torch.equal(scattered[name], values[[3, 0, 2]])
