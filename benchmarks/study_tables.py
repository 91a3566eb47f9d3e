"""Tables and figure of the study, from its rows alone: means on test of what validation chose, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.study import (
    ALONE,
    BASELINES,
    KEEP,
    METHODS,
    RECOVER,
    ROLES,
    SOURCE,
    TARGET,
    TEST,
    Part,
    Row,
    chosen_row,
    of,
    read_rows,
    steps,
)

DRAWS = 2000


class Estimate(NamedTuple):
    """A mean over pairs and seeds with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In %, as in the tables."""
        return f"{100 * self.value:.1f} ({100 * self.low:.0f} to {100 * self.high:.0f})"


class Report:
    """Chosen rows on test of one part, and resampled means of them.

    Only pairs and seeds that have all ``BASELINES`` count, so that all methods stand on the same ones.

    Attributes:
        rows: All rows, by pair and seed.
        seeds: The seeds that count, by pair.
        methods: The methods that all of these have.
    """

    def __init__(self, part: Part, rows: Sequence[Row]) -> None:
        self.part = part
        self.rows: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            self.rows.setdefault((row.pair, row.seed), []).append(row)
        runs = sorted(self.rows, key=lambda run: (list(part.pairs).index(run[0]), run[1]))
        complete = {run: {method for method in part.methods if self._is_complete(*run, method)} for run in runs}
        counting = [run for run, methods in complete.items() if methods.issuperset({*BASELINES} & {*part.methods})]
        self.seeds = {pair: [seed for other, seed in counting if other == pair] for pair, _ in counting}
        self.methods = [method for method in part.methods if all(method in complete[run] for run in counting)]
        self._cached_draws = cache(self._draws)

    def _is_complete(self, pair: str, seed: int, method: str) -> bool:
        rows = self.rows[pair, seed]
        needed = steps(replace(self.part, methods=[method]), lambda: rows)
        try:
            return {row.key for row in rows}.issuperset(key for step in needed for key in step.keys(pair, seed))
        except (IndexError, ValueError):  # there is nothing to choose from yet
            return False

    @cached_property
    def entries(self) -> list[tuple[str, int]]:
        """Method and number of fine-tuning samples of all that is reported, target first."""
        tuned = [ALONE, *(method for method in self.methods if method in self.part.tuned_methods)]
        after_tuning = [(method, samples) for samples in self.part.tuned_samples for method in tuned]
        return [(TARGET, 0), (SOURCE, 0), *((method, 0) for method in self.methods), *after_tuning]

    def choice(self, pair: str, seed: int, method: str, samples: int) -> tuple[Row, bool]:
        """The row on test of what validation chose, and whether validation found that it keeps."""
        rows = self.rows[pair, seed]
        if method in (TARGET, SOURCE):
            return of(rows, method, split=TEST)[0], True
        row, keeps = chosen_row(rows, method, samples)
        return next(each for each in rows if each.key == replace(row, split=TEST).key), keeps

    def draws(self, pairs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Means of every entry over the pairs, by role ``[1 + DRAWS, entries]``: as measured, then resampled."""
        return self._cached_draws(tuple(pairs))

    def _draws(self, pairs: tuple[str, ...]) -> Mapping[str, np.ndarray]:
        totals = {role: np.zeros((1 + DRAWS, len(self.entries))) for role in ROLES}
        for pair in pairs:
            seeds = self.seeds[pair]
            chosen = [[self.choice(pair, seed, *entry)[0] for entry in self.entries] for seed in seeds]
            drawn_seeds = np.random.default_rng(0).integers(len(seeds), size=(DRAWS, len(seeds)))
            for role, group in ((KEEP, self.part.keep_group), (RECOVER, 1)):
                count = int(getattr(chosen[0][0], f"{role}_items"))
                bits = [[outcomes(getattr(row, f"{role}_bits"), count) for row in of_seed] for of_seed in chosen]
                groups = np.array(bits, dtype=np.float64).reshape(len(seeds), len(self.entries), -1, group).mean(3)
                totals[role][0] += groups.mean((0, 2))
                rng = np.random.default_rng(1)  # anew, since laboratories have the same items
                for draw, numbers in enumerate(drawn_seeds, start=1):
                    items = rng.integers(groups.shape[2], size=groups.shape[2])
                    times = np.bincount(items, minlength=groups.shape[2]) / groups.shape[2]
                    totals[role][draw] += groups[numbers].mean(0) @ times
        return {role: values / len(pairs) for role, values in totals.items()}


def estimate(values: np.ndarray) -> Estimate:
    """The first value, and the percentile interval of the others."""
    return Estimate(float(values[0]), *(float(bound) for bound in np.quantile(values[1:], (0.025, 0.975))))


def markdown(report: Report, pairs: Sequence[str]) -> list[str]:
    """A table of every number of samples: keep and recover on test, and what they differ by from what is compared."""
    draws = report.draws(pairs)
    index = {entry: number for number, entry in enumerate(report.entries)}
    runs = [(pair, seed) for pair in pairs for seed in report.seeds[pair]]

    def line(method: str, samples: int, against: tuple[str, int]) -> str:
        column, other = index[method, samples], index[against]
        keep, recover = (estimate(draws[role][:, column]) for role in ROLES)
        lost = estimate(draws[KEEP][:, column] - draws[KEEP][:, index[TARGET, 0]])
        gained = estimate(draws[RECOVER][:, column] - draws[RECOVER][:, other])
        chosen = [report.choice(*run, method, samples) for run in runs]
        shares = [row.share for row, _ in chosen]
        points = "" if not any(shares) else f"{100 * statistics.median(shares):.1f}"
        scales = "" if not any(shares) else f"{statistics.median(row.scale for row, _ in chosen):.1f}"
        keeps = f"{sum(keeps for _, keeps in chosen)}/{len(chosen)}"
        return f"| {method} | {points} | {scales} | {keep} | {recover} | {lost} | {gained} | {keeps} |"

    lines = []
    for samples in (0, *report.part.tuned_samples):
        against = (ALONE, samples) if samples else (TARGET, 0)
        title = f"fine-tuned on {samples} samples" if samples else "transfer alone"
        lines += [
            f"**{title[0].upper()}{title[1:]}**",
            "",
            f"| method | moved, % | λ | keep | recover | keep − target | recover − {against[0]} | keeps |",
            "|---|---|---|---|---|---|---|---|",
        ]
        if not samples:
            lines += [line(TARGET, 0, against), line(SOURCE, 0, against)]
        lines += [
            line(method, samples, against)
            for method, n in report.entries
            if n == samples and method not in (TARGET, SOURCE)
        ]
        lines.append("")
    return lines


def summary(report: Report, pairs: Sequence[str]) -> list[str]:
    """One table of whole points: every method alone, and its recover after fine-tuning."""
    draws = report.draws(pairs)
    index = {entry: number for number, entry in enumerate(report.entries)}

    def cell(role: str, entry: tuple[str, int]) -> str:
        if entry not in index:
            return ""
        value, low, high = (100 * bound for bound in estimate(draws[role][:, index[entry]]))
        return f"{value:.0f} ({low:.0f}–{high:.0f})"

    tuned = report.part.tuned_samples
    head = ["", "moved", "keep", "recover", *(f"recover, then {samples} samples" for samples in tuned)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for method in (TARGET, SOURCE, *([ALONE] if tuned else []), *report.methods):
        shares = [
            report.choice(pair, seed, method, 0)[0].share
            for pair in pairs
            for seed in report.seeds[pair]
            if (method, 0) in index
        ]
        moved = f"{100 * statistics.median(shares):.3g} %" if any(shares) else ""
        cells = [method, moved, *(cell(role, (method, 0)) for role in ROLES)]
        lines.append(f"| {' | '.join([*cells, *(cell(RECOVER, (method, samples)) for samples in tuned)])} |")
    return lines


def write_tables(parts: Mapping[str, Part], folder: Path) -> str:
    """``tables.md`` and its text, and ``figure.svg`` and a ``summary`` of every part that has several seeds."""
    lines = [
        "<!-- made by the verb `tables` of benchmarks.study, or of benchmarks.rules -->",
        "Means over seeds (and pairs) on test items in %, with 95 % intervals; *moved* and λ are medians of what",
        "validation chose; *keeps*: in how many runs validation found a point within one point of the target's keep.",
        "Intervals are over seeds and items; of a single seed, over items alone.",
        "",
    ]
    several_seeds = {}
    for name, part in parts.items():
        path = folder / f"{name}.csv"
        report = Report(part, read_rows(path) if path.is_file() else [])
        if not report.seeds:
            continue
        if max(map(len, report.seeds.values())) > 1:  # intervals of a single seed would be of items alone
            several_seeds[name] = report
            short = "\n".join(summary(report, list(report.seeds)))
            (folder / f"{name}-summary.md").write_text(f"{short}\n", encoding="utf-8")
        every = [list(report.seeds)] if len(report.seeds) > 1 else []
        for pairs in [*every, *([pair] for pair in report.seeds)]:
            runs = ", ".join(f"{pair} (seeds {', '.join(map(str, report.seeds[pair]))})" for pair in pairs)
            lines += [f"### {name}: {runs}", "", *summary(report, pairs), "", *markdown(report, pairs)]
    text = "\n".join(lines)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    if several_seeds:
        draw_figure(several_seeds, folder / "figure.svg")
    return text


def draw_figure(reports: Mapping[str, Report], path: Path) -> None:
    """Recover against keep with intervals: a row of panels for each part, a panel for each number of samples."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    columns = max(1 + len(report.part.tuned_samples) for report in reports.values())
    figure, axes = pyplot.subplots(
        len(reports), columns, figsize=(4.2 * columns, 4 * len(reports)), squeeze=False, sharex="row", sharey="row"
    )
    for row, (name, report) in zip(axes, reports.items(), strict=True):
        draws, index = report.draws(list(report.seeds)), {entry: number for number, entry in enumerate(report.entries)}
        for axis, samples in zip(row, (0, *report.part.tuned_samples), strict=False):
            others = (TARGET, 0), (SOURCE, 0)  # the source is far to the left
            shown = [entry for entry in report.entries if entry[1] == samples and entry not in others]
            for entry in [others[0], *shown]:
                keep, recover = (estimate(100 * draws[role][:, index[entry]]) for role in ROLES)
                number = list(METHODS).index(entry[0]) if entry[0] in METHODS else -1
                axis.errorbar(
                    keep.value, recover.value,
                    xerr=[[keep.value - keep.low], [keep.high - keep.value]],
                    yerr=[[recover.value - recover.low], [recover.high - recover.value]],
                    label=entry[0], marker="*" if number < 0 else "osD^v<>PXph"[number % 11], linewidth=0.8,
                    color={TARGET: "black", ALONE: "dimgray"}.get(entry[0], pyplot.get_cmap("tab20")(number % 20)),
                )  # fmt: skip
            axis.set(title=f"{name}, {samples} samples" if samples else f"{name}, transfer alone", xlabel="keep, %")
        row[0].set_ylabel("recover, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    for handle, label in zip(*axes[0][-1].get_legend_handles_labels(), strict=True):
        if label not in labels:
            handles, labels = [*handles, handle], [*labels, label]
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.14 / len(reports), 1, 1))
    with matplotlib.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def outcomes(bits: str, items: int) -> list[int]:
    """The outcome of every item.

    >>> outcomes("16", 7)
    [0, 0, 1, 0, 1, 1, 0]
    """
    return [int(digit) for digit in f"{int(bits, 16):0{items}b}"]
