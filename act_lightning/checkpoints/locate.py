"""Where a model lies: a folder, the hub, or the built-in laboratory."""

from __future__ import annotations

import re
from pathlib import Path

from act_lightning.checkpoints.bin_conversion import PREFIX, convert_bin
from act_lightning.checkpoints.headers import CONFIG
from act_lightning.errors import ActError, ConfigIssue

LABORATORY = "lab:"
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md")
_DUPLICATES = ("original/*", "onnx/*", "consolidated*")  # the same weights once more, in other formats
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(model: str | Path, revision: str | None = None, setting: str = "model.target", weights: bool = True) -> Path:
    """Find the folder of ``model``, fetching it where it is not here yet.

    Args:
        model: A folder, which comes first, a hub id such as ``Qwen/Qwen2.5-7B-Instruct``, or ``lab:generalist``. With
            ``bin:`` before a folder or hub id, its ``pytorch_model.bin`` is read, and converted into the cache.
        revision: A commit, branch or tag of the hub.
        setting: Where ``model`` was given, for messages.
        weights: Whether to fetch the weights of a hub model too; a plan needs only its config.

    Returns:
        A folder that holds a ``config.json``.

    Raises:
        ActError: No such folder or hub model, no network to fetch it, no config, or a revision of what has none.
    """
    name = str(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _refuse_revision(folder, revision, setting)
        return _with_config(folder, setting)
    if name.startswith(LABORATORY):
        _refuse_revision(name, revision, setting)
        from act_lightning.lab.models import model_folder

        return _with_config(model_folder(name.removeprefix(LABORATORY)), setting)
    if name.startswith(PREFIX):
        return _locate_pickled(name.removeprefix(PREFIX), revision, setting, weights)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name):
        raise ActError(ConfigIssue(setting, name, "must be a folder that exists", "Correct the path."))
    return _with_config(_download(name, revision, setting, weights), setting)


def _locate_pickled(name: str, revision: str | None, setting: str, weights: bool) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir() and _HUB_ID.fullmatch(name):
        folder = _with_config(_download(name, revision, setting, weights, "*.bin"), setting)
        return convert_bin(folder, setting) if weights else folder
    return convert_bin(locate(folder, revision, setting, weights), setting)


def _refuse_revision(model: str | Path, revision: str | None, setting: str) -> None:
    if revision is not None:
        problem = f"must be a hub id where a revision ({revision}) is given"
        raise ActError(
            ConfigIssue(setting, str(model), problem, "Remove the revision, or name the model by its hub id.")
        )


def _with_config(folder: Path, setting: str) -> Path:
    if not (folder / CONFIG).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        problem = f"must hold a {CONFIG}" + (", and holds an adapter" if adapter else "")
        hint = "Merge the adapter into its base model first." if adapter else "Give the folder of a whole model."
        raise ActError(ConfigIssue(setting, str(folder), problem, hint))
    return folder


def _download(model: str, revision: str | None, setting: str, weights: bool, kind: str = "*.safetensors") -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [*_TEXTS, kind] if weights else [*_TEXTS]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=patterns, ignore_patterns=[*_DUPLICATES]
            )
        )
    except HFValidationError as error:
        problem = f"must be a folder that exists or a hub id ({error})"
        raise ActError(ConfigIssue(setting, model, problem, "Correct the name.")) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        problem = f"must be a folder that exists or a hub model{at} that can be fetched ({_first_line(error)})"
        hint = "Check name, revision, network and `hf auth login`, or give the path of a local copy."
        raise ActError(ConfigIssue(setting, model, problem, hint)) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
