"""What is built from this checkout, and what a fresh environment gets from it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import act_lightning

ROOT = Path(act_lightning.__file__).parent.parent
PACKAGE = ROOT / "act_lightning"
SHIPPED = {
    path.relative_to(ROOT).as_posix()
    for path in PACKAGE.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    """Runs a command and returns what it printed; its error output is in the failure."""
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist; the wheel is built from the sdist, as on an index."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def fresh_python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, folder=folder)
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder)
    # A folder named in a .pth file is searched after the environment's own, and its .pth files (a checkout's
    # editable install among them) are not read.
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def test_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == SHIPPED


def test_sdist_holds_the_package_and_what_builds_it(built: Path) -> None:
    """No tests: they need the whole checkout. No link ``callbacks``."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("act_lightning.egg-info/")}
    texts = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "SECURITY.md"}
    assert names - made == {*SHIPPED, *texts, "MANIFEST.in", "pyproject.toml", "requirements.lock"}


def test_installed_callbacks_are_the_wheels(fresh_python: Path, tmp_path: Path) -> None:
    code = "import act_lightning.callbacks as room; print(room.__file__)"
    place = Path(run(fresh_python, "-c", code, folder=tmp_path))
    assert fresh_python.parents[1] in place.parents
    assert (place.parents[1] / "py.typed").is_file()


def test_no_top_level_callbacks_is_installed(fresh_python: Path, tmp_path: Path) -> None:
    code = "import importlib.util; print(importlib.util.find_spec('callbacks'))"
    assert run(fresh_python, "-c", code, folder=tmp_path) == "None"


def test_version_and_command_are_installed(fresh_python: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import version; print(version('act-lightning'))"
    assert run(fresh_python, "-c", code, folder=tmp_path) == act_lightning.__version__
    assert "act-lightning" in {path.name for path in fresh_python.parent.iterdir()}
