"""The file of a patch: changed rows and columns as XOR bits, and a record of which weights it fits and makes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from act_lightning.architecture import module_type
from act_lightning.checkpoints.files import parse_json
from act_lightning.checkpoints.weight_files import Entry, Header, read_header
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.patches.encoding import (
    ChangedRegion,
    StoredTensor,
    Words,
    byte_planes,
    changed_region,
    from_byte_planes,
    matrix_shape_of,
    pack,
    unpack,
    word_of,
)
from act_lightning.transfer.preparation import layer_of

FORMAT = 1
_METADATA = "act_patch"
_HUB_FILE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<early>[^/@]+))?/(?P<file>[^@]+?)(@(?P<late>[^@]+))?")


@dataclass(frozen=True)
class TensorChange:
    """What a patch does to one stored tensor.

    Attributes:
        name: The parameter's name in the model, which may differ from its key.
        dtype: The dtype in safetensors' spelling, such as ``BF16``.
        shape: The shape of the whole tensor.
        rows: Number of whole rows in the patch; of a vector, elements.
        columns: Number of whole columns in the patch.
        changed: Number of elements that differ between base and result.
        codecs: How each part is packed, ``raw`` or ``zlib``: ``rows``, ``columns``, ``xor0`` and so on.
        sha256: The SHA-256 of each part as it is stored; empty in patches of earlier versions.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: int
    columns: int
    changed: int
    codecs: Mapping[str, str]
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PatchRecord:
    """The metadata of a patch, JSON under the key ``act_patch``.

    Attributes:
        base: Digest of the weights that it fits; see :func:`~act_lightning.checkpoints.weight_files.weights_digest`.
        result: Digest of the weights that it makes of them.
        parameters: Number of the model's elements.
        tensors: What changes, by the key in the base's files; all other tensors keep every bit.
        provenance: Names of base and tuned model, values in which their configs differ, versions, and the tuned
            folder's own recipe and record of its transfer.
    """

    base: str
    result: str
    parameters: int
    tensors: Mapping[str, TensorChange]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PatchRecord:
        """The record from its JSON values; unknown keys are ignored. KeyError or TypeError if it is damaged."""
        tensors = {
            key: TensorChange(
                str(change["name"]),
                str(change["dtype"]),
                tuple(int(size) for size in change["shape"]),
                int(change["rows"]),
                int(change["columns"]),
                int(change["changed"]),
                dict(change["codecs"]),
                dict(change.get("sha256", {})),
            )
            for key, change in values["tensors"].items()
        }
        base, result, provenance = str(values["base"]), str(values["result"]), dict(values["provenance"])
        licenses, differences = provenance.get("licenses", {}), provenance.get("config_differences", [])
        if not isinstance(licenses, dict) or not isinstance(differences, list):
            raise TypeError("licenses must be a mapping, and config_differences a list")
        if not all(isinstance(entry, dict) and {"key", "base", "tuned"} <= entry.keys() for entry in differences):
            raise KeyError("key, base or tuned of a config difference")
        sizes = [(*change.shape, change.rows, change.columns, change.changed) for change in tensors.values()]
        if any(min(numbers) < 0 for numbers in sizes):
            raise ValueError("sizes must not be negative")
        return cls(base, result, max(int(values["parameters"]), 1), tensors, provenance, values["format"])


class PatchWriter:
    """Collects the changes of one tensor after the other in ``tensors``, and their packed parts in a temporary file.

    The header comes first in a patch, and is known last.
    """

    def __init__(self, spool: BinaryIO) -> None:
        self.tensors: dict[str, TensorChange] = {}
        self._spool = spool
        self._entries: dict[str, Entry] = {}

    def add(self, key: str, name: str, tensor: StoredTensor, changes: Words) -> None:
        """Add the changes (XOR of base and result, ``[height, width]``) of the tensor stored under ``key``."""
        region = changed_region(changes)
        parts = {"rows": np.packbits(region.rows).tobytes(), "columns": np.packbits(region.columns).tobytes()}
        parts |= {f"xor{number}": plane for number, plane in enumerate(byte_planes(region.take(changes)))}
        codecs, sha256 = {}, {}
        for part, data in parts.items():
            codecs[part], packed = pack(data)
            sha256[part] = hashlib.sha256(packed).hexdigest()
            start = self._spool.tell()
            self._spool.write(packed)
            self._entries[f"{key}:{part}"] = Entry("U8", (len(packed),), start, start + len(packed))
        counts = int(region.rows.sum()), int(region.columns.sum()), int(np.count_nonzero(changes))
        self.tensors[key] = TensorChange(name, tensor.entry.code, tensor.entry.shape, *counts, codecs, sha256)

    def finish(self, path: Path, record: PatchRecord) -> None:
        """Write header and parts to ``path``."""
        metadata = {_METADATA: json.dumps(asdict(record), separators=(",", ":"), ensure_ascii=False)}
        self._spool.seek(0)
        with path.open("wb") as file:
            file.write(Header(self._entries, metadata, 0).encode())
            shutil.copyfileobj(self._spool, file, 1 << 24)


@dataclass(frozen=True)
class PatchFile:
    """An open patch: its record has been read, its parts have not.

    ``header`` has the offsets of the parts.
    """

    path: Path
    record: PatchRecord
    header: Header

    def region(self, key: str) -> ChangedRegion:
        """The rows and columns of the tensor ``key`` that the patch holds.

        Raises:
            ActError: The patch is damaged.
        """
        masks = []
        for part, count in zip(("rows", "columns"), matrix_shape_of(self.record.tensors[key].shape), strict=True):
            bits = np.frombuffer(self._part(key, part, (count + 7) // 8), np.uint8)
            masks.append(np.unpackbits(bits, count=count).astype(np.bool_))
        return ChangedRegion(*masks)

    def changes(self, key: str) -> tuple[ChangedRegion, Words]:
        """The region of the tensor ``key`` that changes, and the XOR of base and result in it, ``[size]``.

        Raises:
            ActError: The patch is damaged.
        """
        region, word = self.region(key), word_of(self.record.tensors[key].dtype)
        planes = [self._part(key, f"xor{number}", region.size()) for number in range(word.itemsize)]
        return region, from_byte_planes(planes, word)

    def _part(self, key: str, part: str, size: int) -> bytes:
        try:
            entry = self.header.entries[f"{key}:{part}"]
            with self.path.open("rb") as file:
                file.seek(self.header.data_start + entry.start)
                data = file.read(entry.size)
            change = self.record.tensors[key]
            if change.sha256 and hashlib.sha256(data).hexdigest() != change.sha256[part]:
                raise ValueError("it has not the SHA-256 that the record states")
            return unpack(change.codecs[part], data, size)
        except (KeyError, ValueError, OSError) as error:
            problem = f"must hold {part} of {key} undamaged ({error})"
            raise ActError(ConfigIssue("patch", str(self.path), problem, "Download or make it again.")) from error


def open_patch(path: Path) -> PatchFile:
    """Read the record of a patch.

    Raises:
        ActError: The file is missing, truncated, not a patch, or of another format.
    """
    header = read_header(path)
    text = header.metadata.get(_METADATA)
    if text is None:
        problem = "must be an ability patch, and is another safetensors file"
        raise ActError(ConfigIssue("patch", str(path), problem, "Name a file that `patch make` has written."))
    try:
        values = parse_json(text, unique_keys=True)
        record = PatchRecord.from_json(values) if values["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        problem = f"must have a readable record ({error!r})"
        raise ActError(ConfigIssue("patch", str(path), problem, "Download or make it again.")) from error
    if record is None:
        problem = f"must have format {FORMAT}, and has {values['format']}"
        raise ActError(ConfigIssue("patch", str(path), problem, "Use the version of act-lightning that made it."))
    return PatchFile(path, record, header)


def summarize_patch(record: PatchRecord) -> dict[str, Any]:
    """What a patch changes, as plain values: hashes, counts, and groups ``by_layer`` and ``by_module_type``."""
    changed = sum(change.changed for change in record.tensors.values())
    return {
        "base": record.base,
        "result": record.result,
        "parameters": record.parameters,
        "changed": changed,
        "changed_share": changed / record.parameters,
        "by_layer": _group_changes(record, layer_of),
        "by_module_type": _group_changes(record, module_type),
        "provenance": dict(record.provenance),
    }


def _group_changes(record: PatchRecord, group_of: Callable[[str], str]) -> list[dict[str, Any]]:
    """Counts by group; layers in numerical order, parameters outside of layers last.

    ``rows`` and ``columns`` count whole ones (of vectors, elements), ``elements`` those of all tensors that change.
    """
    groups: defaultdict[str, list[TensorChange]] = defaultdict(list)
    for change in record.tensors.values():
        groups[group_of(change.name.rpartition(".")[0] or change.name)].append(change)
    order = sorted(groups, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0))
    return [
        {
            "name": name,
            "tensors": len(groups[name]),
            "rows": sum(change.rows for change in groups[name]),
            "columns": sum(change.columns for change in groups[name]),
            "changed": sum(change.changed for change in groups[name]),
            "elements": sum(prod(change.shape) for change in groups[name]),
        }
        for name in order
    ]


def find_patch(reference: str) -> Path:
    """The file of a patch, downloaded if it is on the hub.

    A patch is pushed like any file: ``hf upload me/patches science.safetensors``, or
    ``huggingface_hub.upload_file(path_or_fileobj=…, path_in_repo="science.safetensors", repo_id="me/patches")``.

    Args:
        reference: A path; or ``hf://owner/name/path/in/repository``, with ``@revision`` after the name, as
            ``huggingface_hub`` has it, or at the end.

    Raises:
        ActError: The file does not exist, or cannot be downloaded.
    """
    hint = "Write hf://owner/name/file.safetensors, or hf://owner/name/file.safetensors@revision."
    if not reference.startswith("hf://"):
        path = Path(reference).expanduser()
        if not path.is_file():
            problem = "must be a file that exists, or a hub file"
            raise ActError(ConfigIssue("patch", reference, problem, f"Correct the path. {hint}"))
        return path
    match = _HUB_FILE.fullmatch(reference)
    if match is None or (match["early"] and match["late"]):
        raise ActError(ConfigIssue("patch", reference, "must name a file of a hub repository", hint))
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        revision = match["early"] or match["late"]
        return Path(huggingface_hub.hf_hub_download(match["repo"], match["file"], revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        problem = f"must be a hub file that can be fetched ({reason})"
        hint = "Check name, revision, network and `hf auth login`, or give the path of a local copy."
        raise ActError(ConfigIssue("patch", reference, problem, hint)) from error
