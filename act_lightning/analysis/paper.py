"""Abilities as the paper names them, and the paper's own numbers to compare with.

Tables 1, 2 and 5 to 10 of https://arxiv.org/abs/2601.09398.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from act_lightning.checkpoints.files import last_part
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
    """An ability by its name in the run, with its domain and, where the name says one, its language in ISO 639-1."""

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
    if len(parts) > 1:
        for language, domain in ((parts[-1], parts[:-1]), (parts[0], parts[1:])):
            if language.lower() in _ISO_639_1:
                return Ability(name, "-".join(domain), language.lower())
    return Ability(name, name, None)


def read_abilities(names: Iterable[str], readings: Mapping[str, str] | None = None) -> dict[str, Ability]:
    """The abilities of a run by their labels, in the order of tables and figures.

    Ordered by language (the paper's first, in its order), then by domain. If several names would get one label, they
    keep their names. ``readings`` are names to read instead of uninformative ones.

    Raises:
        ActError: A reading is of another name than these.

    >>> list(read_abilities(["science-ar", "gsm8k", "math-ar"], {"gsm8k": "math-en"}))
    ['EN-Math', 'AR-Math', 'AR-Science']
    """
    known, readings = list(dict.fromkeys(names)), readings or {}
    for name in readings:
        if name not in known:
            raise ActError(ConfigIssue("--ability", name, f"must be one of {', '.join(known)}", "Correct the name."))
    abilities = [replace(parse_ability(readings.get(name, name)), name=name) for name in known]

    def order(ability: Ability) -> tuple[object, ...]:
        language, domain = ability.language or "~", ability.domain  # abilities without a language come last
        language_index = (*PAPER_LANGUAGES, language).index(language)
        return language_index, language, (*PAPER_DOMAINS, domain).index(domain), domain, ability.name

    labels = Counter(ability.label for ability in abilities)
    return {
        ability.label if labels[ability.label] == 1 else ability.name: ability
        for ability in sorted(abilities, key=order)
    }


RATIO = 0.01
"""The p of all these numbers."""
THRESHOLD, SHARE_BELOW = 4.5, 0.99
"""Finding 1: about 99 % of the channels score below 4.5 (Qwen2.5-7B, math pair)."""

_HARMLESS = {"hf", "v1.0", "v1.2"}
_LANGUAGES = "EN AR ZH JA KO BN HU SW TE TH VI".split()
_LANGUAGES_OF_CODER = "AR BN EN HU JA KO SW TE TH VI ZH".split()


@dataclass(frozen=True)
class PaperPair:
    """What the paper reports of one pair of models at the top 1 %, by its labels of abilities.

    Attributes:
        words: Lower-case words that identify the two models' names, in either order.
        weight_table: The table of the overlap with the largest weight changes; empty if there is none.
        weight: That overlap, as a share.
        overlap_table: The table of the overlap of masks; empty if there is a heat map only.
        overlaps: Overlap of the masks of two abilities (row, column), as a share.
        cross_lingual: Overlap with the union of the other language's domains.
    """

    name: str
    words: tuple[tuple[str, ...], tuple[str, ...]]
    weight_table: str
    weight: Mapping[str, float]
    overlap_table: str = ""
    overlaps: Mapping[tuple[str, str], float] = field(default_factory=dict)
    cross_lingual: Mapping[str, float] = field(default_factory=dict)


def _symmetric(values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Masks of one size overlap alike both ways."""
    return {**values, **{(column, row): value for (row, column), value in values.items()}}


def _qwen_pair(kind: str, size: str, table: str, languages: Sequence[str], math: str, science: str) -> PaperPair:
    """A pair of Qwen2.5 models; ``math`` and ``science`` are the rows of the table, in %, a number per language."""
    weight = {
        f"{language}-{domain}": round(float(cell) / 100, 4)
        for domain, cells in (("Math", math.split()), ("Science", science.split()))
        for language, cell in zip(languages, cells, strict=True)
    }
    words = ("qwen2.5", kind.lower(), size.lower(), "instruct"), ("qwen2.5", size.lower(), "instruct")
    return PaperPair(f"Qwen2.5-{kind}-{size}-Instruct vs. Qwen2.5-{size}-Instruct", words, table, weight)


def _llama_pair(
    name: str, words: tuple[str, ...], part: str, weight: Sequence[float] = (), overlaps: Sequence[float] = ()
) -> PaperPair:
    """A pair of 13B models from a part of Table 10 (math, science, code) and of Table 5 (overlaps in this order)."""
    labels = [[f"{language}{domain}" for domain in ("Math", "Science", "Code")] for language in ("", "EN-")]
    weights = {label: share for row in labels if weight for label, share in zip(row, weight, strict=True)}
    pairs = {
        pair: share for row in labels if overlaps for pair, share in zip(combinations(row, 2), overlaps, strict=True)
    }
    weight_table, overlap_table = f"Table 10{part}" if weight else "", f"Table 5{part}" if overlaps else ""
    models = (words, ("llama2", "13b"))
    return PaperPair(f"{name} vs. LLaMA-2-13B", models, weight_table, weights, overlap_table, _symmetric(pairs))


QWEN_7B_MATH = replace(
    _qwen_pair(
        *("Math", "7B", "Tables 2 and 6", _LANGUAGES),
        "4.66 5.62 2.68 9.80 9.74 18.72 21.69 20.53 15.67 5.81 10.28",
        "5.35 3.83 3.44 11.84 9.74 14.40 21.06 4.11 8.32 5.42 8.26",
    ),
    overlap_table="Table 1",
    overlaps=_symmetric(
        {
            ("AR-Math", "EN-Math"): 0.253,
            ("EN-Science", "EN-Math"): 0.676,
            ("EN-Science", "AR-Math"): 0.313,
            ("AR-Science", "EN-Math"): 0.210,
            ("AR-Science", "AR-Math"): 0.809,
            ("AR-Science", "EN-Science"): 0.265,
        }
    ),
    cross_lingual={"EN-Math": 0.264, "AR-Math": 0.357, "EN-Science": 0.332, "AR-Science": 0.305},
)
PAPER_PAIRS = (
    QWEN_7B_MATH,
    _qwen_pair(
        *("Coder", "7B", "Table 7", _LANGUAGES_OF_CODER),
        "10.36 12.43 5.00 25.15 5.76 5.49 17.05 10.54 9.55 7.15 3.94",
        "8.92 14.35 5.34 25.54 6.08 6.55 14.30 11.69 8.60 8.55 4.25",
    ),
    _qwen_pair(
        *("Math", "1.5B", "Table 8", _LANGUAGES),
        "6.85 5.44 7.78 4.97 5.62 6.39 9.03 9.29 6.36 4.00 4.42",
        "7.15 5.51 7.58 5.69 5.71 6.68 9.89 7.83 6.70 4.14 4.95",
    ),
    _qwen_pair(
        *("Coder", "1.5B", "Table 9", _LANGUAGES_OF_CODER),
        "5.76 7.72 4.89 7.23 6.99 8.02 6.61 7.70 6.17 5.59 7.73",
        "5.60 8.14 5.42 7.26 7.15 8.09 6.09 8.10 6.21 6.06 7.65",
    ),
    _llama_pair("Tulu-2-DPO-13B", ("tulu2", "dpo", "13b"), "a", weight=(0.1877, 0.1993, 0.1937)),
    _llama_pair("Tulu-2-13B", ("tulu2", "13b"), "a", overlaps=(0.891, 0.875, 0.894)),
    _llama_pair("WizardLM-13B", ("wizardlm", "13b"), "b", (0.3001, 0.3624, 0.3235), (0.824, 0.818, 0.860)),
    _llama_pair("WizardMath-13B", ("wizardmath", "13b"), "c", (0.0941, 0.0921, 0.0964), (0.894, 0.859, 0.892)),
)


def paper_pair(target: str, source: str) -> PaperPair | None:
    """The paper's numbers of a pair of models, recognized by their names in either order.

    >>> paper_pair("Qwen/Qwen2.5-Math-7B-Instruct", "models/Qwen2.5-7B-Instruct").weight_table
    'Tables 2 and 6'
    """
    plain = [
        last_part(name).lower().replace("llama-2", "llama2").replace("tulu-2", "tulu2") for name in (target, source)
    ]
    names = [set(name.split("-")) for name in plain]
    for pair in PAPER_PAIRS:
        for words in (pair.words, pair.words[::-1]):
            if all(set(part) <= name <= {*part, *_HARMLESS} for part, name in zip(words, names, strict=True)):
                return pair
    return None
