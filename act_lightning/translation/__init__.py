"""Abilities in other languages, by any OpenAI-compatible endpoint: the paper's translation step."""

from act_lightning.translation.report import SetReport, TranslationReport, print_report
from act_lightning.translation.settings import Price, TranslationSettings, translation_faults
from act_lightning.translation.translate import translate

__all__ = [
    "Price",
    "SetReport",
    "TranslationReport",
    "TranslationSettings",
    "print_report",
    "translate",
    "translation_faults",
]
