"""An export loads, keeps what it must to the byte, and leaves nothing behind when it fails."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from act_lightning.checkpoints.export import export_model, output_issues
from act_lightning.checkpoints.manifest import MANIFEST
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError
from tests.tiny import each_architecture, save_model, sibling_of, tiny_model, tiny_tokenizer

IDS = torch.arange(40).view(2, 20)


def getter(model: PreTrainedModel) -> Callable[[str], Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)).__getitem__


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()(IDS).logits


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the list of them that an export adds."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("architecture", "shards"), each_architecture("5GB", "20KB"))
def test_unchanged_export_is_the_same_to_the_byte(architecture: str, shards: str, tmp_path: Path) -> None:
    target = save_model(tiny_model(architecture), tiny_tokenizer(), tmp_path / "target", shards)
    with CheckpointReader(target) as reader:
        export_model(tmp_path / "out", target, reader.read)
    assert contents(tmp_path / "out") == contents(target)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma4_text", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changed_model_loads_with_its_logits(
    architecture: str, dtype: torch.dtype, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = save_model(tiny_model(architecture, dtype=dtype), tiny_tokenizer(), tmp_path / "target", "20KB")
    changed = sibling_of(tiny_model(architecture, dtype=dtype), seed=3)
    expected = logits(save_model(changed, tiny_tokenizer(), tmp_path / "expected"), dtype)
    capfd.readouterr()
    sha256 = export_model(tmp_path / "out", target, getter(changed), buffers=dict(changed.named_buffers()))
    files = (tmp_path / "out").glob("*.safetensors")
    assert sha256 == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert torch.equal(logits(tmp_path / "out", dtype), expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tiny_tokenizer().chat_template
    told = capfd.readouterr().err.splitlines()
    assert not [line for line in told if line.strip() and "%|" not in line]  # progress bars, and no warning


def test_other_dtype_is_written_named_and_counted(tmp_path: Path) -> None:
    target = save_model(tiny_model(), tiny_tokenizer(), tmp_path / "target", "20KB")
    out = tmp_path / "out"
    export_model(out, target, getter(tiny_model()), torch.bfloat16)
    before, after = (folder / "config.json" for folder in (target, out))
    assert after.read_text() == before.read_text().replace('"float32"', '"bfloat16"')
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = [tensor for path in out.glob("*.safetensors") for tensor in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors)
    with CheckpointReader(out) as reader:
        for name, parameter in tiny_model().named_parameters():
            assert torch.equal(reader.read(name), parameter.bfloat16())


def test_layout_of_the_hubs_gpt2_is_kept(tmp_path: Path) -> None:
    target = save_model(tiny_model("gpt2"), tiny_tokenizer(), tmp_path / "target")
    stored = load_file(target / "model.safetensors")
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool).tril() for i in range(2)}
    bare = {key.removeprefix("transformer."): tensor for key, tensor in stored.items()} | masks
    save_file(bare, target / "model.safetensors", {"format": "pt"})
    changed = sibling_of(tiny_model("gpt2"), seed=3)
    export_model(tmp_path / "out", target, getter(changed), torch.float64)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == bare.keys()
    assert all(torch.equal(written[key], mask) for key, mask in masks.items())
    assert torch.equal(logits(tmp_path / "out"), changed(IDS).logits)


def test_records_of_other_runs_and_code_are_left_behind(target_folder: Path, tmp_path: Path) -> None:
    target = shutil.copytree(target_folder, tmp_path / "target")
    for name in ("README.md", "transfer.json", "tokenizer_code.py", "optimizer.pt"):
        (target / name).write_text("{}")
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (target / "LICENSE").write_text("Free.")
    export_model(tmp_path / "out", target, getter(tiny_model()))
    added = contents(tmp_path / "out").keys() - contents(target_folder).keys()
    assert added == {"LICENSE", "additional_chat_templates/tool.jinja"}


def test_earlier_export_stands_until_the_new_one_is_complete(target_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(out, target_folder, getter(tiny_model()))
    first = contents(out)
    calls = iter(range(3))

    def failing(name: str) -> Tensor:
        next(calls)  # StopIteration at the fourth tensor
        return getter(tiny_model())(name)

    with pytest.raises(StopIteration):
        export_model(out, target_folder, failing, overwrite=True)
    assert contents(out) == first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    export_model(out, target_folder, getter(tiny_model(seed=5)), None, {"transfer.json": b"{}"}, overwrite=True)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out).lm_head.weight, tiny_model(seed=5).lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("bad", "dtype"), [(float("nan"), None), (float("inf"), None), (1e6, torch.float16)])
def test_nothing_is_written_of_values_that_are_not_finite(
    bad: float, dtype: torch.dtype | None, target_folder: Path, tmp_path: Path
) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[4, 5] = bad
    with pytest.raises(ActError, match=r"layers\.1\.mlp\.up_proj\.weight.* row 4 "):
        export_model(tmp_path / "out", target_folder, getter(model), dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [64, 20_000])
def test_full_disk_leaves_nothing(size: int, target_folder: Path, tmp_path: Path) -> None:
    with largest_file(size), pytest.raises(ActError, match=r"must be writable \(File too large\)"):
        export_model(tmp_path / "out", target_folder, getter(tiny_model()))
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_seen_before_work_begins(
    target_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ActError, match="must have room"):
        export_model(tmp_path / "deep" / "out", target_folder, pytest.fail)
    assert not list(tmp_path.iterdir())


def test_shape_of_another_model_is_refused(target_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has shape \(2,\), and the target stores"):
        export_model(tmp_path / "out", target_folder, lambda name: torch.ones(2))
    assert not list(tmp_path.iterdir())


def test_what_an_export_never_replaces(target_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(target_folder)
    for out in (tmp_path / "file", tmp_path / "folder", link, target_folder, target_folder.parent):
        with pytest.raises(ActError):
            export_model(out, target_folder, pytest.fail)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    assert not output_issues(tmp_path / "new", target_folder, "output")
    other = shutil.copytree(target_folder, tmp_path / "merged" / "source")
    for out in (other, other.parent):
        (issue,) = output_issues(out, target_folder, "output", [target_folder, other])
        assert "a source, which would be replaced" in issue.problem
