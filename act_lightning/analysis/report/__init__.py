"""The page that shows the findings of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from act_lightning.analysis.paper import RATIO, read_abilities
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.page import Absent, Builder, Picture, Section, require_report_folder, write_report
from act_lightning.analysis.report.sections import LIMITS, SECTIONS
from act_lightning.analysis.saved import SavedScores, read_runs
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.masks import ratio_count, ratio_issues

__all__ = ["Absent", "Builder", "Evidence", "PairView", "Picture", "Section", "gather", "make_report"]
_SHOWN = 1  # each takes seconds


def make_report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    ratios: Sequence[float] = (RATIO,),
    shown: Sequence[str] = (),
    readings: Mapping[str, str] | None = None,
    folders: Mapping[str, Path] | None = None,
    weights: bool = True,
    mixed_versions: bool = False,
    quiet: bool = False,
) -> Path:
    """Write the paper's figures and tables of one or several runs as a page.

    Args:
        runs: Folders of runs, each with ``scores/<source>/<ability>.safetensors``.
        out: The folder of the report; by default ``report`` in the first run's.
        ratios: Values of p; the first is that of all findings, overlaps are shown at every one.
        shown: Abilities, by name or label, whose layers and modules are shown; by default the first.
        readings: For the name of an ability one to read in its place, such as ``{"gsm8k": "math-en"}``.
        folders: Where models lie, by the names that scores give them.
        weights: Whether to read both models' weights, where they are on disk (Finding 5).
        mixed_versions: Whether scores of different versions of packages may stand side by side.
        quiet: Whether to show no progress.

    Returns:
        The page.

    Raises:
        ActError: Scores are missing, damaged or mixed; a setting is wrong; or ``out`` holds something else.
    """
    out = out or runs[0] / "report"
    require_report_folder(out)
    evidence = gather(
        runs,
        ratios,
        shown=shown,
        readings=readings,
        folders=folders,
        weights=weights,
        mixed_versions=mixed_versions,
        quiet=quiet,
    )
    parts = [part for build in SECTIONS for part in build(evidence)]
    title = "Ability channels of " + " and ".join(dict.fromkeys(pair.label for pair in evidence.saved.pairs))
    return write_report(out, title, parts, LIMITS)


def gather(
    runs: Sequence[Path],
    ratios: Sequence[float] = (RATIO,),
    *,
    shown: Sequence[str] = (),
    readings: Mapping[str, str] | None = None,
    folders: Mapping[str, Path] | None = None,
    weights: bool = True,
    mixed_versions: bool = False,
    quiet: bool = False,
) -> Evidence:
    """Read the scores of runs and check all settings of a report; see :func:`make_report`."""
    saved = read_runs(runs, mixed_versions)
    abilities = read_abilities(saved.names, readings)
    by_name = {ability.name: label for label, ability in abilities.items()}
    labels = [by_name.get(name, name) for name in shown] or list(abilities)[:_SHOWN]
    models = {name for pair in saved.pairs for name in pair.models}
    raise_if_any(
        [
            *(issue for ratio in ratios for issue in _ratio_issues(ratio, saved)),
            *(_unknown("--show", name, [*by_name, *abilities]) for name in labels if name not in abilities),
            *(_unknown("--model", name, sorted(models)) for name in folders or {} if name not in models),
        ]
    )
    return Evidence(runs, saved, abilities, ratios, labels, folders or {}, weights, quiet)


def _ratio_issues(ratio: float, saved: SavedScores) -> list[ConfigIssue]:
    total = saved.inventory.total
    if found := ratio_issues(ratio, "--ratio"):
        return found
    if ratio_count(total, ratio):
        return []
    return [ConfigIssue("--ratio", ratio, f"must select at least one of {total:,} channels", "Choose a larger ratio.")]


def _unknown(setting: str, name: str, known: Sequence[str]) -> ConfigIssue:
    return ConfigIssue(setting, name, f"must be one of {', '.join(dict.fromkeys(known))}", "Correct the name.")
