"""Which weights these are: a short digest that tells one model from another without reading it all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from act_lightning.checkpoints.headers import Header, read_headers
from act_lightning.errors import ActError, ConfigIssue

_SAMPLE = 64 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Identity:
    """What is known of a model's weights.

    Attributes:
        digest: SHA-256 over headers, file sizes and the first 64 KiB of every tensor, as hexadecimal digits. A copy
            elsewhere has the same digest.
        commit: The hub commit, when the folder lies in the hub's cache; not part of the digest.
        files: The size in bytes of each weight file; empty for weights in memory.
        sha256: The SHA-256 of each whole file, where all was read.
    """

    digest: str
    commit: str | None
    files: Mapping[str, int]
    sha256: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values.

        >>> identity = Identity("ab12", None, {"model.safetensors": 10})
        >>> Identity.from_json(identity.to_json()) == identity
        True
        """
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Identity:
        """The inverse of :meth:`to_json`."""
        return cls(values["digest"], values["commit"], dict(values["files"]), values["sha256"])


def identify(folder: Path, verify: bool = False) -> Identity:
    """The identity of the weights in ``folder``.

    Args:
        folder: A Hugging Face folder with safetensors weights.
        verify: Also read all bytes, for the SHA-256 of every file.

    Raises:
        ActError: Weights are missing or truncated.
    """
    headers = read_headers(folder, str(folder))
    digest = hashlib.sha256(b"files")
    for file, header in headers.items():
        for part in _file_sample(folder / file, header):
            digest.update(part)
    commit = folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None
    sizes = {file: (folder / file).stat().st_size for file in headers}
    return Identity(digest.hexdigest(), commit, sizes, _whole(folder, headers) if verify else None)


def identify_module(model: nn.Module) -> Identity:
    """The identity of weights in memory: names, shapes, dtypes and the first 64 KiB of every parameter.

    It never equals that of a folder, whose files say more.

    Raises:
        ActError: A parameter has no values yet (meta device).
    """
    digest = hashlib.sha256(b"module")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            problem = "must have values, and is on the meta device"
            raise ActError(ConfigIssue("model", name, problem, "Load the weights, or name the model by its folder."))
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(_first_bytes(parameter))
    return Identity(digest.hexdigest(), None, {})


def _file_sample(path: Path, header: Header) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield f"{path.name} {path.stat().st_size}\n".encode()
        yield file.read(header.data_start)
        for entry in header.entries.values():
            file.seek(header.data_start + entry.start)
            yield file.read(min(entry.size, _SAMPLE))


def _whole(folder: Path, headers: Mapping[str, Header]) -> dict[str, str]:
    hashes = {}
    for name in headers:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _first_bytes(parameter: Tensor) -> bytes:
    count = _SAMPLE // parameter.element_size()
    values = parameter.detach().reshape(-1)[:count].cpu().contiguous()
    return values.view(torch.uint8).numpy().tobytes()
