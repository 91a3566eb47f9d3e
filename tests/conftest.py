"""What every test may ask for: a tokenizer, two sibling model folders, a data file; in a seeded, offline process."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.append(str(Path(sys.prefix) / "beside"))  # see scripts/environment.sh

import numpy as np
import pytest
import torch
from torch import distributed
from transformers import PreTrainedTokenizerFast

from act_lightning.defaults import cache_folder
from tests.front_door import launch_forgotten
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

torch.set_num_threads(1)  # in fixtures of modules and sessions too: on some CPUs two threads add in another order


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before it; one thread again after one that took more."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_launch_left() -> Iterator[None]:
    """A strategy leaves its group of processes, of one, and its address behind: for all logging and later processes."""
    with launch_forgotten():
        yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _no_handler_left() -> Iterator[None]:
    """A test that leaves a handler of Ctrl-C does not end a later one."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the session's own, but for the laboratory's models, which are built once for all sessions."""
    root, laboratory = tmp_path_factory.mktemp("cache"), cache_folder("laboratory")
    laboratory.mkdir(parents=True, exist_ok=True)
    (root / "laboratory").symlink_to(laboratory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACT_LIGHTNING_CACHE", str(root))
        yield


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, for tests of what is read from it or written to it."""
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with its ChatML template, a fresh one for each test."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder, shared by the session: copy it before changing it."""
    return save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path_factory.mktemp("models") / "target")


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sibling of the model in ``target_folder``, shared by the session: copy it before changing it."""
    source = sibling_of(tiny_model("llama"), seed=1)
    return save_model(source, tiny_tokenizer(), tmp_path_factory.mktemp("models") / "source")


@pytest.fixture
def ability_file(tmp_path: Path) -> Path:
    """24 rows of prompt and answer, from a few bytes to a few hundred, of one and several bytes a letter."""
    words = ("one", "два", "三", "four,", "पाँच")
    rows = [
        {
            "prompt": f"Say {words[i % 5]} {i} times",
            "answer": " ".join(words[j % 5] for j in range(1 + 7 * i % 23)),
        }
        for i in range(24)
    ]
    return write_jsonl(tmp_path / "ability.jsonl", rows)
