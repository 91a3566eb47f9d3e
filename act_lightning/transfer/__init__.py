"""Masked task-vector transfer: settings, selection of channels, injection into parameters, and its report."""

from act_lightning.transfer.counting import count_selected, selection_faults
from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.report import describe_transfer, transfer_report
from act_lightning.transfer.selection import SelectedSource, having_partners, partner_channels, select
from act_lightning.transfer.settings import TransferSettings, scale_faults, weight_faults

__all__ = [
    "MaskedInjection",
    "SelectedSource",
    "TransferSettings",
    "count_selected",
    "describe_transfer",
    "having_partners",
    "partner_channels",
    "scale_faults",
    "select",
    "selection_faults",
    "transfer_report",
    "weight_faults",
]
