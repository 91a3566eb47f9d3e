"""Which files hold a folder's weights: one ``model.safetensors``, or those that an index names."""

from __future__ import annotations

import json
from pathlib import Path

from act_lightning.checkpoints.header import Entry, Header, read_header
from act_lightning.errors import ActError, Fault, refuse

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FOREIGN = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf")


def is_weightless(folder: Path) -> bool:
    """Whether ``folder`` holds no weights of any format: a config alone, enough for a plan."""
    return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", INDEX, *_FOREIGN))


def require_weights(folder: Path, setting: str) -> None:
    """Check that ``folder`` holds all its safetensors files, each whole by its header; no tensor is read.

    Raises:
        ActError: No safetensors at all, a file missing that the index names, or a truncated one.
    """
    read_headers(folder, setting)


def read_headers(folder: Path, setting: str = "model") -> dict[str, Header]:
    """The header of every weight file of ``folder`` by file name, in the order of their names.

    Raises:
        ActError: As :func:`require_weights`; all faults of the folder in one error.
    """
    index = _read_index(folder)
    files = sorted({*index.values()}) or [SINGLE]
    if not index and not (folder / SINGLE).is_file():
        raise ActError(_no_safetensors(folder, setting))
    headers: dict[str, Header] = {}
    faults: list[Fault] = []
    for file in files:
        try:
            headers[file] = read_header(folder / file)
        except ActError as error:
            faults.extend(error.faults)
    refuse(faults or _misplaced(folder, index, headers))
    return headers


def stored_entries(folder: Path) -> dict[str, Entry] | None:
    """Every tensor of ``folder`` by its key; ``None`` where it holds no weights.

    Raises:
        ActError: As :func:`require_weights`.
    """
    if is_weightless(folder):
        return None
    headers = read_headers(folder, str(folder)).values()
    return {key: entry for header in headers for key, entry in header.entries.items()}


def _read_index(folder: Path) -> dict[str, str]:
    """The file of every key by the index; empty where a single file holds all, which transformers looks for first."""
    path = folder / INDEX
    if (folder / SINGLE).is_file() or not path.is_file():
        return {}
    try:
        index = json.loads(path.read_bytes())["weight_map"]
        if not index or any(Path(file).name != file for file in index.values()):
            raise ValueError("it names no file, or one outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"must be a JSON index with a weight_map ({error})"
        raise ActError(Fault(str(path), path.name, rule, "Download or copy it again.")) from error
    return dict(index)


def _misplaced(folder: Path, index: dict[str, str], headers: dict[str, Header]) -> list[Fault]:
    lost = [key for key, file in index.items() if key not in headers[file].entries]
    if not lost:
        return []
    rule = "must find every tensor in the file it names"
    return [Fault(str(folder / INDEX), lost[:5], rule, "The shards are of another model: download all files again.")]


def _no_safetensors(folder: Path, setting: str) -> Fault:
    foreign = sorted(path.name for pattern in _FOREIGN for path in folder.glob(pattern))
    if foreign:
        rule = f"must hold safetensors weights, and holds only {', '.join(foreign[:3])}"
        remedy = "Convert them to safetensors; or write bin: before the model's name to have pytorch_model.bin read."
    else:
        rule, remedy = "must hold weights", f"Put {SINGLE}, or the files of {INDEX}, into the folder."
    return Fault(setting, str(folder), rule, remedy)
