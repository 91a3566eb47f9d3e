"""The sections of a report, in order. A new one is a file with a builder, and a row here."""

from act_lightning.analysis.report.page import Builder
from act_lightning.analysis.report.sections.masks import consistency_section, location_section
from act_lightning.analysis.report.sections.outcome import causes_section, outcome_section
from act_lightning.analysis.report.sections.overlap import overlap_section
from act_lightning.analysis.report.sections.scores import concentration_section, measured_section, stability_section
from act_lightning.analysis.report.sections.weight_change import weight_change_section

SECTIONS: tuple[Builder, ...] = (
    measured_section,
    concentration_section,
    location_section,
    overlap_section,
    consistency_section,
    weight_change_section,
    stability_section,
    causes_section,
    outcome_section,
)
LIMITS = (
    "Whether other models, languages or templates would give the same: scores are of these pairs and these samples.",
)
"""What no section of this report shows, whatever the data."""
