"""Files appear whole, and nothing of a failure stays."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from act_lightning.checkpoints.files import (
    atomic_folder,
    check_writable,
    reflink,
    remove,
    remove_leftovers,
    save_tensors,
    write_file,
)
from act_lightning.errors import ActError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_file_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_file(path, "é")
    write_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["b.json"]


def test_save_tensors(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    values = torch.arange(6.0).view(2, 3)
    save_tensors(path, {"a": values.T, "b": torch.nn.Parameter(values)}, {"act": "{}"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"act": "{}"}
        assert torch.equal(file.get_tensor("a"), values.T)
        assert torch.equal(file.get_tensor("b"), values)
    assert names(tmp_path) == [path.name]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ActError, match=r"file'.*must be writable \(No space left on device\)"):
        write_file(path, "new")
    with pytest.raises(ActError, match="No space left"):
        save_tensors(path, {"a": torch.ones(2)})
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_replacing_folder(tmp_path: Path) -> None:
    place = tmp_path / "parent" / "out"
    for content in ("first", "second"):
        with atomic_folder(place) as folder:
            (folder / content).write_text(content)
            assert folder.parent == place.parent
    assert names(place) == ["second"]
    with pytest.raises(IsADirectoryError), atomic_folder(place) as folder:
        folder.write_text("half")
    assert names(place) == ["second"]
    assert names(place.parent) == ["out"]


def test_failed_renaming_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "out"
    place.mkdir()
    (place / "old").touch()
    rename = Path.rename

    def once(self: Path, target: Path) -> Path:
        if list(self.glob("new")):
            raise OSError(1, "Operation not permitted")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    monkeypatch.setattr("act_lightning.checkpoints.files._exchange", lambda first, second: False)
    with pytest.raises(ActError, match="Operation not permitted"), atomic_folder(place) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["out"]
    assert names(place) == ["old"]


def test_leftovers_are_removed_by_name(tmp_path: Path) -> None:
    for name in (".a[1].tmp-1-ff", ".b.tmp-2-ff"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
    for name in (".a[1]", ".b.tmp-old", ".mine.tmp-1"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "a[1]")
    assert names(tmp_path) == [".a[1]", ".b.tmp-2-ff", ".b.tmp-old", ".mine.tmp-1"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".a[1]", ".b.tmp-old", ".mine.tmp-1"]
    remove_leftovers(tmp_path / "absent")


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp-1-ff").mkdir()
    (tmp_path / ".file.tmp-1-ff").touch()
    with atomic_folder(tmp_path / "out"):
        pass
    write_file(tmp_path / "file", "")
    assert names(tmp_path) == [".file.tmp-1-ff", ".out.tmp-1-ff", "file", "out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_while_folders_are_swapped(tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment, the old or the new one is there, at once or when leftovers are removed."""
    place = tmp_path / "out"
    seen = []
    if not exchanges:
        monkeypatch.setattr("act_lightning.checkpoints.files._exchange", lambda first, second: False)

    def kill_at(count: int) -> None:
        shutil.rmtree(tmp_path)
        place.mkdir(parents=True)
        (place / "old").touch()
        process = os.fork()
        if not process:
            monkeypatch.setattr(Path, "rename", counting(count, Path.rename))
            monkeypatch.setattr("act_lightning.checkpoints.files.remove", counting(count, remove))
            with atomic_folder(place) as folder:
                (folder / "new").touch()
            os._exit(0)
        _, status = os.waitpid(process, 0)
        seen.append(status)

    def counting(last: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            calls.append(function)
            if len(calls) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return counted

    for count in range(1, 6):
        calls: list[Any] = []
        kill_at(count)
        if exchanges:
            assert names(place) in (["old"], ["new"])
        remove_leftovers(tmp_path)
        assert names(place) in (["old"], ["new"])
        assert names(tmp_path) == ["out"]
    assert seen[0] == signal.SIGKILL
    assert seen[-1] == 0


def test_a_reflink_changes_alone_and_without_one_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(bytes(range(256)) * 64)
    if reflink(source, copy):  # on XFS, btrfs and the like
        with copy.open("r+b") as file:
            file.write(b"x")
        assert copy.read_bytes() == b"x" + source.read_bytes()[1:]
        assert source.read_bytes()[0] == 0
        copy.unlink()

    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("fcntl.ioctl", unsupported)
    assert not reflink(source, copy)
    assert names(tmp_path) == ["source"]


def test_check_writable(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "deep" / "out", "trainer.default_root_dir") == []
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    (issue,) = check_writable(tmp_path / "file" / "out", "trainer.default_root_dir")
    assert str(issue).startswith("trainer.default_root_dir = ")
    assert check_writable(Path("/proc/out"), "output")
    with pytest.raises(ActError, match="must be writable"), atomic_folder(tmp_path / "file" / "out"):
        pass
    assert names(tmp_path) == ["file"]
