"""A list tells the files of an export from a user's own, whatever was changed in them, and where."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from act_lightning.checkpoints.manifest import MANIFEST, foreign_issue, write_manifest

LARGE = 20 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(LARGE))
    (folder / "deep" / "config.json").write_text("{}")
    (folder / "README.md").write_text("card")
    write_manifest(folder)
    return folder


def test_what_it_lists(folder: Path) -> None:
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    digest = hashlib.sha256(bytes(LARGE)).hexdigest()
    assert listed.keys() == {"model.safetensors", "deep/config.json", "README.md"}
    assert listed["model.safetensors"] == {"bytes": LARGE, "sha256": digest}
    write_manifest(folder, {"model.safetensors": "as it was written"})
    assert json.loads((folder / MANIFEST).read_text())["files"]["model.safetensors"]["sha256"] == "as it was written"


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("place", [0, 70_000, LARGE // 2 + 70_001, LARGE - 1])
def test_a_changed_byte_anywhere(folder: Path, place: int, quick: bool) -> None:
    path, times = folder / "model.safetensors", (folder / "model.safetensors").stat()
    assert foreign_issue(folder, "out", quick=quick) is None
    (folder / "README.md").write_text("as the verb `card` rewrites it")
    assert foreign_issue(folder, "out", quick=quick) is None
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as after `cp -p`
    issue = foreign_issue(folder, "out", quick=quick)
    assert issue is not None
    assert "holds model.safetensors, not listed or changed since" in issue.problem


def test_what_is_no_file_is_not_opened(folder: Path) -> None:
    for replace in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        (folder / "deep" / "config.json").unlink()
        replace(folder / "deep" / "config.json")
        issue = foreign_issue(folder, "out")
        assert issue is not None
        assert "holds deep/config.json, not listed or changed" in issue.problem


@pytest.mark.parametrize("content", ["[]", "{", '{"files": 1}', '{"files": {"a": 1}}', "[" * 100_000, "\udcff"])
def test_a_list_of_anybodys(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    issue = foreign_issue(folder, "out")
    assert issue is not None
    assert "README.md" in issue.problem
