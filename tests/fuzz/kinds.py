"""The kinds of files that are fuzzed: how contents are made, from a good file, and how they are read."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from act_lightning.cards.card import new_card, read_card, rebuild_card
from act_lightning.channels import inventory
from act_lightning.checkpoints.model_spec import read_model_spec
from act_lightning.checkpoints.models import load_tokenizer, locate
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import INDEX, Header, read_header, read_headers
from act_lightning.cli import replay
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import iter_conversations
from act_lightning.data.labels import Encoder
from act_lightning.data.templates import ChatTemplate
from act_lightning.patches.apply import apply_patch
from act_lightning.patches.make import make_patch
from act_lightning.patches.patch_file import open_patch, summarize_patch
from act_lightning.scores import ScoreRecord, encode_record, read_record, read_scores, write_scores
from tests.tiny import CHATML, save_model, tiny_model, tiny_tokenizer

KINDS = ("headers", "index", "config", "tokenizer", "metadata", "scores", "cards", "patches", "records", "jsonl")
KINDS += ("parquet", "templates", "adapters")

NASTY: Sequence[Any] = (
    *(None, True, False, 0, -1, 1.5, 2**31, 2**63, 10**30, -(10**30), float("inf"), float("nan")),
    *(
        "",
        "a" * 300,
        "../../x",
        "/etc/passwd",
        "evil/kernel",
        "\0",
        "\ud800",
        "[/red]",
        "{{ 1 }}",
        "=cmd|x",
        "\x1b]52;c;x\a",
    ),
    *([], {}, [[]], [None], {"": None}, [{}] * 3, {"class_path": "os.system", "init_args": {"command": "x"}}),
)
DEEP = "@DEEP@"
"""A string that is replaced by an array in arrays without end, since Python cannot write one as JSON."""


@dataclass(frozen=True)
class Kind:
    """How the contents of a file are made, and what reads them."""

    contents: st.SearchStrategy[Any]
    read: Callable[[Any], object]


def mutated_bytes(good: bytes) -> st.SearchStrategy[bytes]:
    """``good`` with some bytes flipped, removed, inserted or repeated."""
    position = st.integers(0, len(good))
    edit = st.tuples(st.sampled_from("flip cut insert repeat end".split()), position, st.binary(min_size=1, max_size=9))

    def apply(edits: list[tuple[str, int, bytes]]) -> bytes:
        content = bytearray(good)
        for kind, at, data in edits:
            at = min(at, max(len(content) - 1, 0))
            if kind == "flip":
                content[at : at + 1] = bytes(byte ^ (1 << data[0] % 8) for byte in content[at : at + 1])
            elif kind == "cut":
                del content[at : at + data[0]]
            elif kind == "insert":
                content[at:at] = data
            elif kind == "repeat":
                content[at:at] = content[at : at + data[0]]
            else:
                del content[at + data[0] :]
        return bytes(content)

    return st.lists(edit, max_size=4).map(apply)


def mutated_json(good: Any) -> st.SearchStrategy[str]:
    """The text of ``good`` with some values replaced by nasty ones, and keys removed, added or doubled."""
    paths = list(_paths(good))
    kinds, values = st.sampled_from("set set set drop add double".split()), st.sampled_from([*NASTY, DEEP])
    edit = st.tuples(kinds, st.sampled_from(paths), values)

    def apply(edits: list[tuple[str, tuple[Any, ...], Any]]) -> str:
        content, doubled = json.loads(json.dumps(good)), ""
        for kind, path, value in edits:
            new = copy.deepcopy(value)
            try:
                parent = content
                for key in path[:-1]:
                    parent = parent[key]
                if kind == "drop":
                    del parent[path[-1]]
                elif kind == "add":
                    parent[path[-1]][str(new)[:20].replace(DEEP, "deep")] = new  # an array is no key
                elif kind == "double":
                    doubled = json.dumps(str(path[-1]))
                else:
                    parent[path[-1]] = new
            except (KeyError, IndexError, TypeError):
                continue  # an earlier edit has removed it
        text = json.dumps(content).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
        return text.replace(f"{doubled}:", f"{doubled}: null, {doubled}:", 1) if doubled else text

    return st.lists(edit, max_size=3).map(apply)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ([path] if path else []) + [deeper for key, child in children for deeper in _paths(child, (*path, key))]


def make_kinds(root: Path, names: Sequence[str]) -> dict[str, Kind]:
    """The kinds of these names; ``root`` is a folder for their files."""
    makers = {name: globals()[f"_{name}"] for name in names}
    model = save_model(tiny_model("llama"), tiny_tokenizer(), root / "model", "20KB")
    return {name: make(root, model) for name, make in makers.items()}


def _with_header(text: str, data: bytes) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + data


def _headers(root: Path, model: Path) -> Kind:
    path, good = root / "h.safetensors", sorted(model.glob("*.safetensors"))[0].read_bytes()
    start = read_header(sorted(model.glob("*.safetensors"))[0]).data_start
    table = json.loads(good[8:start])

    def read(content: bytes) -> None:
        path.write_bytes(content)
        assert read_header(path).encode()

    texts = mutated_json(table).map(lambda text: _with_header(text, good[start:]))
    return Kind(texts | mutated_bytes(good), read)


def _index(root: Path, model: Path) -> Kind:
    folder = Path(shutil.copytree(model, root / "index"))

    def read(content: str) -> None:
        (folder / INDEX).write_text(content, encoding="utf-8", errors="surrogatepass")
        read_headers(folder)

    return Kind(mutated_json(json.loads((model / INDEX).read_text())), read)


def _config(root: Path, model: Path) -> Kind:
    folder = Path(shutil.copytree(model, root / "config"))
    good = json.loads((model / "config.json").read_text()) | {"attn_implementation": "sdpa", "text_config": {}}

    def read(content: str) -> None:
        (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
        read_model_spec(folder)

    return Kind(mutated_json(good), read)


def _tokenizer(root: Path, model: Path) -> Kind:
    folder = Path(shutil.copytree(model, root / "tokenizer"))

    def read(content: str) -> None:
        (folder / "tokenizer_config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
        load_tokenizer(folder)

    return Kind(mutated_json(json.loads((model / "tokenizer_config.json").read_text())), read)


_RECORD = ScoreRecord(
    12, 4, 0, {"target": "t", "source": "s"}, {"target": {"digest": "a"}, "source": {"digest": "b"}}, "d", "float32"
)


def _metadata(root: Path, model: Path) -> Kind:
    path, good = root / "m.safetensors", json.loads(encode_record(_RECORD, {}))
    del good["sha256"]

    def read(content: str) -> None:
        try:
            values = json.loads(content)
            text = encode_record(_RECORD, {}, values) if isinstance(values, dict) else content
        except RecursionError:
            text = content
        save_file({}, path, {"act": text.encode("utf-8", "replace").decode()})
        read_record(path).changes(_RECORD)
        _RECORD.changes(read_record(path))

    return Kind(mutated_json(good), read)


def _scores(root: Path, model: Path) -> Kind:
    path, channels = root / "s.safetensors", inventory(tiny_model("llama"))
    scores = torch.rand(channels.total)
    write_scores(path, channels, scores, _RECORD)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        assert torch.equal(read_scores(path, channels), scores), "damage that is not noticed"

    return Kind(mutated_bytes(path.read_bytes()), read)


def _cards(root: Path, model: Path) -> Kind:
    folder = Path(shutil.copytree(model, root / "card"))
    path, recipe = folder / "README.md", "model: {target: t}\ntrainer: {max_epochs: 1}\nseed_everything: 7"
    recipe += "\ndata: {abilities: {a: {path: a.jsonl}}}\nprofile: {sources: [{model: s, abilities: [a]}]}"
    transfer = {"sources": {"s": {"model": "m", "abilities": {"a": {"selected": 1, "tokens": 2}}, "scale": 0.4}}}
    good = new_card(str(model), recipe, transfer, "fit")
    path.write_text(good)
    record = read_card(path)[1] | {"result": {"digest": "d", "sha256": {"model.safetensors": "0" * 64}}}
    shown = "\n```json\n"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        recipe, record = read_card(path)
        replay._card_issues(path, recipe, record)
        rebuild_card(folder, sha256={})

    texts = mutated_json(record).map(lambda text: (good.split(shown)[0] + shown + text + "\n```\n").encode())
    return Kind(texts | mutated_bytes(good.encode()), read)


def _patch(root: Path, model: Path) -> tuple[Path, Path]:
    base, tuned = Path(shutil.copytree(model, root / "base")), Path(shutil.copytree(model, root / "tuned"))
    for path in tuned.glob("*.safetensors"):
        save_file({key: values + (values > 0) for key, values in load_file(path).items()}, path, {"format": "pt"})
    return base, make_patch(base, tuned, root / "patch.safetensors").path


def _use_patch(base: Path, path: Path, out: Path) -> None:
    json.dumps(summarize_patch(open_patch(path).record))
    try:
        apply_patch(base, [path], out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _patches(root: Path, model: Path) -> Kind:
    base, path = _patch(root / "p", model)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        _use_patch(base, path, root / "patched")

    return Kind(mutated_bytes(path.read_bytes()), read)


def _records(root: Path, model: Path) -> Kind:
    base, path = _patch(root / "r", model)
    header, content = read_header(path), path.read_bytes()
    good = json.loads(header.metadata["act_patch"])

    def read(text: str) -> None:
        changed = Header(header.entries, {"act_patch": text.encode("utf-8", "replace").decode()}, 0)
        path.write_bytes(changed.encode() + content[header.data_start :])
        _use_patch(base, path, root / "patched")

    return Kind(mutated_json(good), read)


def _jsonl(root: Path, model: Path) -> Kind:
    path = root / "rows.jsonl"
    rows = [
        {"prompt": "a?", "answer": "b", "n": 1},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "a", "input": "b", "output": "c"},
    ]
    tokenizer = tiny_tokenizer()
    encoder = Encoder(ChatTemplate(CHATML, "data.template", tokenizer), tokenizer, 64)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for location, conversation in iter_conversations(AbilityData(str(path)), "data.abilities.a"):
            encoder(conversation, location)

    lines = [mutated_json(row).map(lambda text: text.encode("utf-8", "surrogatepass") + b"\n") for row in rows]
    return Kind(st.one_of(lines) | mutated_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows)), read)


def _parquet(root: Path, model: Path) -> Kind:
    path = root / "rows.parquet"
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * i}]} for i in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for _ in islice(iter_conversations(AbilityData(str(path)), "data.abilities.a"), 100):
            pass

    return Kind(mutated_bytes(path.read_bytes()), read)


_PIECES = (
    *("{{ 'a' * 10**10 }}", "{{ messages }}", "{{ messages[0].content }}", "{{ bos_token }}", "{{ x.y.z }}", "text"),
    *(
        "{% for a in range(99999) %}",
        "{% endfor %}",
        "{% if messages %}",
        "{% else %}",
        "{% endif %}",
        "{% set x = [1] %}",
    ),
    *("{% macro m(n) %}", "{{ m(n) }}", "{% endmacro %}", "{{ m(1) }}", "{{ messages | tojson }}", "{{ 1 / 0 }}"),
    *("{{ 'a' | center(10**9) }}", "{{ raise_exception('x') }}", "{% include 'x' %}", "{{ ''.__class__ }}"),
    *("{#", "%}"),
    *("{% set ns = namespace(x='a') %}", "{% set ns.x = ns.x ~ ns.x %}", "{{ strftime_now('%Y') }}", "{% break %}"),
)


def _adapters(root: Path, model: Path) -> Kind:
    folder, rank, name = root / "adapter", 2, "base_model.model.model.layers.0.self_attn.q_proj"
    folder.mkdir()
    tensors = {f"{name}.lora_A.weight": torch.ones(rank, 32), f"{name}.lora_B.weight": torch.ones(32, rank)}
    save_file(tensors, folder / "adapter_model.safetensors")
    good = {"peft_type": "LORA", "base_model_name_or_path": str(model), "r": rank, "lora_alpha": 4, "bias": "none"}
    good |= {"alpha_pattern": {"q_proj": 3}, "modules_to_save": None, "use_dora": False, "init_lora_weights": True}

    def read(content: str) -> None:
        (folder / "adapter_config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
        with CheckpointReader(locate(f"{model}+{folder}", adapters=True)) as reader:
            reader.read("model.layers.0.self_attn.q_proj.weight")

    return Kind(mutated_json(good), read)


def _templates(root: Path, model: Path) -> Kind:
    tokenizer = tiny_tokenizer()
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]

    def read(source: str) -> None:
        ChatTemplate(source, "data.template", tokenizer).render(turns)

    pieces = st.lists(st.sampled_from(_PIECES) | st.text(max_size=5), max_size=8).map("".join)
    return Kind(pieces | mutated_bytes(CHATML.encode()).map(lambda text: text.decode("utf-8", "replace")), read)
