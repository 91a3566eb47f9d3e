"""Which language and domain the name of an ability stands for, and what the paper calls it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from act_lightning.errors import ActError, ConfigIssue

PAPER_LANGUAGES = ("en", "zh", "ar", "bn", "hu", "ja", "ko", "sw", "te", "th", "vi")
"""The languages of the paper in the order of its §3.1."""
PAPER_DOMAINS = ("math", "science", "code")
_ISO_639_1 = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo "
    "es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka "
    "kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng "
    "nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su "
    "sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)


@dataclass(frozen=True)
class Ability:
    """An ability by its name in the run.

    Attributes:
        name: As in ``data.abilities``.
        domain: Such as ``science``.
        language: Two letters of ISO 639-1, or ``None`` where the name says none.
    """

    name: str
    domain: str
    language: str | None

    @property
    def label(self) -> str:
        """As the paper writes it.

        >>> parse_ability("science-ar").label, parse_ability("words").label
        ('AR-Science', 'Words')
        """
        domain = self.domain[:1].upper() + self.domain[1:]
        return f"{self.language.upper()}-{domain}" if self.language else domain


def parse_ability(name: str) -> Ability:
    """Take language and domain from a name.

    The name is split at ``-``, ``_`` and ``.``; the last part, else the first, is the language if it is a code of
    ISO 639-1, and the rest is the domain. A name without such a part is a domain without a language.

    >>> parse_ability("math-en"), parse_ability("en_math").domain, parse_ability("gsm8k").language
    (Ability(name='math-en', domain='math', language='en'), 'math', None)
    """
    parts = re.split(r"[-_.]", name)
    for at in (-1, 0) if len(parts) > 1 else ():
        if parts[at].lower() in _ISO_639_1:
            rest = parts[:-1] if at else parts[1:]
            return Ability(name, "-".join(rest), parts[at].lower())
    return Ability(name, name, None)


def read_abilities(names: Iterable[str], readings: Mapping[str, str] | None = None) -> dict[str, Ability]:
    """The abilities of a run by their labels, in the order in which tables and figures show them.

    Ordered by language (the paper's first, in its order), then by domain. Where two names would get one label, all of
    these are labeled by their names.

    Args:
        names: Names of abilities.
        readings: For a name that says nothing or the wrong thing, one to read in its place, such as
            ``{"gsm8k": "math-en"}``.

    Raises:
        ActError: If a reading is given for a name that is not there.

    >>> list(read_abilities(["science-ar", "gsm8k", "math-ar"], {"gsm8k": "math-en"}))
    ['EN-Math', 'AR-Math', 'AR-Science']
    """
    known, readings = list(dict.fromkeys(names)), readings or {}
    for name in readings:
        if name not in known:
            raise ActError(ConfigIssue("--ability", name, f"must be one of {', '.join(known)}", "Correct the name."))
    found = [_read(name, readings.get(name, name)) for name in known]
    times = Counter(ability.label for ability in found)
    ordered = sorted(found, key=_place)
    return {ability.label if times[ability.label] == 1 else ability.name: ability for ability in ordered}


def _read(name: str, reading: str) -> Ability:
    read = parse_ability(reading)
    return Ability(name, read.domain, read.language)


def _place(ability: Ability) -> tuple[object, ...]:
    language, domain = ability.language or "~", ability.domain  # those without one come last
    return (_index(language, PAPER_LANGUAGES), language, _index(domain, PAPER_DOMAINS), domain, ability.name)


def _index(value: str, order: Sequence[str]) -> int:
    return order.index(value) if value in order else len(order)
