"""Makes the report of one or several runs: all sections, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from act_lightning.analysis.report.comparison_sections import (
    consistency_section,
    overlap_section,
    selections_section,
    weight_change_section,
)
from act_lightning.analysis.report.evidence import Evidence, gather
from act_lightning.analysis.report.outcome_sections import causes_section, outcome_section
from act_lightning.analysis.report.page import Absent, Section, require_report_folder, write_report
from act_lightning.analysis.report.score_sections import (
    concentration_section,
    location_section,
    measured_section,
    stability_section,
)

SECTIONS: tuple[Callable[[Evidence], list[Section | Absent]], ...] = (
    measured_section,
    concentration_section,
    location_section,
    overlap_section,
    consistency_section,
    weight_change_section,
    selections_section,
    stability_section,
    causes_section,
    outcome_section,
)
"""Functions from the evidence to a section, or to the reason why there is none. A new section is a row here."""
LIMITS = (
    "Whether other models, languages or templates would give the same: scores are of these pairs and these samples.",
)
"""What no section of this report shows, whatever the data."""


def make_report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    ratios: Sequence[float] | None = None,
    shown: Sequence[str] = (),
    readings: Mapping[str, str] | None = None,
    folders: Mapping[str, Path] | None = None,
    weights: bool = True,
    mixed_versions: bool = False,
    quiet: bool = False,
) -> Path:
    """Write the paper's figures and tables of one or several runs as a page, and return its path.

    Args:
        runs: Folders of runs, each with ``scores/<source>/<ability>.safetensors``.
        out: The folder of the report; by default ``report`` in the first run's.
        ratios: Values of p; the first is that of all findings, overlaps are shown at every one. By default that of the
            first run's transfer, or the paper's.
        shown: Abilities, by name or label, whose layers and modules are shown; by default the first.
        readings: Names to read instead of abilities' own, such as ``{"gsm8k": "math-en"}``.
        folders: Folders of models, by the names in the score files.
        weights: Whether to read both models' weights, if they are on disk (Finding 5).
        mixed_versions: Whether scores of different versions of packages may be mixed.
        quiet: Whether to show no progress.

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
    title = "Ability channels of " + " and ".join(dict.fromkeys(pair.models_label for pair in evidence.saved.pairs))
    return write_report(out, title, parts, LIMITS)
