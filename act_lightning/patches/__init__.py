"""Ability patches: what a transfer or a fine-tuning changed, bit for bit, as one file to apply, revert and share."""
