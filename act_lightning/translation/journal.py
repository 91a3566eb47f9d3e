"""Every reply that was paid for, on disk before it is used: a run that goes on after a kill pays for none twice."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from act_lightning.errors import ActError, ConfigIssue


@dataclass(frozen=True)
class Entry:
    """One reply.

    Attributes:
        key: Fingerprint of what was asked, and whom.
        model: Who replied.
        text: The reply, with marks.
        finish: Why it ends.
        input_tokens: Tokens that were sent.
        output_tokens: Tokens that came back.
    """

    key: str
    model: str
    text: str
    finish: str
    input_tokens: int
    output_tokens: int


class Journal:
    """A file of one JSON object a line, to which is only added; each line is on the disk when :meth:`add` returns.

    Args:
        path: The file; it is made if there is none.

    Raises:
        ActError: On entering, if another process writes it, or a line other than the last is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        self._file = -1

    def __enter__(self) -> Journal:
        """Lock and read the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            problem = "is being written by another run"
            raise ActError(
                ConfigIssue("translate.out", str(self.path), problem, "Wait for it, or name another folder.")
            ) from error
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            for entry in self._read():
                self._entries[entry.key].append(entry)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Unlock the file."""
        self._close()

    def of(self, key: str) -> list[Entry]:
        """The replies to one question, oldest first."""
        return list(self._entries.get(key, ()))

    def add(self, entry: Entry) -> None:
        """Write a reply to the disk.

        Raises:
            ActError: If the disk is full.
        """
        line = json.dumps(asdict(entry), ensure_ascii=False) + "\n"
        try:
            _write_all(self._file, line.encode())
            os.fsync(self._file)
        except OSError as error:
            hint = "Free some space, and run again: what stands in the file is kept."
            raise ActError(
                ConfigIssue("translate.out", str(self.path), f"cannot be written ({error})", hint)
            ) from error
        self._entries[entry.key].append(entry)

    def _read(self) -> Iterator[Entry]:
        """The whole lines; a last one without an end, which a killed run left, is taken off the file."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError) as error:
                shown, problem = line.decode(errors="replace"), f"is no entry of a ledger ({error})"
                raise ActError(ConfigIssue(f"{self.path}:{number}", shown, problem, "Delete the line.")) from error

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
