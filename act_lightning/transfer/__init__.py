"""Masked task-vector transfer: settings, selection of channels, injection into parameters, and its report."""

from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.report import transfer_report
from act_lightning.transfer.selection import SelectedSource, select
from act_lightning.transfer.settings import TransferSettings, scale_faults

__all__ = [
    "MaskedInjection",
    "SelectedSource",
    "TransferSettings",
    "scale_faults",
    "select",
    "transfer_report",
]
