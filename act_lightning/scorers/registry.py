"""Scorers by name."""

from __future__ import annotations

from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.scorers.activation import Activation, ActivationOverModuleMean, RelativeActivation
from act_lightning.scorers.attribution import Attribution
from act_lightning.scorers.local import Local
from act_lightning.scorers.scorer import Scorer
from act_lightning.scorers.weight import Weight, WeightRMS

_KINDS: tuple[type[Scorer], ...] = (
    Activation,
    RelativeActivation,
    ActivationOverModuleMean,
    Local,
    Attribution,
    Weight,
    WeightRMS,
)
SCORERS: dict[str, type[Scorer]] = {kind.name: kind for kind in _KINDS}
UNSCORED = ("random", "all")
"""Selections that no scores are needed for."""


def scorer_of(selection: str | Scorer) -> Scorer | None:
    """The scorer that a selection ranks channels by, with its default settings, or the scorer itself.

    Returns:
        ``None`` for ``random`` and ``all``.

    Raises:
        ActError: If there is no such selection, or a setting of the scorer is not as it must be.

    >>> scorer_of("activation"), scorer_of("random")
    (Activation(), None)
    """
    if isinstance(selection, Scorer):
        raise_if_any([*selection.issues(), *_name_issues(selection)])
        return selection
    if selection in UNSCORED:
        return None
    if selection not in SCORERS:
        known = ", ".join([*SCORERS, *UNSCORED])
        hint = "Choose one of these, or give {class_path, init_args} of a Scorer of your own."
        raise ActError(ConfigIssue("transfer.selection", selection, f"must be one of {known}", hint))
    return SCORERS[selection]()


def _name_issues(scorer: Scorer) -> list[ConfigIssue]:
    """A scorer of the user's own that is called like one of ours, whose saved scores it would take for its own."""
    if type(scorer) in SCORERS.values() or scorer.label not in {*SCORERS, *UNSCORED}:
        return []
    problem = f"must not be called {scorer.label!r}, like a selection that is there already"
    return [ConfigIssue("transfer.selection", type(scorer).__name__, problem, "Set `name` in the class.")]
