"""Masked merging once more, slowly: task arithmetic one rounded float32 at a time, other methods in float64."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tests.reference.channels import moved
from tests.reference.masks import whole_part

Array = npt.NDArray[Any]


def to_numbers(tensor: Tensor) -> list[np.float32]:
    """The values as float32 numbers; of bfloat16, by putting its bits into the upper half."""
    if tensor.dtype == torch.bfloat16:
        bits = tensor.flatten().view(torch.uint16).numpy().astype(np.uint32) << 16
        return list(bits.view(np.float32))
    return list(tensor.flatten().numpy())


def to_bits(number: np.float32, dtype: torch.dtype) -> int:
    """The bits of a float32 in ``dtype``: for bfloat16 the upper half, rounded to nearest, ties to even."""
    bits = int(number.view(np.uint32))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 if dtype == torch.bfloat16 else bits


def merge(target: Tensor, sources: Sequence[tuple[Tensor, float, Tensor]]) -> Tensor:
    """The merged tensor; each source is its weights, its scale λ, and a bool per element."""
    integers = torch.uint16 if target.dtype == torch.bfloat16 else torch.uint32
    before = to_numbers(target)
    after = target.flatten().view(integers).tolist()
    offers = [(to_numbers(source), np.float32(scale), mask.flatten().tolist()) for source, scale, mask in sources]
    for i, old in enumerate(before):
        products = [scale * (new[i] - old) for new, scale, mask in offers if mask[i]]
        if products:
            change = products[0]
            for product in products[1:]:
                change = change + product
            if change != 0:  # else even the sign of a zero stays
                after[i] = to_bits(old + change, target.dtype)
    return torch.tensor(after, dtype=torch.int64).to(integers).view(target.dtype).view(target.shape)


def merge_models(target: nn.Module, sources: Sequence[tuple[nn.Module, float, Collection[int]]]) -> dict[str, Tensor]:
    """Every distinct parameter after the transfer; each source is a model, its scale and its channel numbers."""
    marks = [moved(target, chosen) for _, _, chosen in sources]
    weights = [dict(source.named_parameters()) for source, _, _ in sources]
    scales = [scale for _, scale, _ in sources]
    return {
        name: merge(
            parameter.detach(),
            [(w[name].detach(), scale, m[name]) for w, scale, m in zip(weights, scales, marks, strict=True)],
        )
        for name, parameter in target.named_parameters()
    }


# Other methods than task arithmetic, in float64, on the whole of one tensor


@dataclass
class Offer:
    """What a source offers for one tensor: δ, its λ, a bool for each element, its name, its Fisher information."""

    delta: Array
    scale: float
    mask: Array
    source: str
    fisher: Array | None = None


@dataclass
class Drawing:
    """Where draws stand: one tensor of one run."""

    name: str
    seed: int

    def bits(self, source: str, shape: tuple[int, ...]) -> Array:
        """32 bits for each element, from its row and its place in the row, by Python's integers."""
        digest = hashlib.sha256(f"{self.seed}\0{source}\0{self.name}".encode()).digest()
        keys = [int.from_bytes(digest[at : at + 4], "little") for at in (0, 4)]
        by_row = [triple32(row + keys[0]) for row in range(shape[0])]
        by_column = [triple32(column + keys[1]) for column in range(int(np.prod(shape[1:])))]
        return np.array([[triple32(one + other) for other in by_column] for one in by_row]).reshape(shape)


def triple32(x: int) -> int:
    """A hash of 32 bits (https://nullprogram.com/blog/2018/07/31/)."""
    x &= 0xFFFFFFFF
    x = (x ^ x >> 17) * 0xED5AD4BB & 0xFFFFFFFF
    x = (x ^ x >> 11) * 0xAC4C1B51 & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x31848BAB & 0xFFFFFFFF
    return x ^ x >> 14


def largest_first(offer: Offer) -> list[int]:
    """Positions of the selected elements, largest |δ| first, equal ones in their order."""
    flat, mask = offer.delta.flatten(), offer.mask.flatten()
    return sorted((i for i in range(flat.size) if mask[i]), key=lambda i: (-abs(flat[i]), i))


def only(offer: Offer, positions: Sequence[int]) -> Array:
    kept = np.zeros(offer.delta.size)
    kept[list(positions)] = offer.delta.flatten()[list(positions)]
    return kept.reshape(offer.delta.shape)


def trimmed(offer: Offer, density: float) -> Array:
    order = largest_first(offer)
    return only(offer, order[: max(1, whole_part(len(order), str(density)))] if density and order else [])


def crumbs(offer: Offer, density: float, outliers: float) -> Array:
    order = largest_first(offer)
    count = max(1, whole_part(len(order), str(density))) if density and order else 0
    skip = min(whole_part(len(order), str(outliers)), len(order) - count)
    return only(offer, order[skip : skip + count])


def dropped(offer: Offer, density: float, drawing: Drawing) -> Array:
    kept = drawing.bits(offer.source, offer.delta.shape) % 2**31 >= 2**31 - int(density * 2**31)
    return np.where(kept & offer.mask, offer.delta / (density or 1), 0)


def dropped_by_rank(offer: Offer, density: float, spread: float, drawing: Drawing) -> Array:
    shape = offer.delta.shape
    rows = (1, -1) if len(shape) < 2 else (shape[0], -1)
    delta, mask = offer.delta.reshape(rows), offer.mask.reshape(rows)
    draws = (drawing.bits(offer.source, shape) >> 8).reshape(rows) / 2**24
    found = np.zeros_like(delta)
    for row in range(len(delta)):
        order = sorted(np.flatnonzero(mask[row]), key=lambda i: (abs(delta[row, i]), i))
        for rank, i in enumerate(order):
            chance = density - spread + 2 * spread * (rank / (len(order) - 1) if len(order) > 1 else 0.5)
            found[row, i] = delta[row, i] / chance if draws[row, i] < chance else 0
    return found.reshape(shape)


def elected(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    products = [part * weight for part, weight in zip(parts, weights, strict=True)]
    sign = np.where(sum(products) >= 0, 1, -1)
    agreeing = [np.sign(product) == sign for product in products]
    total = sum(np.where(agrees, product, 0) for agrees, product in zip(agreeing, products, strict=True))
    weight = sum(agrees * w for agrees, w in zip(agreeing, weights, strict=True))
    return np.asarray(total / np.where(weight == 0, 1, weight))


def fisher_average(offers: Sequence[Offer], weights: Sequence[float], target: Array) -> Array:
    shares = [np.where(offer.mask, offer.fisher, 0) * w for offer, w in zip(offers, weights, strict=True)]
    total = target + sum(shares)
    change = sum(share * offer.delta for share, offer in zip(shares, offers, strict=True))
    return np.asarray(np.divide(change, total, out=np.zeros_like(change), where=total > 0))


def change_by(method: str, offers: Sequence[Offer], scale: float, drawing: Drawing, target_fisher: Array) -> Array:
    """What the method called ``method`` makes of ``offers`` with its default settings."""
    weights = [offer.scale / scale for offer in offers]
    match method:
        case "ties":
            return scale * elected([trimmed(offer, 0.2) for offer in offers], weights)
        case "dare":
            return np.asarray(sum(dropped(offer, 0.1, drawing) * offer.scale for offer in offers))
        case "dare_ties":
            return scale * elected([dropped(offer, 0.1, drawing) for offer in offers], weights)
        case "breadcrumbs":
            return np.asarray(sum(crumbs(offer, 0.9, 0.01) * offer.scale for offer in offers))
        case "della":
            return scale * elected([dropped_by_rank(offer, 0.5, 0.15, drawing) for offer in offers], weights)
        case "fisher":
            return scale * fisher_average(offers, weights, target_fisher)
    return np.asarray(sum(np.where(offer.mask, offer.delta * offer.scale, 0) for offer in offers))
