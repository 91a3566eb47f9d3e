"""A patch on disk: a safetensors file of packed parts, written as it grows, read a tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from act_lightning.checkpoints import replacing_file
from act_lightning.checkpoints.atomic import storing
from act_lightning.checkpoints.header import Entry, Header, read_header
from act_lightning.errors import ActError, Fault
from act_lightning.patches.codec import from_planes, pack, planes, unpack
from act_lightning.patches.cover import Cover, cover_of
from act_lightning.patches.record import FORMAT, PatchRecord, TensorChange
from act_lightning.patches.stored import StoredTensor, Words, grid_of, word_of

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
        cover = cover_of(changes)
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
    with storing(out), replacing_file(out) as temporary, TemporaryFile(dir=temporary.parent) as spool:
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

    def cover(self, key: str) -> Cover:
        """Which rows and columns of the tensor ``key`` the patch holds.

        Raises:
            ActError: The patch is damaged.
        """
        height, width = grid_of(self.record.tensors[key].shape)
        return Cover(self._mask(key, "rows", height), self._mask(key, "columns", width))

    def changes(self, key: str) -> tuple[Cover, Words]:
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
            rule = f"must hold {part} of {key} undamaged ({error})"
            raise ActError(Fault("patch", str(self.path), rule, "Download or make it again.")) from error


def open_patch(path: Path) -> PatchFile:
    """Read what a patch says about itself.

    Raises:
        ActError: There is no such file; it is truncated, no safetensors file, no patch, or of a later format.
    """
    header = read_header(path)
    text = header.metadata.get(_METADATA)
    if text is None:
        rule = "must be an ability patch, and is another safetensors file"
        raise ActError(Fault("patch", str(path), rule, "Name a file that `patch make` has written."))
    try:
        values = json.loads(text)
        record = PatchRecord.from_json(values) if values["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"must have a readable record ({error!r})"
        raise ActError(Fault("patch", str(path), rule, "Download or make it again.")) from error
    if record is None:
        rule = f"must have format {FORMAT}, and has {values['format']}"
        raise ActError(Fault("patch", str(path), rule, "Use the version of act-lightning that made it."))
    return PatchFile(path, record, header)
