"""Extension of griffe: what docstrings have of reStructuredText and doctest, as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data|obj|exc):`~?([^`]+)`")
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)


def markdown(docstring: str) -> str:
    """Roles as code, and examples as fenced code.

    >>> print(markdown("See :meth:`x`."))
    See `x`.
    """
    text = _ROLE.sub(r"`\1`", docstring)
    return _DOCTEST.sub(lambda block: f"{block[1]}```pycon\n{block[0]}\n{block[1]}```", text)


class DocstringMarkup(griffe.Extension):
    """Makes it so in every docstring that mkdocstrings shows."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite a docstring."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
