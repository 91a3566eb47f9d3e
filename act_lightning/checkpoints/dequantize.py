"""Checkpoints of fp8 blocks or mxfp4 written as plain floating-point weights, a tensor or an expert at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from act_lightning.checkpoints.export import bytes_bar, output_issues, require_space
from act_lightning.checkpoints.files import atomic_folder, no_wider_than, read_json, wrap_os_errors
from act_lightning.checkpoints.manifest import write_manifest
from act_lightning.checkpoints.weight_files import (
    CONFIG,
    INDEX,
    Entry,
    Header,
    aux_files,
    check_finite,
    new_header,
    read_headers,
)
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_SCALE, _BLOCKS, _SCALES = "_scale_inv", "_blocks", "_scales"
_FP8 = "F8_E4M3"
_PLAIN_SCALES = ("F32", "BF16", "F16")
_HINT = "Give a checkpoint of fp8 blocks or mxfp4 as the hub has it, or the original, unquantized model."


def dequantize(model: Path, out: Path, dtype: torch.dtype, overwrite: bool = False) -> dict[str, int]:
    """Write ``model`` with plain weights to ``out``, in its own shards and with its own keys.

    fp8: w · weight_scale_inv of its block (``weight_block_size``), in float32 and rounded once. mxfp4: packed experts
    by transformers' own conversion. Other tensors are copied, byte for byte; scales, and the config's
    ``quantization_config``, are left out.

    Args:
        model: The folder of the quantized checkpoint.
        out: The folder to write.
        dtype: That of the weights that were quantized.
        overwrite: Whether an earlier export in ``out`` may be replaced.

    Returns:
        How many tensors were dequantized, by the kind of their quantization.

    Raises:
        ActError: The weights are quantized otherwise or not at all, a scale is missing, a value is not finite, or
            ``out`` cannot be written.
    """
    raise_if_any(output_issues(out, model, "--out", (), overwrite))
    config = read_json(model / CONFIG)
    blocks = _block_sizes(config, model)
    headers = read_headers(model, "--model")
    source = _Source(model, headers)
    kept = {file: list(_kept(header, source, blocks, dtype)) for file, header in headers.items()}
    written = {file: new_header({key: (dtype, shape) for key, dtype, shape, _ in rows}) for file, rows in kept.items()}
    require_space(out, written)
    counts = {"fp8": 0, "mxfp4": 0}
    total = sum(header.data_size for header in written.values())
    with no_wider_than(model), atomic_folder(out) as folder, bytes_bar("Dequantizing", total) as bar:
        index = {}
        for file, header in written.items():
            kinds = {key: kind for key, _, _, kind in kept[file]}
            with wrap_os_errors(folder / file), (folder / file).open("wb") as opened:
                opened.write(header.encode())
                for key, entry in header.entries.items():
                    for values in source.values(key, kinds[key], blocks, dtype):
                        check_finite(values, str(model / file), key)
                        opened.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)
                    bar.update(entry.size)
                    index[key] = file
                    if kinds[key]:
                        counts[kinds[key]] += 1
        config.pop("quantization_config")
        config["dtype"] = str(dtype).removeprefix("torch.")
        config.pop("torch_dtype", None)
        for path in aux_files(model):
            (folder / path.relative_to(model)).parent.mkdir(exist_ok=True)
            (folder / path.relative_to(model)).write_bytes(path.read_bytes())
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if (model / INDEX).is_file():
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
            (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_manifest(folder)
    return counts


def _block_sizes(config: Any, model: Path) -> tuple[int, int] | None:  # noqa: ANN401 - any JSON
    """Height and width of an fp8 block; ``None`` of mxfp4.

    Raises:
        ActError: The config names another quantization, or none.
    """
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if isinstance(settings, dict) and method == "fp8" and settings.get("activation_scheme", "dynamic") == "dynamic":
        size = settings.get("weight_block_size")
        if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
            return size[0], size[1]
    if method == "mxfp4":
        return None
    problem = f"must have a quantization_config of fp8 blocks or mxfp4, and has {settings!r}"
    raise ActError(ConfigIssue("--model", str(model), problem, _HINT))


def _kept(
    header: Header, source: _Source, blocks: tuple[int, int] | None, dtype: torch.dtype
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], str]]:
    """Key, dtype and shape of every tensor to write for a file, and how it is quantized: ``fp8``, ``mxfp4`` or "".

    Raises:
        ActError: A scale is missing or has another shape, or a tensor is quantized otherwise.
    """
    for key, entry in header.entries.items():
        if key.endswith(_SCALE) and key.removesuffix(_SCALE) in source.entries:
            continue
        if key.endswith(_SCALES) and f"{key.removesuffix(_SCALES)}{_BLOCKS}" in source.entries:
            continue
        if entry.code == _FP8 and blocks is not None:
            source.require(f"{key}{_SCALE}", tuple(map(ceil, (entry.shape[0] / blocks[0], entry.shape[1] / blocks[1]))))
            yield key, dtype, entry.shape, "fp8"
        elif key.endswith(_BLOCKS) and entry.code == "U8" and blocks is None and len(entry.shape) == 4:
            name = key.removesuffix(_BLOCKS)
            source.require(f"{name}{_SCALES}", entry.shape[:3], ("U8",))
            experts, rows, groups, width = entry.shape
            yield name, dtype, (experts, groups * width * 2, rows), "mxfp4"
        elif entry.dtype.is_floating_point or entry.dtype in (torch.int64, torch.int32, torch.bool):
            yield key, entry.dtype, entry.shape, ""
        else:
            problem = f"must be plain, or in fp8 blocks or mxfp4, and is {entry.code} {list(entry.shape)}"
            raise ActError(ConfigIssue(str(source.folder), key, problem, _HINT))


class _Source:
    """The tensors of a quantized checkpoint, read by rows."""

    def __init__(self, folder: Path, headers: Mapping[str, Header]) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {key: entry for h in headers.values() for key, entry in h.entries.items()}
        self._files = {key: folder / file for file, header in headers.items() for key in header.entries}

    def require(self, key: str, shape: tuple[int, ...], codes: tuple[str, ...] = _PLAIN_SCALES) -> None:
        """Raise unless scales of this ``shape`` are stored under ``key``."""
        entry = self.entries.get(key)
        if entry is None or entry.shape != shape or entry.code not in codes:
            found = "is missing" if entry is None else f"is {entry.code} {list(entry.shape)}"
            problem = f"must hold scales {list(shape)} of {' or '.join(codes)}, and {found}"
            raise ActError(ConfigIssue(str(self.folder), key, problem, _HINT))

    def values(self, key: str, kind: str, blocks: tuple[int, int] | None, dtype: torch.dtype) -> Iterator[Tensor]:
        """The values of a tensor to write, some of its first dimension at a time."""
        if kind == "mxfp4":
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            for expert in range(self.entries[f"{key}{_BLOCKS}"].shape[0]):
                packed, scales = (self._rows(f"{key}{part}", expert, expert + 1) for part in (_BLOCKS, _SCALES))
                yield convert_moe_packed_tensors(packed, scales, dtype=dtype)
        elif kind == "fp8":
            assert blocks is not None
            (rows, columns), (height, width) = self.entries[key].shape, blocks
            for number in range(ceil(rows / height)):
                scales = self._rows(f"{key}{_SCALE}", number, number + 1)[0].float().repeat_interleave(width)[:columns]
                weights = self._rows(key, number * height, min(rows, (number + 1) * height))
                yield (weights.float() * scales).to(dtype)
        else:
            yield self._rows(key, 0, None)

    def _rows(self, key: str, start: int, stop: int | None) -> Tensor:
        with safe_open(self._files[key], framework="pt") as file:
            if stop is None:
                whole: Tensor = file.get_tensor(key)
                return whole
            rows: Tensor = file.get_slice(key)[start:stop]
            return rows
