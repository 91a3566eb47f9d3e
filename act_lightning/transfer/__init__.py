"""Masked task-vector transfer: settings, selection of channels, injection into parameters, and its report."""
