"""From scores to masks: rank, select, join, compare; and how stable a mask is under other samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, ConfigIssue, raise_if_any


def ratio_count(count: int, ratio: float | Fraction) -> int:
    """The whole part of ``count · ratio``, with the ratio taken as the decimal that is written.

    >>> ratio_count(1750528, 0.01), ratio_count(100, 0.29)
    (17505, 29)
    """
    return int(count * Fraction(str(ratio)))


def ratio_issues(ratio: float | Fraction, setting: str = "transfer.ratio") -> list[ConfigIssue]:
    """What is wrong with a ratio: it must be a finite number in (0, 1]."""
    if isinstance(ratio, bool) or not 0 < ratio <= 1:
        hint = "Write the share to select, such as 0.01 for one percent."
        return [ConfigIssue(setting, ratio, "must lie in (0, 1]", hint)]
    return []


def eligible_channels(inventory: ChannelInventory, include: Iterable[str], exclude: Iterable[str]) -> Tensor:
    """The channels that may be selected: those of modules that match a pattern of ``include``, and none of ``exclude``.

    Args:
        inventory: The channels of the model.
        include: fnmatch patterns on full names of modules, or of parameters without a channel; ``*`` for all.
        exclude: The same for modules to leave out.

    Returns:
        Bool ``[channels]``.

    Raises:
        ActError: If a pattern matches no module, or nothing is left.
    """
    names = [module.name for module in inventory.modules]
    known = [*names, *(text for name in inventory.unowned for text in (name, name.rpartition(".")[0]))]
    matches = {
        setting: {pattern: {name for name in known if fnmatchcase(name, pattern)} for pattern in patterns}
        for setting, patterns in (("transfer.include", include), ("transfer.exclude", exclude))
    }
    problem = f"must match at least one of the {len(names)} modules that own channels"
    hint = f"Full names look like {names[len(names) // 2]!r} and {names[-1]!r}; * stands for any characters."
    raise_if_any(
        ConfigIssue(setting, pattern, problem, hint)
        for setting, patterns in matches.items()
        for pattern, matched in patterns.items()
        if not matched
    )
    included, excluded = (set[str]().union(*patterns.values()) for patterns in matches.values())
    left = included - excluded
    eligible = torch.cat([torch.full((module.count,), module.name in left) for module in inventory.modules])
    if not eligible.any():
        setting = "transfer.exclude" if included else "transfer.include"
        problem, hint = "must leave some channels", "Remove a pattern of exclude, or add one to include ('*' for all)."
        raise ActError(ConfigIssue(setting, list(matches[setting]), problem, hint))
    return eligible


def rank(scores: Tensor, allowed: Tensor) -> Tensor:
    """Channel numbers from the highest score to the lowest; ties go to the lower number.

    Args:
        scores: float32 ``[channels]``, finite.
        allowed: Bool ``[channels]``; others are left out.

    Returns:
        int64 ``[allowed.sum()]``.
    """
    numbers = allowed.nonzero().squeeze(1)
    return numbers[torch.sort(scores[numbers], descending=True, stable=True).indices]


def top_channels(scores: Tensor, ratio: float | Fraction, allowed: Tensor) -> Tensor:
    """The mask of the ⌊n·p⌋ highest scores among the ``n`` allowed channels; ties go to the lower number.

    Args:
        scores: float32 ``[channels]``, finite.
        ratio: p in (0, 1].
        allowed: Bool ``[channels]``.

    Returns:
        Bool ``[channels]``.

    >>> top_channels(torch.tensor([1.0, 3.0, 3.0, 2.0]), 0.5, torch.ones(4, dtype=torch.bool)).tolist()
    [False, True, True, False]
    """
    numbers = allowed.nonzero().squeeze(1)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    k = ratio_count(numbers.numel(), ratio)
    if k:
        values = scores[numbers]
        threshold = torch.kthvalue(values, values.numel() - k + 1).values  # faster than a full sort
        above, tied = numbers[values > threshold], numbers[values == threshold]
        mask[above] = True
        mask[tied[: k - above.numel()]] = True
    return mask


def top_per_module(scores: Tensor, ratio: float | Fraction, allowed: Tensor, inventory: ChannelInventory) -> Tensor:
    """Like :func:`top_channels`, with the same share of every module; small modules may get none."""
    mask = torch.zeros_like(allowed)
    for _, span in inventory.spans():
        mask[span] = top_channels(scores[span], ratio, allowed[span])
    return mask


def top_by_parameters(scores: Tensor, ratio: float | Fraction, allowed: Tensor, inventory: ChannelInventory) -> Tensor:
    """The channels of the highest scores, as many as fit into ⌊N·p⌋ distinct parameters of the N allowed ones.

    A channel that is too large for what is left, such as a column of an embedding, is passed over for smaller ones of
    lower scores. An element that a row and a column of a tied matrix both select counts once.
    """
    order, sizes = rank(scores, allowed), inventory.sizes()
    owned = [(parameter.name, parameter.dim, span) for module, span in inventory.spans() for parameter in module.owned]
    by_rows, by_columns = ({name for name, dim, _ in owned if dim == counted} for counted in (0, 1))
    crossings = []  # of each tied matrix, whose selected rows and columns meet in elements that are counted twice
    for tied in by_rows & by_columns:
        rows, columns = torch.zeros(2, inventory.total, dtype=torch.int64)
        for name, dim, span in owned:
            if name == tied:
                (rows if dim == 0 else columns)[span] = 1
        crossings.append((rows, columns))
    budget = ratio_count(inventory.count_elements(allowed), ratio)
    while True:
        spent = torch.cumsum(sizes[order], 0)
        for rows, columns in crossings:
            spent -= torch.cumsum(rows[order], 0) * torch.cumsum(columns[order], 0)
        count = int((spent <= budget).sum())
        taken, rest = order[:count], order[count:]
        costs = sizes[rest]
        for rows, columns in crossings:
            costs -= rows[rest] * columns[taken].sum() + columns[rest] * rows[taken].sum()
        # what does not fit now will not fit later: every further channel takes more room than it saves
        order = torch.cat([taken, rest[costs <= budget - (spent[count - 1] if count else 0)]])
        if len(order) == count:
            break
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order] = True
    return mask


def random_scores(total: int, *key: object) -> Tensor:
    """Scores that rank channels at random, reproducibly from ``key`` (such as a seed, a source and an ability).

    Returns:
        float32 ``[total]`` in [0, 1).
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(total, generator=generator)


def union(masks: Sequence[Tensor]) -> Tensor:
    """The channels that any of ``masks`` (each bool ``[channels]``) selects."""
    return torch.stack(list(masks)).any(0)


def overlap(row: Tensor, column: Tensor) -> float:
    """Share of the channels of ``row`` that ``column`` also selects (paper Table 1: normalized by the row's mask).

    >>> overlap(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    0.5
    """
    selected = int(row.sum())
    return float((row & column).sum()) / selected if selected else 0.0


Choose = Callable[[Tensor], Tensor]
"""Makes a mask of scores, ``[channels]`` both."""


def scores_of(chunks: Tensor, tokens: Sequence[int], times: Tensor | None = None) -> Tensor:
    """The scores of several chunks: the mean of their scores, weighted by their tokens.

    Args:
        chunks: Scores of each chunk, ``[chunks, channels]``.
        tokens: Answer tokens of each.
        times: How often each counts, ``[chunks]``; by default once.

    Returns:
        float32 ``[channels]``.

    >>> scores_of(torch.tensor([[1.0, 0.0], [4.0, 3.0]]), [2, 1]).tolist()
    [2.0, 1.0]
    """
    weights = torch.tensor(list(tokens), dtype=torch.float64)
    weights = weights if times is None else weights * times
    shares = weights / weights.sum()
    total = torch.zeros(chunks.shape[1], dtype=torch.float64)
    for share, scores in zip(shares.tolist(), chunks, strict=True):
        if share:
            total += share * scores.double()
    return total.float()


def bootstrap_overlaps(
    chunks: Tensor, tokens: Sequence[int], choose: Choose, repeats: int = 20, seed: int = 0
) -> list[float]:
    """Share of the mask that as many chunks, drawn with replacement, select again.

    Args:
        chunks: Scores of each chunk, ``[chunks, channels]``.
        tokens: Answer tokens of each.
        choose: Makes a mask of scores.
        repeats: How often chunks are drawn.
        seed: Seed of the draws.

    Returns:
        One overlap for each draw.
    """
    mask, generator, count = choose(scores_of(chunks, tokens)), torch.Generator().manual_seed(seed), len(chunks)
    overlaps = []
    for _ in range(repeats):
        times = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)
        overlaps.append(overlap(mask, choose(scores_of(chunks, tokens, times))))
    return overlaps


def split_half_overlaps(
    chunks: Tensor, tokens: Sequence[int], choose: Choose, repeats: int = 20, seed: int = 0
) -> list[float]:
    """Share of the mask of one random half of the chunks that the other half selects, too.

    The halves share no sample, so this is the agreement of two measurements of half the size. Of an odd number of
    chunks one is left out. See :func:`bootstrap_overlaps` for the arguments.

    Returns:
        One overlap for each split; none of fewer than two chunks.
    """
    generator, half = torch.Generator().manual_seed(seed), len(chunks) // 2
    if not half:
        return []
    overlaps = []
    for _ in range(repeats):
        order = torch.randperm(len(chunks), generator=generator)
        halves = order[:half], order[half : 2 * half]
        overlaps.append(overlap(*(_mask_of(chunks, tokens, choose, numbers) for numbers in halves)))
    return overlaps


class SubsetOverlap(NamedTuple):
    """How much of the whole mask some of the samples select.

    Attributes:
        chunks: How many chunks were used.
        samples: How many samples these have, on average.
        overlaps: Share of the whole mask that they select, one for each draw.
    """

    chunks: int
    samples: float
    overlaps: list[float]


def overlap_by_samples(
    chunks: Tensor,
    tokens: Sequence[int],
    samples: Sequence[int],
    choose: Choose,
    repeats: int = 20,
    seed: int = 0,
) -> list[SubsetOverlap]:
    """The overlap of the whole mask with that of 1, 2, 4 … random chunks (``repeats`` of each number), and of all.

    The samples of a subset are among those of the whole, which flatters large subsets: see
    :func:`split_half_overlaps` for fresh samples, and :func:`bootstrap_overlaps` for the arguments.
    """
    mask, generator, count = choose(scores_of(chunks, tokens)), torch.Generator().manual_seed(seed), len(chunks)
    result, size = [], 1
    while size < count:
        subsets = [torch.randperm(count, generator=generator)[:size] for _ in range(repeats)]
        overlaps = [overlap(mask, _mask_of(chunks, tokens, choose, subset)) for subset in subsets]
        used = [sum(samples[number] for number in subset.tolist()) for subset in subsets]
        result.append(SubsetOverlap(size, sum(used) / len(used), overlaps))
        size *= 2
    return [*result, SubsetOverlap(count, float(sum(samples)), [1.0])]


def _mask_of(chunks: Tensor, tokens: Sequence[int], choose: Choose, numbers: Tensor) -> Tensor:
    return choose(scores_of(chunks[numbers], [tokens[number] for number in numbers.tolist()]))
