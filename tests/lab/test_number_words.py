"""Every number, beside a package that others wrote."""

from __future__ import annotations

import pytest
from num2words import num2words

from act_lightning.lab.number_words import LANGUAGES, LARGEST


@pytest.mark.parametrize("code", LANGUAGES)
def test_equals_num2words(code: str) -> None:
    _, write = LANGUAGES[code]
    assert [write(number) for number in range(LARGEST + 1)] == [
        num2words(number, lang=code) for number in range(LARGEST + 1)
    ]
