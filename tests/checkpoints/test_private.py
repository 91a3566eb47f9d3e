"""Links that leave a model's folder are not followed, and private weights stay private."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from act_lightning.checkpoints.files import no_wider_than
from act_lightning.checkpoints.models import locate
from act_lightning.errors import ActError
from tests.front_door import basic, call, changed, left, run


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.txt", "model.safetensors", "LICENSE"])
def test_links_out_of_a_model_are_refused(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path, name: str
) -> None:
    model, secret = tmp_path / "model", tmp_path / "secret"
    shutil.copytree(target_folder, model)
    (model / name).unlink(missing_ok=True)
    shutil.copy(target_folder / "config.json", secret)
    (model / name).symlink_to(Path("..") / "secret")
    before = left(tmp_path)
    outcome = call("patch", "make", "--base", target_folder, "--tuned", model, "--out", tmp_path / "p")
    assert outcome.status == 1
    assert f"{name} is a link that leads out of it" in outcome.err
    config = changed(basic(tmp_path, model, source_folder, ability_file), "profile.sources.0.model", str(source_folder))
    assert f"{name} is a link that leads out of it" in run("merge", config).err
    assert [path for path in left(tmp_path) if path != "config.yaml"] == before


def test_links_within_a_model_and_to_the_hubs_blobs_are_followed(tmp_path: Path, target_folder: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(target_folder.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert locate(snapshot) == snapshot
    (snapshot / "LICENSE").symlink_to("config.json")
    (snapshot / "nothing.json").symlink_to("nowhere")
    assert locate(snapshot) == snapshot
    (tmp_path / "linked").symlink_to(snapshot)
    assert locate(tmp_path / "linked") == tmp_path / "linked"
    (tmp_path / "other").write_text("{}")
    (snapshot / "NOTICE").symlink_to("../../../other")
    with pytest.raises(ActError, match="NOTICE is a link"):
        locate(snapshot)


@pytest.fixture
def open_umask() -> Iterator[None]:
    umask = os.umask(0o022)
    yield
    assert os.umask(umask) == 0o022, "it is as it was"


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("private", ["target", "source", "folder"])
def test_private_weights_stay_private(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path, private: str
) -> None:
    models = {"target": tmp_path / "target", "source": tmp_path / "source"}
    for name, folder in (("target", target_folder), ("source", source_folder)):
        shutil.copytree(folder, models[name])
        for path in models[name].iterdir():
            path.chmod(0o644)
    if private == "folder":
        models["target"].chmod(0o700)
    else:
        (models[private] / "model.safetensors").chmod(0o600)
    config = basic(tmp_path, models["target"], models["source"], ability_file)
    config = changed(
        changed(config, "transfer.selection", "random"), "data", {"abilities": {"d": {"path": str(ability_file)}}}
    )
    assert run("merge", config).status == 0
    assert modes(tmp_path / "run/merged")["model.safetensors"] == 0o600
    patch, options = tmp_path / "p.safetensors", ["--base", models["target"], "--tuned", models["source"]]
    assert call("patch", "make", *options, "--out", patch).status == 0
    assert patch.stat().st_mode & 0o777 == 0o600
    out = tmp_path / "patched"
    assert call("patch", "apply", "--model", models["target"], "--patch", patch, "--out", out).status == 0
    assert modes(out)["model.safetensors"] == 0o600
    if private == "target":
        assert run("fit", changed(config, "profile", {"sources": None})).status == 0
        assert modes(tmp_path / "run/model")["model.safetensors"] == 0o600


@pytest.mark.usefixtures("open_umask")
def test_modes_that_are_no_wider(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    source = tmp_path / "a"
    for mode, made in ((0o644, 0o644), (0o666, 0o644), (0o640, 0o640), (0o600, 0o600), (0o444, 0o644), (0o604, 0o604)):
        source.touch()
        source.chmod(mode)
        with no_wider_than(source):
            (tmp_path / "b").touch()
        assert (tmp_path / "b").stat().st_mode & 0o777 == made, oct(mode)
        (tmp_path / "b").unlink()
