"""One writer: who holds the lock is named, a kill frees it, and only its holder tidies up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from act_lightning.checkpoints.lock import lock_issue, lock_output, lock_root
from act_lightning.errors import ActError
from tests.front_door import left

_HOLD = """
import os, sys, time
from pathlib import Path
from act_lightning.checkpoints import lock

with getattr(lock, sys.argv[1])(Path(sys.argv[2]), "fit", "root"):
    if sys.argv[3:] and not os.fork():  # a worker that outlives its parent
        time.sleep(600)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(kind: str, path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until the block ends."""
    command = [sys.executable, "-c", _HOLD, kind, str(path), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(process.pid)
        yield process
        process.kill()


def test_a_kill_frees_the_lock_and_the_next_holder_tidies_up(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "a"
    with another_process("lock_root", root) as process:
        (root / ".model.tmp-1-ff").mkdir()  # being written
        (root / "model").mkdir()
        (root / "model" / ".README.md.tmp-1-ff").write_text("by the verb `card`")
        (root / ".merged.old-1-ff").mkdir()  # between two renames
        before = left(root)
        with pytest.raises(ActError) as refused, lock_root(root, "merge"):
            pass
        assert left(root) == before
        text, host = str(refused.value), os.uname().nodename
        assert text.startswith(f"trainer.default_root_dir = '{root}': must not be in use")
        assert f"process {process.pid} on {host} has been running `fit` there since 20" in text
        issue = lock_issue(root)
        assert issue is not None
        assert str(issue) == text
        with pytest.raises(ActError, match=str(process.pid)), lock_output(root / "model", "patch apply", "--out"):
            pass
        process.kill()
        process.wait()
        assert lock_issue(root) is None
        with lock_root(root, "merge"):
            assert left(root) == [".act_lightning.lock", "merged", "model"]
    assert left(root) == ["merged", "model"]


def test_a_worker_that_outlives_the_run_does_not_hold_its_lock(tmp_path: Path) -> None:
    with another_process("lock_root", tmp_path, "worker") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (worker,) = map(int, children.read_text().split())
        time.sleep(0.5)  # it may not have run yet
        process.kill()
        process.wait()
        try:
            with lock_root(tmp_path, "fit"):
                pass
        finally:
            os.kill(worker, 9)


def test_nothing_stays(tmp_path: Path) -> None:
    with lock_root(tmp_path / "runs" / "a", "fit"), pytest.raises(ActError), lock_root(tmp_path / "runs" / "a", "fit"):
        pass
    with lock_output(tmp_path / "new" / "patch", "patch make", "--out"):
        assert len(left(tmp_path / "new")) == 1
    assert left(tmp_path) == []


def test_other_ranks_share_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock_root(tmp_path, "fit"):
        (tmp_path / ".model.tmp-1-ff").mkdir()
        monkeypatch.setenv("LOCAL_RANK", "1")
        with lock_root(tmp_path, "fit"):
            assert (tmp_path / ".model.tmp-1-ff").is_dir()
        monkeypatch.delenv("LOCAL_RANK")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".act_lightning.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ActError, match="must be writable"), lock_root(tmp_path / "run", "fit"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
