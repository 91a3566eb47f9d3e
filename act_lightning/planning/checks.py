"""Faults of meaning that one section of a config cannot see alone."""

from __future__ import annotations

from pathlib import Path

from act_lightning.checkpoints import check_writable
from act_lightning.errors import Fault
from act_lightning.planning.run import Run

_NEED_SOURCES = ("profile", "merge")
_EVALUATING = ("test", "predict")


def run_faults(run: Run, verb: str) -> list[Fault]:
    """Everything that is wrong with a run's settings, before a model or data set is opened.

    Args:
        run: The run.
        verb: What is to be done: ``fit``, ``profile``, ``merge`` and so on; ``plan`` asks for what ``fit`` would.
    """
    found = run.model.faults() + run.data.faults() + check_writable(Path(run.root), "trainer.default_root_dir")
    if verb in _EVALUATING and not run.data.evaluations:
        remedy = "Add one, such as {gsm: {path: gsm.jsonl, role: keep}}."
        found.append(Fault("data.evaluations", {}, f"must hold a set to {verb} on", remedy))
    if verb in ("validate", *_EVALUATING):
        return found
    return found + run.profiler.faults() + run.transfer.faults() + _source_faults(run, verb)


def _source_faults(run: Run, verb: str) -> list[Fault]:
    if not run.sources:
        return _missing_sources(run, verb)
    if not run.transfer.needs_profiling and verb != "profile":
        return []
    known = ", ".join(run.data.abilities) or "none"
    return [
        Fault(f"profile.sources[{i}].abilities", name, f"must be one of data.abilities: {known}", "Add its data there.")
        for i, source in enumerate(run.sources)
        for name in source.abilities
        if name not in run.data.abilities
    ]


def _missing_sources(run: Run, verb: str) -> list[Fault]:
    if run.profiler.sources is not None or not (verb in _NEED_SOURCES or run.transfer.scores):
        return []
    reason = f"must name the sources when `{verb}` runs" if verb in _NEED_SOURCES else "must name the sources of scores"
    return [Fault("profile.sources", None, reason, "Add {model: …, abilities: […]} for each source.")]
