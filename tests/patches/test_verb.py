"""``patch`` from the command line, and patches that lie on the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import metadata_load

from act_lightning.checkpoints.weight_files import Header, read_header
from act_lightning.errors import ActError
from act_lightning.patches.patch_file import find_patch
from tests.front_door import call, left


def test_from_making_to_reverting(tmp_path: Path, target_folder: Path, source_folder: Path) -> None:
    patch = tmp_path / "a.safetensors"
    made = call("patch", "make", "--base", target_folder, "--tuned", source_folder, "--out", patch)
    assert made.status == 0, made.err
    shown = json.loads(call("patch", "show", patch, "--json").out)
    assert shown["changed"] == sum(group["changed"] for group in shown["by_layer"])
    assert [group["name"] for group in shown["by_layer"]] == ["0", "1", "none"]
    assert {"q_proj", "norm", "lm_head"} <= {group["name"] for group in shown["by_module_type"]}
    assert f"{shown['changed']:,} of {shown['parameters']:,} elements" in call("patch", "show", patch).out
    for action, model, out in (("apply", target_folder, "patched"), ("revert", tmp_path / "patched", "reverted")):
        outcome = call("patch", action, "--model", model, "--patch", patch, "--out", tmp_path / out)
        assert outcome.status == 0, outcome.err
        assert shown[{"apply": "result", "revert": "base"}[action]] in outcome.out
    assert (tmp_path / "reverted/model.safetensors").read_bytes() == (target_folder / "model.safetensors").read_bytes()
    again = call("patch", "apply", "--model", tmp_path / "patched", "--patch", patch, "--out", tmp_path / "out")
    assert again.status == 1
    assert "applied already" in again.err
    assert not (tmp_path / "out").exists()


def test_what_configs_differ_in_is_told(tmp_path: Path, target_folder: Path, source_folder: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(source_folder, tuned)
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.125}))
    patch = tmp_path / "a.safetensors"
    made = call("patch", "make", "--base", target_folder, "--tuned", tuned, "--out", patch)
    assert "not carried: rms_norm_eps is 1e-06 in the base, and 0.125 in the tuned model" in made.out
    assert call("patch", "apply", "--model", target_folder, "--patch", patch, "--out", tmp_path / "out").status == 0
    assert (tmp_path / "out/config.json").read_bytes() == (target_folder / "config.json").read_bytes()


def test_provenance_cannot_pass_for_lines_of_ours(tmp_path: Path, target_folder: Path, source_folder: Path) -> None:
    patch = tmp_path / "a.safetensors"
    call("patch", "make", "--base", target_folder, "--tuned", source_folder, "--out", patch)
    header, content = read_header(patch), patch.read_bytes()
    record = json.loads(header.metadata["act_patch"])
    record["provenance"] |= {
        "base": "x\nfits   0123",
        "licenses": {"t": {"license": "mit\n---", "license_link": "a:b"}},
    }
    metadata = header.metadata | {"act_patch": json.dumps(record)}
    patch.write_bytes(Header(header.entries, metadata, 0).encode() + content[header.data_start :])
    lines = call("patch", "show", patch).out.splitlines()
    assert [line for line in lines if line.startswith("fits ")] == [f"fits   {record['base']}"]
    assert call("patch", "apply", "--model", target_folder, "--patch", patch, "--out", tmp_path / "out").status == 0
    assert metadata_load(tmp_path / "out" / "README.md")["license"] == "mit ---"
    assert "a:b" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("reference", ["nowhere.safetensors", "hf://owner/file", "hf://a/b@x/c@y", "hf://a/b/c"])
def test_patches_that_are_not_to_be_had(tmp_path: Path, reference: str) -> None:
    outcome = call("patch", "show", reference)
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert f"patch = {reference!r}: must" in outcome.err
    assert left(tmp_path) == []


def test_hub_references(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return "x"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for reference in ("hf://a/b/c/d.safetensors", "hf://a/b@v1/d.safetensors", "hf://a/b/d.safetensors@v1"):
        find_patch(reference)
    assert asked == [("a/b", "c/d.safetensors", None), ("a/b", "d.safetensors", "v1"), ("a/b", "d.safetensors", "v1")]
    with pytest.raises(ActError, match="exists"):
        find_patch("~/nowhere.safetensors")
