"""Earlier results are replaced only when that is asked for, and only what an export of ours has written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import lightning as L
import pytest

from tests.front_door import Config, Outcome, basic, call, changed, left, run


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return basic(tmp_path, target_folder, source_folder, ability_file)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert [part for part in parts if part not in outcome.err] == [], outcome.err


def planned(verb: str, config: Config, *arguments: object) -> list[str]:
    """The messages and remedies of a plan's errors."""
    problems = json.loads(run("plan", config, "--for", verb, "--json", *arguments).out)["problems"]
    return [problem["message"] + problem["remedy"] for problem in problems if problem["level"] == "error"]


def test_a_fit_does_not_replace_an_earlier_one_unasked(tmp_path: Path, config: Config) -> None:
    root = tmp_path / "run"
    assert planned("fit", config) == []
    assert run("fit", config).status == 0
    assert (root / "model" / ".act_lightning.json").is_file()
    assert "overwrite" not in (root / "model" / "README.md").read_text()
    before = digests(root)
    other = changed(config, "seed_everything", 7)
    refused(run("fit", other), "checkpoints/last.ckpt", "run/model'", "--ckpt_path last", "--overwrite")
    assert digests(root) == before
    assert [("--ckpt_path last" in text, "--overwrite" in text) for text in planned("fit", other)] == [(True, True)] * 2
    assert planned("fit", other, "--overwrite") == []

    assert run("fit", config, "--ckpt_path", "last").status == 0  # nothing is left to do, but to export
    assert digests(root / "model")["model.safetensors"] == before["model/model.safetensors"]
    longer = changed(config, "trainer.max_epochs", 2)
    assert run("fit", longer, "--ckpt_path", root / "checkpoints" / "last.ckpt").status == 0
    assert digests(root / "model")["model.safetensors"] != before["model/model.safetensors"]
    assert run("fit", config, "--overwrite").status == 0
    assert digests(root / "model")["model.safetensors"] == before["model/model.safetensors"]

    # where the checkpoint is gone, there is nothing to go on with, and the model is not replaced
    shutil.move(root / "checkpoints", tmp_path / "elsewhere")
    refused(run("fit", config, "--ckpt_path", "last"), "run/model'", "--overwrite")
    refused(run("fit", longer, "--ckpt_path", tmp_path / "elsewhere" / "last.ckpt"), "run/model'", "--overwrite")


def test_what_no_export_wrote_is_named_and_kept(tmp_path: Path, config: Config) -> None:
    root, saved = tmp_path / "run", ("--transfer.scores", tmp_path / "run" / "scores")
    assert run("merge", config).status == 0
    merged, ratio = root / "merged", changed(config, "transfer.ratio", 0.2)
    assert planned("merge", ratio) != []
    for options in ((), saved):  # with LightningCLI and without
        before = digests(root)
        refused(run("merge", ratio, *options), "run/merged'", "Add --overwrite")
        for name in ("thesis.tex", ".git/config", "notes/a/b.txt"):
            file = merged / name
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_text("mine")
            refused(run("merge", ratio, *options, "--overwrite"), f"holds {name}, not listed", "Move that away")
            assert planned("merge", ratio, "--overwrite") != []
            assert file.read_text() == "mine"
            shutil.rmtree(file.parent) if file.parent != merged else file.unlink()
            shutil.rmtree(merged / "notes", ignore_errors=True)
        (merged / "empty").mkdir()
        refused(run("merge", ratio, *options, "--overwrite"), "holds empty, not listed")
        (merged / "empty").rmdir()
        for name in ("config.json", "model.safetensors"):  # the user's own by now
            original = (merged / name).read_bytes()
            (merged / name).write_bytes(original.replace(b"llama", b"Llama").replace(original[-9:], b"another 1"))
            refused(run("merge", ratio, *options, "--overwrite"), f"holds {name}, not listed or changed")
            (merged / name).write_bytes(original)
        assert digests(root) == before
    assert call("card", root).status == 0
    assert run("merge", ratio, *saved, "--overwrite").status == 0
    assert digests(merged)["model.safetensors"] != before["merged/model.safetensors"]
    assert run("merge", config, "--overwrite").status == 0
    assert digests(merged)["model.safetensors"] == before["merged/model.safetensors"]
    (merged / ".act_lightning.json").unlink()  # as version 0.1 wrote it
    refused(run("merge", config, "--overwrite"), "no list", "0.1")


def test_a_new_fit_does_not_resume_from_an_old_one(tmp_path: Path, config: Config) -> None:
    """A start that ``--overwrite`` began is not continued from the checkpoint that it replaces."""
    root = tmp_path / "run"
    assert run("fit", config).status == 0
    other = changed(config, "trainer.callbacks", [{"class_path": "tests.cli.test_replacing.Failing"}])
    with pytest.raises(RuntimeError, match="in the first update"):
        run("fit", other, "--overwrite")
    assert "checkpoints/last.ckpt" not in left(root)
    assert "model/model.safetensors" in left(root)


class Failing(L.Callback):
    """Fails before the first checkpoint."""

    def on_train_batch_start(self, *_: object) -> None:
        raise RuntimeError("in the first update")
