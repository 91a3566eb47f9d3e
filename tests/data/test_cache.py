"""Prepared sets on disk: found again, prepared anew whenever anything differs, never trusted when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from act_lightning.data import cache
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.cache import TokenizedAbility, cache_key, prepare_shards, tokenize_ability
from act_lightning.data.conversations import LocatedConversation
from act_lightning.data.labels import Encoder
from act_lightning.data.templates import ChatTemplate, TextTemplate
from act_lightning.errors import ActError
from tests.loops import messages
from tests.tiny import CHATML, tiny_tokenizer, write_jsonl

TEMPLATE = "{prompt}: "
LOSSES = "6 with an empty or no answer"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"p{i}", "answer": "x" * (i % 7)} for i in range(40)])


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SHARD_ROWS", 8)


def prepare(rows: Path, tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any) -> TokenizedAbility:
    settings = AbilityData(str(rows), template=changes.pop("template", TEMPLATE), limit=changes.pop("limit", None))
    fixed = {"max_length": 30, "num_proc": 1, "cache_dir": str(rows.parent / "cache")}
    return tokenize_ability("x", settings, tokenizer or tiny_tokenizer(), "chat", **(fixed | changes))


def sets(rows: Path) -> list[Path]:
    return sorted(path for path in (rows.parent / "cache").glob("*") if path.is_dir())


def written(rows: Path) -> dict[str, int]:
    """Every file of the cache with the number of its inode, another one when it is written anew."""
    return {str(path): path.stat().st_ino for folder in sets(rows) for path in folder.iterdir()}


def contents(ability: TokenizedAbility) -> Any:
    return [(one.input_ids.tolist(), one.labels.tolist(), one.text, one.cut) for one in ability.samples], ability.rows


@pytest.mark.usefixtures("small_shards")
def test_a_set_is_prepared_once(rows: Path) -> None:
    first = prepare(rows)
    before = written(rows)
    assert len(before) == 6, "five shards and a manifest"
    with messages() as logged:
        again = prepare(rows, num_proc=2)
    assert contents(again) == contents(first)
    assert (first.rows, first.dropped, len(first.samples)) == (40, 6, 34)
    assert written(rows) == before
    assert logged == [f"x: 34 samples, {first.tokens} answer tokens; dropped: {LOSSES}"]


def other_tokenizer(change: Callable[[PreTrainedTokenizerFast], object]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    change(tokenizer)
    return tokenizer


OTHERS: dict[str, dict[str, Any]] = {
    "template": {"template": "{prompt} = "},
    "chat": {"template": "chat"},
    "max_length": {"max_length": 8},
    "limit": {"limit": 30},
    "vocabulary": {"tokenizer": other_tokenizer(lambda one: one.add_tokens("p1"))},
    "end of sequence": {"tokenizer": other_tokenizer(lambda one: setattr(one, "eos_token", "<|endoftext|>"))},
}


@pytest.mark.parametrize("ingredient", OTHERS)
def test_every_ingredient_makes_another_set(ingredient: str, rows: Path) -> None:
    first = prepare(rows)
    other = prepare(rows, **OTHERS[ingredient])
    assert len(sets(rows)) == 2
    assert contents(other) != contents(first)
    assert contents(other) == contents(prepare(rows, **OTHERS[ingredient], cache_dir=str(rows.parent / "empty")))
    assert contents(prepare(rows)) == contents(first)


def test_a_changed_file_makes_another_set(rows: Path) -> None:
    prepare(rows)
    times = rows.stat()
    rows.write_text(rows.read_text().replace("p1", "q1"))  # as long as before …
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))  # … and, it seems, as old
    assert any("q1" in one.text for one in prepare(rows).samples)


def test_a_changed_template_file_makes_another_set(rows: Path) -> None:
    file = rows.parent / "chat.jinja"
    file.write_text(CHATML)
    prepare(rows, template=str(file))
    file.write_text(CHATML.replace("message['content']", "'§' + message['content']"))
    assert all("§" in one.text for one in prepare(rows, template=str(file)).samples)


def test_versions_and_kinds_are_in_the_key(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    text, chat = TextTemplate("a {prompt}"), ChatTemplate("a {prompt}", "data.template", tokenizer)
    keys = [cache_key("rows", one, tokenizer, 9) for one in (text, chat, TextTemplate("b {prompt}"))]
    assert keys[0] == cache_key("rows", TextTemplate("a {prompt}"), tiny_tokenizer(), 9)
    keys += [cache_key("others", text, tokenizer, 9), cache_key("rows", text, tokenizer, 10)]
    monkeypatch.setattr(tokenizers, "__version__", "0")
    keys.append(cache_key("rows", text, tokenizer, 9))
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    keys.append(cache_key("rows", text, tokenizer, 9))
    tokenizer.chat_template = "another"
    keys.append(cache_key("rows", text, tokenizer, 9))
    assert len(set(keys)) == len(keys)


def test_a_version_stands_for_the_samples_that_rows_give(tmp_path: Path) -> None:
    """Fingerprints and bytes of shards: raise CACHE_VERSION whenever these change."""
    rows = [
        {"prompt": f"What is {i}?", "answer": f"It is {i}, or é."} if i % 2 else {"messages": turns(i)}
        for i in range(9)
    ]
    file, digest = write_jsonl(tmp_path / "rows.jsonl", rows), hashlib.sha256()
    for template in ("chat", "chatml"):
        settings = AbilityData(str(file), template=template, shuffle_seed=3, skip=1)
        root = tmp_path / template
        ability = tokenize_ability("x", settings, tiny_tokenizer(), "chat", 40, num_proc=1, cache_dir=str(root))
        digest.update(ability.fingerprint.encode())
        for shard in sorted(root.rglob("*.safetensors")):
            digest.update(shard.read_bytes())
    assert (cache.CACHE_VERSION, digest.hexdigest()[:16]) == (1, "73911a52e8c18d3c")


def turns(number: int) -> list[dict[str, str]]:
    return [
        {"role": role, "content": f"{role} {number}"} for role in ("system", "user", "assistant", "user", "assistant")
    ]


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [halve, flip, Path.unlink, lambda path: path.write_text("{}")])
@pytest.mark.parametrize("name", ["manifest.json", "000002.safetensors"])
@pytest.mark.usefixtures("small_shards")
def test_a_damaged_set_is_prepared_again(name: str, harm: Callable[[Path], None], rows: Path) -> None:
    first = contents(prepare(rows))
    (folder,) = sets(rows)
    harm(folder / name)
    with messages() as logged:
        assert contents(prepare(rows)) == first
    assert f"the prepared set in {folder} is damaged: it is prepared again" in logged
    with messages() as logged:
        assert contents(prepare(rows)) == first
    assert len(logged) == 1, "and can be trusted now"


def test_counts_that_were_changed_are_not_believed(rows: Path) -> None:
    first = prepare(rows)
    manifest = sets(rows)[0] / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][0]["rows"] += 1
    manifest.write_text(json.dumps(content))
    assert prepare(rows).rows == first.rows


@pytest.mark.usefixtures("small_shards")
def test_one_killed_half_way_leaves_nothing_that_is_trusted(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: Encoder, conversations: Any, places: Any) -> Any:
        if any(conversation[0]["content"] == "p30" for conversation in conversations):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, conversations, places)

    encode = Encoder.encode_batch
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_batch", dies)
        killed = Process(target=prepare, args=(rows,))
        killed.start()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
        assert [path.name[0] for path in sets(rows)] == ["."]
        with pytest.raises(ActError, match=r"data.num_proc = 2: one of these processes was killed"):
            prepare(rows, num_proc=2)
    assert len(prepare(rows).samples) == 34
    assert len(sets(rows)) == 1, "what was left over is gone"


def test_a_row_that_cannot_be_told_is_named(rows: Path) -> None:
    with rows.open("a") as file:
        file.write('{"messages": [{"role": "assistant", "content": "first"}]}\n')
    for num_proc in (1, 2):
        with pytest.raises(ActError, match=r"rows\.jsonl:41.*must begin with a user"):
            prepare(rows, template="chat", num_proc=num_proc)
    assert sets(rows) == []


@pytest.mark.usefixtures("small_shards")
def test_the_number_of_processes_changes_no_byte(
    rows: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encode = Encoder(TextTemplate(TEMPLATE), tokenizer, 30)
    turns = [[{"role": "user", "content": str(i)}, {"role": "assistant", "content": "y" * i}] for i in range(30)]
    conversations = [LocatedConversation(f"row {number}", turn) for number, turn in enumerate(turns)]
    found = []
    for num_proc in (1, 2, 3):
        folder = tmp_path / str(num_proc)
        folder.mkdir()
        shards = prepare_shards(iter(conversations), encode, folder, num_proc, "x")
        found.append((shards, [path.read_bytes() for path in sorted(folder.iterdir())]))
    assert found[1:] == found[:1] * 2
    assert [shard.rows for shard in found[0][0]] == [8, 8, 8, 6]


def test_processes_that_ask_at_once_share_one_set(rows: Path) -> None:
    workers = [Process(target=prepare, args=(rows,)) for _ in range(3)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0] * 3
    assert len(sets(rows)) == 1


def test_a_set_that_lies_there_needs_no_leave_to_write(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = contents(prepare(rows))
    monkeypatch.setattr("act_lightning.data.cache.check_writable", lambda *_: pytest.fail("asked to write"))
    assert contents(prepare(rows)) == first


def test_where_sets_lie(rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path))
    prepare(rows, cache_dir=None)
    monkeypatch.delenv("ACT_LIGHTNING_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prepare(rows, cache_dir=None)
    prepare(rows, cache_dir="~/sets")
    folders = [tmp_path / "data", tmp_path / "home" / ".cache" / "act_lightning" / "data", tmp_path / "home" / "sets"]
    assert [len(list(folder.glob("*/manifest.json"))) for folder in folders] == [1, 1, 1]
    with pytest.raises(ActError, match=r"data\.cache_dir = .*rows\.jsonl.*must be writable"):
        prepare(rows, cache_dir=str(rows))


def test_a_source_that_cannot_tell_what_it_holds_is_not_kept(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act_lightning.data.cache.rows_fingerprint", lambda *_: None)
    first, second = prepare(rows), prepare(rows)
    assert contents(first) == contents(second)
    assert [path.name.startswith("uncached-") for path in sets(rows)] == [True, True]
