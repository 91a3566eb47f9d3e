"""When two answers are the same."""

from __future__ import annotations

import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same string, outer white space aside and inner runs of it taken as one space.

    >>> exact_match(" trois cent   un ", "trois cent un"), exact_match("47.", "47")
    (True, False)
    """
    return prediction.split() == reference.split()


def loose_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same but for case and ASCII punctuation, as BenchMAX compares them.

    So thousands' separators, a currency sign and a trailing period play no part; nor do a sign and a decimal point,
    which no answer of MGSM has. Digits of other scripts are other characters.

    >>> loose_match("$1,080.", "1080"), loose_match("(b)", "(B)"), loose_match("١٨", "18")
    (True, True, False)
    """
    return _bare(prediction) == _bare(reference)


def _bare(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)
