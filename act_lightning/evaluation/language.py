"""Which language an output is in, by py3langid (BSD, 97 languages, its model within the package: no network)."""

from __future__ import annotations

from importlib.util import find_spec

EXTRA = "language"


def can_identify() -> bool:
    """Whether the identifier is installed: ``pip install act-lightning[language]``."""
    return find_spec("py3langid") is not None


def language_of(text: str) -> str | None:
    """The language of ``text`` as its ISO 639-1 code, such as ``sw``; ``None`` if it has no letters.

    >>> language_of("12 + 30 = 42") is None
    True
    """
    if not any(character.isalpha() for character in text):
        return None
    import py3langid  # here, because it is an extra

    return str(py3langid.classify(text)[0])
