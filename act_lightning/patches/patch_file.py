"""What a patch says about itself: which weights it fits, what it makes of them, and where it comes from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from act_lightning.checkpoints.files import atomic_file, wrap_os_errors
from act_lightning.checkpoints.weight_files import Entry, Header, read_header
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.patches.encoding import (
    ChangedRegion,
    StoredTensor,
    Words,
    changed_region,
    from_planes,
    grid_of,
    pack,
    planes,
    unpack,
    word_of,
)

FORMAT = 1


@dataclass(frozen=True)
class TensorChange:
    """What a patch does to one stored tensor.

    Attributes:
        name: The parameter's name in the model, which need not be the key it is stored under.
        dtype: The dtype in safetensors' spelling, such as ``BF16``.
        shape: The sizes of the whole tensor.
        rows: How many whole rows are in the patch; of a vector, elements.
        columns: How many whole columns.
        changed: How many elements differ between base and result.
        codecs: How each part is packed, ``raw`` or ``zlib``: ``rows``, ``columns``, ``xor0`` and so on.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: int
    columns: int
    changed: int
    codecs: Mapping[str, str]


@dataclass(frozen=True)
class PatchRecord:
    """The metadata of a patch, JSON under the key ``act_patch``.

    Attributes:
        base: Digest of the weights that it fits; see :func:`~act_lightning.patches.encoding.weights_digest`.
        result: Digest of the weights that it makes of them.
        parameters: How many elements the model has in all.
        tensors: What changes, by the key in the base's files; all other tensors keep every bit.
        provenance: How base and tuned model were named, values in which their configs differ, versions, and the
            tuned folder's own record of its transfer and its recipe.
        format: Version of the layout.
    """

    base: str
    result: str
    parameters: int
    tensors: Mapping[str, TensorChange]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PatchRecord:
        """The inverse of :meth:`to_json`; keys of later versions are passed over.

        Raises:
            KeyError: Something is missing.
            TypeError: Something has another form.
        """
        tensors = {
            key: TensorChange(
                str(one["name"]),
                str(one["dtype"]),
                tuple(int(size) for size in one["shape"]),
                int(one["rows"]),
                int(one["columns"]),
                int(one["changed"]),
                dict(one["codecs"]),
            )
            for key, one in values["tensors"].items()
        }
        base, result = str(values["base"]), str(values["result"])
        return cls(base, result, int(values["parameters"]), tensors, dict(values["provenance"]), values["format"])


_SCHEME = "hf://"
_HUB_FILE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<early>[^/@]+))?/(?P<file>[^@]+?)(@(?P<late>[^@]+))?")
_REMEDY = "Write hf://owner/name/file.safetensors, or hf://owner/name/file.safetensors@revision."


def find_patch(reference: str) -> Path:
    """The file of a patch, fetched from the hub where it is there.

    A patch is pushed like any file: ``hf upload me/patches science.safetensors``, or
    ``huggingface_hub.upload_file(path_or_fileobj=…, path_in_repo="science.safetensors", repo_id="me/patches")``.

    Args:
        reference: A path; or ``hf://owner/name/path/in/repository``, with ``@revision`` after the name, as
            ``huggingface_hub`` has it, or at the end.

    Raises:
        ActError: There is no such file, or the hub cannot be reached.
    """
    if not reference.startswith(_SCHEME):
        path = Path(reference).expanduser()
        if not path.is_file():
            problem = "must be a file that exists, or a hub file"
            raise ActError(ConfigIssue("patch", reference, problem, f"Correct the path. {_REMEDY}"))
        return path
    match = _HUB_FILE.fullmatch(reference)
    if match is None or (match["early"] and match["late"]):
        raise ActError(ConfigIssue("patch", reference, "must name a file of a hub repository", _REMEDY))
    return _fetch(reference, match["repo"], match["file"], match["early"] or match["late"])


def _fetch(reference: str, repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        hint = "Check name, revision, network and `hf auth login`, or give the path of a local copy."
        raise ActError(
            ConfigIssue("patch", reference, f"must be a hub file that can be fetched ({reason})", hint)
        ) from error


_METADATA = "act_patch"


class PatchWriter:
    """Takes the changes of one tensor after the other, and holds none of them in memory.

    Args:
        spool: A temporary file for the packed parts; the header, which comes first in a patch, is known last.

    Attributes:
        tensors: What has been added.
    """

    def __init__(self, spool: BinaryIO) -> None:
        self.tensors: dict[str, TensorChange] = {}
        self._spool = spool
        self._entries: dict[str, Entry] = {}

    def add(self, key: str, name: str, tensor: StoredTensor, changes: Words) -> None:
        """Add the changes (XOR of base and result, ``[height, width]``) of the tensor that is stored under ``key``."""
        cover = changed_region(changes)
        parts = {"rows": np.packbits(cover.rows).tobytes(), "columns": np.packbits(cover.columns).tobytes()}
        codecs = {part: self._write(key, part, data) for part, data in parts.items()}
        for plane, data in enumerate(planes(cover.take(changes))):
            codecs[f"xor{plane}"] = self._write(key, f"xor{plane}", data)
        counts = int(cover.rows.sum()), int(cover.columns.sum()), int(np.count_nonzero(changes))
        self.tensors[key] = TensorChange(name, tensor.entry.code, tensor.entry.shape, *counts, codecs)

    def finish(self, path: Path, record: PatchRecord) -> None:
        """Write header and parts to ``path``."""
        metadata = {_METADATA: json.dumps(record.to_json(), separators=(",", ":"), ensure_ascii=False)}
        self._spool.seek(0)
        with path.open("wb") as file:
            file.write(Header(self._entries, metadata, 0).encode())
            shutil.copyfileobj(self._spool, file, 1 << 24)

    def _write(self, key: str, part: str, data: bytes) -> str:
        codec, packed = pack(data)
        start = self._spool.tell()
        self._spool.write(packed)
        self._entries[f"{key}:{part}"] = Entry("U8", (len(packed),), start, start + len(packed))
        return codec


@contextmanager
def writing_patch(out: Path) -> Iterator[tuple[PatchWriter, Path]]:
    """A writer, and the temporary path to give to its ``finish``; the file appears at ``out`` when the block ends well.

    Raises:
        ActError: The file system refuses.
    """
    with wrap_os_errors(out), atomic_file(out) as temporary, TemporaryFile(dir=temporary.parent) as spool:
        yield PatchWriter(spool), temporary


@dataclass(frozen=True)
class PatchFile:
    """A patch that has been opened: what it says about itself has been read, its parts have not.

    Attributes:
        path: The file.
        record: Its metadata.
        header: Where its parts stand.
    """

    path: Path
    record: PatchRecord
    header: Header

    def cover(self, key: str) -> ChangedRegion:
        """Which rows and columns of the tensor ``key`` the patch holds.

        Raises:
            ActError: The patch is damaged.
        """
        height, width = grid_of(self.record.tensors[key].shape)
        return ChangedRegion(self._mask(key, "rows", height), self._mask(key, "columns", width))

    def changes(self, key: str) -> tuple[ChangedRegion, Words]:
        """The cover of the tensor ``key``, and the XOR of base and result on it, ``[size]``.

        Raises:
            ActError: The patch is damaged.
        """
        cover, word = self.cover(key), word_of(self.record.tensors[key].dtype)
        parts = [self._part(key, f"xor{plane}", cover.size()) for plane in range(word.itemsize)]
        return cover, from_planes(parts, word)

    def _mask(self, key: str, part: str, count: int) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._part(key, part, (count + 7) // 8), np.uint8)
        return np.unpackbits(bits, count=count).astype(np.bool_)

    def _part(self, key: str, part: str, size: int) -> bytes:
        try:
            entry = self.header.entries[f"{key}:{part}"]
            with self.path.open("rb") as file:
                file.seek(self.header.data_start + entry.start)
                return unpack(self.record.tensors[key].codecs[part], file.read(entry.size), size)
        except (KeyError, ValueError, OSError) as error:
            problem = f"must hold {part} of {key} undamaged ({error})"
            raise ActError(ConfigIssue("patch", str(self.path), problem, "Download or make it again.")) from error


def open_patch(path: Path) -> PatchFile:
    """Read what a patch says about itself.

    Raises:
        ActError: There is no such file; it is truncated, no safetensors file, no patch, or of a later format.
    """
    header = read_header(path)
    text = header.metadata.get(_METADATA)
    if text is None:
        problem = "must be an ability patch, and is another safetensors file"
        raise ActError(ConfigIssue("patch", str(path), problem, "Name a file that `patch make` has written."))
    try:
        values = json.loads(text)
        record = PatchRecord.from_json(values) if values["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"must have a readable record ({error!r})"
        raise ActError(ConfigIssue("patch", str(path), problem, "Download or make it again.")) from error
    if record is None:
        problem = f"must have format {FORMAT}, and has {values['format']}"
        raise ActError(ConfigIssue("patch", str(path), problem, "Use the version of act-lightning that made it."))
    return PatchFile(path, record, header)
