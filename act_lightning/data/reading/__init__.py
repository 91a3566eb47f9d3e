"""Rows of a data set, whatever its format: where they come from, which are used, and as what conversation."""
