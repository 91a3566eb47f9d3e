"""Lightning callbacks: profile a pair before fit, inject what differs, export the result.

Each is imported when it is asked for: a merge from disk to disk needs none of them, nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act_lightning.callbacks.answer_evaluation import AnswerEvaluation
    from act_lightning.callbacks.best_recovery import BestRecovery
    from act_lightning.callbacks.comparison import TransferComparison
    from act_lightning.callbacks.export import HuggingFaceExport
    from act_lightning.callbacks.fail_together import FailTogether
    from act_lightning.callbacks.fisher import FisherInformation
    from act_lightning.callbacks.injection import MaskedTaskVectorInjection
    from act_lightning.callbacks.last_checkpoint import LastCheckpoint
    from act_lightning.callbacks.lost_updates import LostUpdates
    from act_lightning.callbacks.preemption import PreemptionCheckpoint
    from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
    from act_lightning.callbacks.progress import LoopProgress
    from act_lightning.callbacks.throughput import TokenThroughput
    from act_lightning.transfer.settings import AbilitySource

__all__ = [
    "AbilitySource",
    "ActivationDifferenceProfiler",
    "AnswerEvaluation",
    "BestRecovery",
    "FailTogether",
    "FisherInformation",
    "HuggingFaceExport",
    "LastCheckpoint",
    "LoopProgress",
    "LostUpdates",
    "MaskedTaskVectorInjection",
    "PreemptionCheckpoint",
    "TokenThroughput",
    "TransferComparison",
]
_HOMES = {
    "AbilitySource": "act_lightning.transfer.settings",
    "ActivationDifferenceProfiler": "act_lightning.callbacks.profiler",
    "AnswerEvaluation": "act_lightning.callbacks.answer_evaluation",
    "BestRecovery": "act_lightning.callbacks.best_recovery",
    "FailTogether": "act_lightning.callbacks.fail_together",
    "FisherInformation": "act_lightning.callbacks.fisher",
    "HuggingFaceExport": "act_lightning.callbacks.export",
    "LastCheckpoint": "act_lightning.callbacks.last_checkpoint",
    "LoopProgress": "act_lightning.callbacks.progress",
    "LostUpdates": "act_lightning.callbacks.lost_updates",
    "MaskedTaskVectorInjection": "act_lightning.callbacks.injection",
    "PreemptionCheckpoint": "act_lightning.callbacks.preemption",
    "TokenThroughput": "act_lightning.callbacks.throughput",
    "TransferComparison": "act_lightning.callbacks.comparison",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the classes
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
