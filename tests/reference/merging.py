"""Masked task arithmetic once more, slowly: one element at a time, each operation a rounded float32 of numpy."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.channels import moved


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
