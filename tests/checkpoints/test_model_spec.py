"""The cache of model specs: valid until its version, the config or the stored tensors change."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from act_lightning.checkpoints import model_spec
from act_lightning.checkpoints.model_spec import read_model_spec
from act_lightning.checkpoints.weight_files import read_headers
from tests.tiny import save_model, tiny_model, tiny_tokenizer


class BuiltModelError(Exception):
    """Raised in place of building the model."""


def must_not_build(folder: Path) -> None:
    raise BuiltModelError(folder)


pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "model")


@pytest.mark.parametrize("weights", [True, False])
def test_what_comes_from_the_cache_is_what_was_built(
    weights: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = read_headers(folder) if weights else {}
    built = read_model_spec(folder, headers)
    monkeypatch.setattr(model_spec, "meta_model", must_not_build)
    assert read_model_spec(folder, headers) == built
    with pytest.raises(BuiltModelError):
        read_model_spec(folder, {} if weights else read_headers(folder))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 5.0}))
    with pytest.raises(BuiltModelError):
        read_model_spec(folder, headers)


def test_the_version_and_not_the_code_invalidates_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = read_model_spec(folder)
    path = tmp_path / "commented.py"
    path.write_text(f"{Path(model_spec.__file__).read_text()}\n# A comment.\n")
    description = importlib.util.spec_from_file_location("commented", path)
    assert description is not None
    assert description.loader is not None
    commented = importlib.util.module_from_spec(description)
    monkeypatch.setitem(sys.modules, "commented", commented)
    description.loader.exec_module(commented)
    monkeypatch.setattr(commented, "meta_model", must_not_build)
    assert commented.read_model_spec(folder).shapes == built.shapes
    monkeypatch.setattr(commented, "CACHE_VERSION", commented.CACHE_VERSION + 1)
    with pytest.raises(BuiltModelError):
        commented.read_model_spec(folder)
