"""Lightning callbacks: profile a pair before fit, inject what differs, export the result.

Each is imported when it is asked for: a merge from disk to disk needs none of them, nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act_lightning.callbacks.answers import AnswerEvaluation
    from act_lightning.callbacks.best_recovery import BestRecovery
    from act_lightning.callbacks.comparison import TransferComparison
    from act_lightning.callbacks.export import HuggingFaceExport
    from act_lightning.callbacks.fisher import FisherInformation
    from act_lightning.callbacks.injection import MaskedTaskVectorInjection
    from act_lightning.callbacks.last_checkpoint import LastCheckpoint
    from act_lightning.callbacks.lost_updates import LostUpdates
    from act_lightning.callbacks.preemption import PreemptionCheckpoint
    from act_lightning.callbacks.profiling import ActivationDifferenceProfiler
    from act_lightning.callbacks.sources import AbilitySource
    from act_lightning.callbacks.throughput import TokenThroughput

__all__ = [
    "AbilitySource",
    "ActivationDifferenceProfiler",
    "AnswerEvaluation",
    "BestRecovery",
    "FisherInformation",
    "HuggingFaceExport",
    "LastCheckpoint",
    "LostUpdates",
    "MaskedTaskVectorInjection",
    "PreemptionCheckpoint",
    "TokenThroughput",
    "TransferComparison",
]
_HOMES = {
    "AbilitySource": "sources",
    "ActivationDifferenceProfiler": "profiling",
    "AnswerEvaluation": "answers",
    "BestRecovery": "best_recovery",
    "FisherInformation": "fisher",
    "HuggingFaceExport": "export",
    "LastCheckpoint": "last_checkpoint",
    "LostUpdates": "lost_updates",
    "MaskedTaskVectorInjection": "injection",
    "PreemptionCheckpoint": "preemption",
    "TokenThroughput": "throughput",
    "TransferComparison": "comparison",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the classes
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
