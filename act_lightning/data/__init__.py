"""Abilities and evaluation sets: rows, templates, answer labels, batches, and the LightningDataModule."""
