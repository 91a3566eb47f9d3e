"""Extension of griffe: what docstrings have of reStructuredText and doctest, as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data|obj|exc):`~?([^`]+)`")
_DOCTEST = re.compile(r"^( *)>>> (?:.*\n?)(?:\1(?:\.\.\. |\S).*\n?)*", re.MULTILINE)


class DocstringMarkup(griffe.Extension):
    """Roles as code, and examples as fenced code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite a docstring."""
        if obj.docstring:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = _DOCTEST.sub(lambda block: f"\n```pycon\n{block[0].rstrip()}\n```\n", text)
