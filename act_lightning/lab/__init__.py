"""Tiny sibling models and questions to try everything on, without a GPU and without a hub."""
