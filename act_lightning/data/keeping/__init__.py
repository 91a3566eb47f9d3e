"""Tokenized sets on disk: prepared once, kept under a fingerprint, mapped into memory."""
