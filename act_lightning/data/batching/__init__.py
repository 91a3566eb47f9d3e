"""Samples together in batches: padded, packed, composed once and dealt to processes."""
