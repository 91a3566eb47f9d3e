"""Where the laboratory's models lie, and who builds them when they are not there yet."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from act_lightning.errors import ActError, Fault
from act_lightning.laboratory.building import PARENTS, build
from act_lightning.laboratory.recipe import Recipe

MODELS = tuple(PARENTS)
_UNFINISHED = ".unfinished-"


def model_folder(name: str, recipe: Recipe | None = None) -> Path:
    """The Hugging Face folder of a laboratory model, built at the first call and kept for later ones.

    Of several processes that ask at once, one builds and shows its progress while the others wait. A build that is
    killed leaves no folder that could be taken for a whole one.

    Args:
        name: One of ``MODELS``.
        recipe: Sizes and lengths; None for the laboratory's own.

    Returns:
        A folder with config, generation config, safetensors and tokenizer.

    Raises:
        ActError: There is no such model, or the cache cannot be written.
    """
    if name not in PARENTS:
        rule, remedy = (
            "must name a model of the laboratory",
            f"Take one of {', '.join(f'lab:{key}' for key in MODELS)}.",
        )
        raise ActError(Fault("lab model", name, rule, remedy))
    recipe = recipe or Recipe()
    root = cache_root() / recipe.version
    if (root / name).is_dir():
        return root / name
    _make_writable(root)
    with FileLock(root / ".lock"):
        return _ensure(name, recipe, root)


def cache_root() -> Path:
    """``$ACT_LIGHTNING_CACHE/laboratory``, or ``~/.cache/act_lightning/laboratory``."""
    chosen = os.environ.get("ACT_LIGHTNING_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "act_lightning") / "laboratory"


def _ensure(name: str, recipe: Recipe, root: Path) -> Path:
    """Build ``name`` after its parents, each beside its place, then renamed; the lock is ours."""
    folder = root / name
    if folder.is_dir():
        return folder
    ancestor = PARENTS[name]
    parent = _ensure(ancestor, recipe, root) if ancestor else None
    for left_over in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=root))
    try:
        build(name, recipe, parent, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _make_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        rule = f"must be a folder that can be written ({error.strerror})"
        raise ActError(Fault("ACT_LIGHTNING_CACHE", str(root), rule, "Set it to a folder of yours.")) from error
