"""The paper's own numbers, to stand beside ours (Tables 1, 2 and 5 to 10, https://arxiv.org/abs/2601.09398)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from act_lightning.analysis.saved import short_name

RATIO = 0.01
"""The p of all these numbers."""
THRESHOLD, SHARE_BELOW = 4.5, 0.99
"""Finding 1: about 99 % of the channels score below 4.5 (Qwen2.5-7B, math pair)."""

_LANGUAGES = "EN AR ZH JA KO BN HU SW TE TH VI".split()
_LANGUAGES_OF_CODER = "AR BN EN HU JA KO SW TE TH VI ZH".split()


@dataclass(frozen=True)
class PaperPair:
    """What the paper reports of one pair of models at the top 1 %, by its labels of abilities.

    Attributes:
        name: As the paper writes it.
        words: Lower-case words that tell the two models' names; each set must be in one of them, either way round.
        weight_table: Where it gives the overlap with the largest weight changes.
        weight: That overlap (share) and its number of channels.
        overlaps: Overlap of the masks of two abilities (row, column), as a share.
        cross_lingual: Overlap with the union of the other language's domains.
    """

    name: str
    words: tuple[tuple[str, ...], tuple[str, ...]]
    weight_table: str
    weight: Mapping[str, tuple[float, int]]
    overlaps: Mapping[tuple[str, str], float] = field(default_factory=dict)
    cross_lingual: Mapping[str, float] = field(default_factory=dict)
    overlap_table: str = ""

    def is_of(self, target: str, source: str) -> bool:
        """Whether models of these names are this pair."""
        names = [_plain(target), _plain(source)]
        return any(
            all(set(words) <= set(name) and set(name) - set(words) <= _HARMLESS for words, name in zip(self.words, order, strict=True))
            for order in (names, names[::-1])
        )


_HARMLESS = {"hf", "v1.0", "v1.2"}


def _plain(model: str) -> list[str]:
    return short_name(model).lower().replace("llama-2", "llama2").replace("tulu-2", "tulu2").split("-")


def _weight(languages: Sequence[str], math: str, science: str) -> dict[str, tuple[float, int]]:
    """From the rows of a table: ``overlap in %:channels`` for each language."""
    cells = [(f"{language}-{domain}", cell) for domain, row in (("Math", math), ("Science", science))
             for language, cell in zip(languages, row.split(), strict=True)]  # fmt: skip
    return {label: (round(float(cell.split(":")[0]) / 100, 4), int(cell.split(":")[1])) for label, cell in cells}


def _symmetric(values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Masks of one size overlap alike both ways."""
    return {**values, **{(column, row): value for (row, column), value in values.items()}}


def _english(math_science: float, math_code: float, science_code: float) -> dict[tuple[str, str], float]:
    pairs = {("Math", "Science"): math_science, ("Math", "Code"): math_code, ("Science", "Code"): science_code}
    return _symmetric({**pairs, **{(f"EN-{a}", f"EN-{b}"): value for (a, b), value in pairs.items()}})


def _english_weight(**cells: tuple[float, int]) -> dict[str, tuple[float, int]]:
    plain = {domain.capitalize(): cell for domain, cell in cells.items()}
    return {**plain, **{f"EN-{domain}": cell for domain, cell in plain.items()}}


QWEN_7B_MATH = PaperPair(
    "Qwen2.5-Math-7B-Instruct vs. Qwen2.5-7B-Instruct",
    (("qwen2.5", "math", "7b", "instruct"), ("qwen2.5", "7b", "instruct")),
    "Tables 2 and 6",
    _weight(
        _LANGUAGES,
        "4.66:816 5.62:983 2.68:469 9.80:1716 9.74:1705 18.72:3277 21.69:3796 20.53:3593 15.67:2743 5.81:1017 10.28:1799",
        "5.35:936 3.83:670 3.44:603 11.84:2073 9.74:1705 14.40:2520 21.06:3686 4.11:720 8.32:1457 5.42:949 8.26:1446",
    ),
    _symmetric(
        {
            ("AR-Math", "EN-Math"): 0.253,
            ("EN-Science", "EN-Math"): 0.676,
            ("EN-Science", "AR-Math"): 0.313,
            ("AR-Science", "EN-Math"): 0.210,
            ("AR-Science", "AR-Math"): 0.809,
            ("AR-Science", "EN-Science"): 0.265,
        }
    ),
    {"EN-Math": 0.264, "AR-Math": 0.357, "EN-Science": 0.332, "AR-Science": 0.305},
    "Table 1",
)
PAPER_PAIRS = (
    QWEN_7B_MATH,
    PaperPair(
        "Qwen2.5-Coder-7B-Instruct vs. Qwen2.5-7B-Instruct",
        (("qwen2.5", "coder", "7b", "instruct"), ("qwen2.5", "7b", "instruct")),
        "Table 7",
        _weight(
            _LANGUAGES_OF_CODER,
            "10.36:1813 12.43:2176 5.00:876 25.15:4402 5.76:1009 5.49:961 17.05:2985 10.54:1845 9.55:1672 7.15:1252 3.94:690",
            "8.92:1561 14.35:2512 5.34:935 25.54:4470 6.08:1065 6.55:1146 14.30:2503 11.69:2046 8.60:1505 8.55:1496 4.25:744",
        ),
    ),
    PaperPair(
        "Qwen2.5-Math-1.5B-Instruct vs. Qwen2.5-1.5B-Instruct",
        (("qwen2.5", "math", "1.5b", "instruct"), ("qwen2.5", "1.5b", "instruct")),
        "Table 8",
        _weight(
            _LANGUAGES,
            "6.85:607 5.44:482 7.78:689 4.97:440 5.62:498 6.39:566 9.03:800 9.29:823 6.36:564 4.00:354 4.42:392",
            "7.15:634 5.51:488 7.58:672 5.69:504 5.71:506 6.68:592 9.89:876 7.83:694 6.70:594 4.14:367 4.95:439",
        ),
    ),
    PaperPair(
        "Qwen2.5-Coder-1.5B-Instruct vs. Qwen2.5-1.5B-Instruct",
        (("qwen2.5", "coder", "1.5b", "instruct"), ("qwen2.5", "1.5b", "instruct")),
        "Table 9",
        _weight(
            _LANGUAGES_OF_CODER,
            "5.76:510 7.72:684 4.89:433 7.23:641 6.99:619 8.02:711 6.61:586 7.70:682 6.17:547 5.59:495 7.73:685",
            "5.60:496 8.14:721 5.42:480 7.26:643 7.15:634 8.09:717 6.09:540 8.10:718 6.21:550 6.06:537 7.65:678",
        ),
    ),
    PaperPair(
        "Tulu-2-DPO-13B vs. LLaMA-2-13B",
        (("tulu2", "dpo", "13b"), ("llama2", "13b")),
        "Table 10a",
        _english_weight(math=(0.1877, 4845), science=(0.1993, 5145), code=(0.1937, 5000)),
        _english(0.891, 0.875, 0.894),
        overlap_table="Table 5a",
    ),
    PaperPair(
        "WizardLM-13B vs. LLaMA-2-13B",
        (("wizardlm", "13b"), ("llama2", "13b")),
        "Table 10b",
        _english_weight(math=(0.3001, 7747), science=(0.3624, 9356), code=(0.3235, 8353)),
        _english(0.824, 0.818, 0.860),
        overlap_table="Table 5b",
    ),
    PaperPair(
        "WizardMath-13B vs. LLaMA-2-13B",
        (("wizardmath", "13b"), ("llama2", "13b")),
        "Table 10c",
        _english_weight(math=(0.0941, 2430), science=(0.0921, 2377), code=(0.0964, 2489)),
        _english(0.894, 0.859, 0.892),
        overlap_table="Table 5c",
    ),
)


def paper_pair(target: str, source: str) -> PaperPair | None:
    """The paper's numbers of a pair of models, recognized by their names.

    >>> paper_pair("Qwen/Qwen2.5-Math-7B-Instruct", "models/Qwen2.5-7B-Instruct").weight_table
    'Tables 2 and 6'
    """
    return next((pair for pair in PAPER_PAIRS if pair.is_of(target, source)), None)
