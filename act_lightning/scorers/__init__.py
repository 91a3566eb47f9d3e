"""Scorers: what channels are ranked by, pure functions on the tensors of one module; and the selections by name."""

from __future__ import annotations

from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.scorers.activation import Activation, ActivationOverModuleMean, Local, RelativeActivation
from act_lightning.scorers.attribution import Attribution
from act_lightning.scorers.scorer import ActivationScorer, Observation, Scorer, WeightScorer, recorded_scorer
from act_lightning.scorers.weight import Weight, WeightRMS

__all__ = [
    "SCORERS",
    "UNSCORED",
    "Activation",
    "ActivationOverModuleMean",
    "ActivationScorer",
    "Attribution",
    "Local",
    "Observation",
    "RelativeActivation",
    "Scorer",
    "Weight",
    "WeightRMS",
    "WeightScorer",
    "recorded_scorer",
    "scorer_of",
]

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer
    for scorer in (
        Activation,
        RelativeActivation,
        ActivationOverModuleMean,
        Local,
        Attribution,
        Weight,
        WeightRMS,
    )
}
UNSCORED = ("random", "all")
"""Selections that need no scores."""


def scorer_of(selection: str | Scorer) -> Scorer | None:
    """The scorer that a selection ranks channels by, with its default settings, or the scorer itself.

    Returns:
        ``None`` for ``random`` and ``all``.

    Raises:
        ActError: If there is no such selection, or a setting of the scorer is wrong.

    >>> scorer_of("activation"), scorer_of("random")
    (Activation(experts='all'), None)
    """
    if isinstance(selection, Scorer):
        issues = selection.issues()
        if type(selection) not in SCORERS.values() and selection.label in {*SCORERS, *UNSCORED}:
            # Its saved scores would be taken for those of the other.
            problem = f"must not be called {selection.label!r}, like a selection that is there already"
            hint = "Set `name` in the class."
            issues = [*issues, ConfigIssue("transfer.selection", type(selection).__name__, problem, hint)]
        raise_if_any(issues)
        return selection
    if selection in UNSCORED:
        return None
    if selection not in SCORERS:
        known = ", ".join([*SCORERS, *UNSCORED])
        hint = "Choose one of these, or give {class_path, init_args} of a Scorer of your own."
        raise ActError(ConfigIssue("transfer.selection", selection, f"must be one of {known}", hint))
    return SCORERS[selection]()
