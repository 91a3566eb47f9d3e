"""A point as a config: for `merge` and `fit` of the best one, and for the fine-tuning of every one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from act_lightning.sweep.points import TransferOverride
from act_lightning.sweep.results import Outcome

_NOT_OF_A_RUN = ("sweep", "config", "ckpt_path", "weights_only")
_EVALUATING = ("TransferComparison", "AnswerEvaluation")  # the sweep evaluates by itself


def read_recipe(text: str) -> dict[str, Any]:
    """A run's config without what only a sweep understands.

    Args:
        text: The config as YAML.
    """
    content: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in content.items() if key not in _NOT_OF_A_RUN}


def best_config(recipe: Mapping[str, Any], moved: TransferOverride, best: Outcome, target: Outcome, place: Path) -> str:
    """The config of the best point, with the commands that run it.

    Args:
        recipe: The run's config.
        moved: What the point says to a transfer.
        best: What was found there.
        target: What the target itself gave.
        place: Where the config will stand.
    """
    at = best.point
    lines = (
        f"The best point of a sweep: {at.method}, λ {at.scale:.6g}, p {at.ratio:.6g}; {best.share:.2%} of parameters",
        f"keep: {100 * best.keep:.1f} % (target: {100 * target.keep:.1f} %)",
        f"recover: {100 * best.recover:.1f} % (target: {100 * target.recover:.1f} %)",
        "",
        f"  python -m act_lightning merge --config {place}",
        f"  python -m act_lightning fit   --config {place}",
    )
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + as_yaml(moved.into(recipe))


def fit_config(recipe: Mapping[str, Any], moved: TransferOverride | None, folder: Path, scores: Path | None) -> str:
    """The config of a point's own `fit`.

    Args:
        recipe: The run's config.
        moved: What the point says to a transfer; ``None``: nothing is transferred.
        folder: The run's folder.
        scores: Folder of saved scores, if they are needed.
    """
    plain = {**recipe, "profile": {**recipe["profile"], "sources": None}}
    config = plain if moved is None else moved.into(recipe)
    transfer = {key: value for key, value in config.get("transfer", {}).items() if key != "scores"}
    if moved is not None and scores is not None and moved.settings.needs_scores:
        transfer["scores"] = str(scores)
    trainer = {**recipe["trainer"], "default_root_dir": str(folder)}
    callbacks = [one for one in _listed(trainer.get("callbacks")) if not _kind(one).endswith(_EVALUATING)]
    trainer["callbacks"] = callbacks or None
    if not any("Checkpoint" in _kind(one) for one in callbacks):
        trainer["enable_checkpointing"] = False  # a fit that was killed begins anew
    return as_yaml({**config, "transfer": transfer, "trainer": trainer})


def as_yaml(config: Mapping[str, Any]) -> str:
    """A config as text."""
    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _listed(callbacks: Any) -> list[Any]:  # noqa: ANN401 - whatever a config holds
    if callbacks is None:
        return []
    return callbacks if isinstance(callbacks, list) else [callbacks]


def _kind(callback: Any) -> str:  # noqa: ANN401 - whatever a config holds
    return str(callback.get("class_path", "") if isinstance(callback, dict) else callback)
