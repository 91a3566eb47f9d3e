"""Lightning callbacks: profile a pair before fit, inject what differs, export the result."""

from act_lightning.callbacks.comparison import TransferComparison
from act_lightning.callbacks.export import HuggingFaceExport
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.profiling import ActivationDifferenceProfiler
from act_lightning.callbacks.sources import AbilitySource

__all__ = [
    "AbilitySource",
    "ActivationDifferenceProfiler",
    "HuggingFaceExport",
    "MaskedTaskVectorInjection",
    "TransferComparison",
]
