"""ACT once more, slowly: one sample at a time, no padding, one position, one channel, one element at a time.

Nothing of the package is used here. Scores are summed in float64 of exact differences, masks come from Python's sort
(:mod:`tests.reference.masks`), merged weights from numpy's float32 scalars, updates from a plain torch loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.reference import masks
from tests.reference.channels import ROUTERS, channels, moved
from tests.reference.experts import inside

Sample = tuple[list[int], list[int]]  # token ids; labels, of which −100 marks what is no answer token
IGNORED = -100
GATED_HEADS = 4  # of the recurrent layers of tests.model_types
HEADS_FIRST = "Gemma3RMSNorm"  # q_norm and k_norm are called on [rows, heads, length, channels] there


def outputs(model: Any, ids: Sequence[int]) -> dict[str, list[Tensor]]:
    """What every module with parameters gives for one sequence: for each position, ``[times, channels]``."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            found[name] = by_position(module, output if output.ndim == 2 else output[0])

        return hook

    seen = {name: module for name, module, i in channels(model) if i == 0 and isinstance(module, nn.Module)}
    modules = [(name, module) for name, module in seen.items() if type(module).__name__ not in (*ROUTERS, "Conv1d")]
    handles = [module.register_forward_hook(keep(name)) for name, module in modules]
    with torch.no_grad(), inside(model, found):
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


def by_position(module: nn.Module, output: Tensor) -> list[Tensor]:
    if type(module).__name__ == "Qwen3NextRMSNormGated":  # called on [tokens and heads, channels]
        return list(output.view(-1, GATED_HEADS, output.shape[-1]))
    if output.ndim == 2:
        return [vector.unsqueeze(0) for vector in output]
    heads_first = type(module).__name__ == HEADS_FIRST or isinstance(module, nn.Linear)  # as latent attention calls it
    return list(output.transpose(0, 1) if heads_first and output.ndim == 3 else output)


def scores(target: Any, source: Any, samples: Iterable[Sample]) -> list[float]:
    """Δa of every channel, in the order of ``named_modules``, as float32 holds it."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for ids, labels in samples:
        ours, theirs = outputs(target, ids), outputs(source, ids)
        for name in ours:
            for position, label in enumerate(labels):
                if label != IGNORED:
                    for a, b in zip(ours[name][position], theirs[name][position], strict=True):
                        sums[name] = sums.get(name, 0) + (a.double() - b.double()).abs()
                        counts[name] = counts.get(name, 0) + 1
    order = dict.fromkeys(name for name, _, _ in channels(target) if name in sums)  # a tower for images is not called
    return [value for name in order for value in (sums[name] / counts[name]).float().tolist()]


def saved_scores(path: Path, model: nn.Module) -> list[float]:
    """The scores in a file, in the order of the model's modules."""
    tensors = load_file(path)
    order = dict.fromkeys(name for name, _, _ in channels(model))
    assert set(tensors) == set(order)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    return [value for name in order for value in tensors[name].tolist()]


def chosen(values: Sequence[float], ratio: str) -> set[int]:
    """Numbers of the channels that a mask over all channels selects."""
    return {i for i, selected in enumerate(masks.top(values, ratio, [True] * len(values))) if selected}


def union_of(files: Iterable[Path], model: nn.Module, ratio: str) -> set[int]:
    """Numbers of the channels that the masks of several score files select together."""
    return {number for file in files for number in chosen(saved_scores(file, model), ratio)}


@dataclass
class Moving:
    """A source, the numbers of the channels that move from it, and λ."""

    model: nn.Module
    channels: Collection[int]
    scale: float


def merged(target: nn.Module, sources: Sequence[Moving], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Every distinct parameter after the transfer, rounded once to ``dtype`` (by default its own)."""
    marks = [moved(target, source.channels) for source in sources]
    theirs = [dict(source.model.named_parameters()) for source in sources]
    result = {}
    for name, parameter in target.named_parameters():
        before = parameter.detach().float().numpy()
        after = before.copy()
        others = [named[name].detach().float().numpy() for named in theirs]
        selected = [mark[name].numpy() for mark in marks]
        for place in np.argwhere(np.any(selected, axis=0)):
            at = tuple(place)
            amount = change(
                before[at], [(o[at], s.scale) for o, s, m in zip(others, sources, selected, strict=True) if m[at]]
            )
            if amount != 0:  # else even the sign of a zero stays
                after[at] = before[at] + amount
        result[name] = torch.from_numpy(after).to(dtype or parameter.dtype)
    return result


def change(old: np.float32, sources: Iterable[tuple[np.float32, float]]) -> np.float32:
    """Σ λ (θ_abl − θ_trg) of one element, every step rounded to float32."""
    terms = [np.float32(scale) * (value - old) for value, scale in sources]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def moved_count(model: nn.Module, numbers: Collection[int]) -> int:
    """How many distinct elements move with these channels, by marking every one."""
    return sum(int(mark.sum()) for mark in moved(model, numbers).values())


def bits(values: Tensor) -> Tensor:
    """The bytes of a tensor, for equality that tells −0 from 0."""
    return values.detach().contiguous().view(torch.uint8)


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(bits(found[name]), bits(values)), name


def mean_loss(model: Any, samples: Iterable[Sample]) -> Tensor:
    """−log p of every answer token given all before it, averaged over all of them: full logits, sample by sample."""
    terms = []
    for ids, labels in samples:
        logs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        for position in range(1, len(ids)):
            if labels[position] != IGNORED:
                terms.append(-logs[position - 1, labels[position]])
    return torch.stack(terms).mean()


def train(
    model: nn.Module, windows: Iterable[Sequence[Sample]], optimizer: torch.optim.Optimizer, clip: float | None = None
) -> None:
    """One update for each window of samples."""
    for window in windows:
        optimizer.zero_grad()
        mean_loss(model, window).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
