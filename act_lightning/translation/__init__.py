"""Abilities in other languages, by any OpenAI-compatible endpoint: the paper's translation step."""
