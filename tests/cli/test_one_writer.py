"""A second start in a folder where a run is writing is refused at once, and changes nothing there."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.test_lock import another_process
from tests.front_door import basic, call, left, run

RUN_VERBS = ("fit", "validate", "test", "predict", "profile", "merge", "sweep", "causes")


def test_every_verb_that_writes(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> None:
    config = basic(tmp_path, target_folder, source_folder, ability_file)
    root = tmp_path / "run"
    assert run("merge", config).status == 0
    (root / "scores" / "s" / ".d.safetensors.tmp-1-ff").touch()  # the other run is writing it
    with another_process("lock_root", root) as process:
        before = left(root)
        file = str(tmp_path / "config.yaml")
        starts = [(verb, "--config", file) for verb in RUN_VERBS]
        starts += [("plan", "--config", file)]
        starts += [("merge", "--config", file, "--transfer.scores", str(root / "scores"))]  # without a Trainer
        starts += [("report", root), ("card", root), ("report", root, "--out", root / "page")]
        starts += [("patch", "make", "--base", target_folder, "--tuned", root / "merged", "--out", root / "patch")]
        starts += [("patch", "apply", "--model", target_folder, "--patch", file, "--out", root / "merged")]
        for start in starts:
            outcome = call(*start)
            assert outcome.status == 1, start
            assert f"must not be in use, and process {process.pid} on " in outcome.err + outcome.out, (start, outcome)
            assert "Traceback" not in outcome.err
            assert left(root) == before, start
    assert run("merge", config, "--trainer.default_root_dir", tmp_path / "free").status == 0
