"""Finding 5: channels that act differently are not those whose weights changed most (paper §3.4, Tables 2, 6 to 10)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from act_lightning.analysis.saved import Pair
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.adapters import join_adapter, split_adapter
from act_lightning.checkpoints.compatibility import VocabularyMatch
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_delta import channel_sums
from act_lightning.checkpoints.weight_files import identify, is_weightless
from act_lightning.defaults import LABORATORY
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import top_channels


class NotOnDisk(Exception):
    """A model is missing, or has other weights than the scores were measured on; the text says which and why."""


def find_models(pair: Pair, folders: Mapping[str, Path]) -> tuple[Path, Path]:
    """The folders of target and source, with the weights that the scores were measured on.

    ``folders`` has folders of models, by the names in the score files.

    Raises:
        NotOnDisk: One of them is missing, or has other weights.
        ActError: A folder in ``folders`` does not hold the model's weights.
    """
    paths = []
    for role, name in zip(("target", "source"), pair.models, strict=True):
        identity = next(iter(pair.records.values())).identities.get(role, {})
        folder = folders[name] if name in folders else _find(name, identity.get("commit"))
        problem = _weight_problem(folder, identity.get("digest"))
        if problem and name in folders:
            problem = f"must be the folder of {name}, and {problem}"
            raise ActError(ConfigIssue("--model", str(folder), problem, "Correct the path."))
        if problem:
            raise NotOnDisk(problem)
        paths.append(folder)
    return paths[0], paths[1]


def _find(name: str, commit: str | None) -> Path:
    """The folder of a path, a laboratory's model, or a model in the hub's cache; nothing is fetched."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(LABORATORY):
        from act_lightning.lab.models import cached_folder, parse_name

        try:
            folder = cached_folder(*parse_name(name.removeprefix(LABORATORY)))
        except ActError as error:
            raise NotOnDisk(f"{name} is no model of the laboratory") from error
        if not folder.is_dir():
            raise NotOnDisk(f"{name} has not been built on this machine")
        return folder
    if parts := split_adapter(name):
        try:
            return join_adapter(_find(parts[0], commit), _find(parts[1], commit), parts[0], name)
        except ActError as error:
            raise NotOnDisk(f"{name} cannot be read ({error})") from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit or None, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotOnDisk(f"{name} is neither a folder here nor in the hub's cache") from error


def _weight_problem(folder: Path, digest: str | None) -> str:
    """Why a folder does not hold the weights of ``digest``; empty if it does."""
    if not folder.is_dir() or is_weightless(folder):
        return f"{folder} holds no weights"
    try:
        same = identify(folder).digest == digest
    except ActError as error:
        return f"the weights in {folder} cannot be read ({error})"
    return "" if same else f"the weights in {folder} are not those that the scores were measured on"


def weight_change(
    target: CheckpointReader,
    source: CheckpointReader,
    inventory: ChannelInventory,
    match: VocabularyMatch | None = None,
    quiet: bool = False,
) -> Tensor:
    """The ℓ2 norm of the difference of all weights that a channel owns: its row, its bias, an embedding's column.

    Both models are read a block of rows at a time, in float32, with squares summed in float64; ``inventory`` holds the
    target's channels with what they own, and ``match`` the source's vocabulary entries if they are numbered otherwise:
    what the source lacks has not changed. Returns float32 ``[channels]``.

    Raises:
        ActError: A weight is NaN or infinite.
    """
    return channel_sums(torch.square, target, source, inventory, match, quiet).sqrt().float()


def agreement(scores: Mapping[str, Tensor], change: Tensor, ratio: float = 0.01) -> pd.DataFrame:
    """How far rankings by score and by weight change, both float32 ``[channels]``, agree, a row per ability (Table 2).

    Columns: ``overlap`` (of the top p of both), ``shared`` channels, ``chance`` (k / n) and ``rank correlation``
    (Spearman's ρ over all channels).
    """
    allowed = torch.ones_like(change, dtype=torch.bool)
    by_weight = top_channels(change, ratio, allowed)
    correlations = rank_correlations({"": change, **{f" {name}": values for name, values in scores.items()}}).loc[""]
    selected, rows = int(by_weight.sum()), {}
    for name, values in scores.items():
        shared = int((top_channels(values, ratio, allowed) & by_weight).sum())
        rows[name] = [shared / selected, shared, selected / values.numel(), correlations[f" {name}"]]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["overlap", "shared", "chance", "rank correlation"])
    return frame.astype({"shared": int})


def rank_correlations(scores: Mapping[str, Tensor]) -> pd.DataFrame:
    """Spearman's ρ of every two rankings, float32 ``[channels]`` by name: Pearson's correlation of their average ranks.

    It is NaN where all values of one are equal.

    >>> rank_correlations({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([9.0, 5.0, 0.1])}).to_numpy().tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    ranks = torch.stack([average_ranks(values) for values in scores.values()])
    ranks -= ranks.mean(1, keepdim=True)
    products = ranks @ ranks.T
    spread = products.diagonal().outer(products.diagonal()).sqrt()
    return pd.DataFrame((products / spread).tolist(), list(scores), list(scores))


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values with the mean of their ranks, float64.

    >>> average_ranks(torch.tensor([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = torch.cumsum(sizes, 0).double()
    ranks: Tensor = (last - (sizes.double() - 1) / 2)[group]
    return ranks
