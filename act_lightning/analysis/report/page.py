"""What a report is made of: sections of text, figures and tables, and numbers in sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

import act_lightning
from act_lightning.analysis.figures.style import as_png, as_svg, css_variables, with_variables
from act_lightning.analysis.report.evidence import Evidence
from act_lightning.checkpoints.files import atomic_folder
from act_lightning.errors import ActError, ConfigIssue


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Of its files, unique in the report.
        caption: What it shows; what it is in the paper comes first.
        draw: Makes the figure when it is written: matplotlib takes seconds for a dozen.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Attributes:
        name: Of its file, unique in the report.
        caption: What it shows; what it is in the paper comes first.
        frame: Its cells; names of rows are the index.
        shares: Columns whose values are shares, shown in %.
        shown: Whether the page opens with it unfolded; large ones are folded.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shares: frozenset[str] = frozenset()
    shown: bool = True


@dataclass
class Section:
    """A part of the report.

    Attributes:
        key: Of its place in the page.
        title: Its heading.
        claim: What the paper says, to compare.
        summary: Sentences for the top of the page, computed from the data.
        content: Figures, tables and headings, in order.
    """

    key: str
    title: str
    claim: str = ""
    summary: list[str] = field(default_factory=list)
    content: list[Picture | ReportTable | str] = field(default_factory=list)


@dataclass(frozen=True)
class Absent:
    """A part that could not be shown.

    Attributes:
        title: What it would be.
        reason: Why it is not there.
    """

    title: str
    reason: str


Builder = Callable[[Evidence], list[Section | Absent]]
"""What turns the evidence into a section; or into the reason why there is none."""


def percent(share: float) -> str:
    """A share in % with three digits at most.

    >>> percent(0.253), percent(0.0466), percent(1.0), percent(0.00012)
    ('25.3 %', '4.66 %', '100 %', '0.012 %')
    """
    return f"{100 * share:.3g} %"


def percents(shares: Iterable[float]) -> str:
    """From the lowest share to the highest.

    >>> percents([0.038, 0.056]), percents([0.5])
    ('3.8–5.6 %', '50 %')
    """
    values = list(shares)
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def numbers(values: Iterable[float]) -> str:
    """From the lowest number to the highest.

    >>> numbers([0.7123, 0.8]), numbers([4.5]), numbers([17505, 940])
    ('0.712–0.8', '4.5', '940–17,505')
    """
    found = list(values)
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (min(found), max(found)))
    return low if low == high else f"{low}–{high}"


def counted(count: int, word: str, several: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "pair"), counted(2, "ability", "abilities")
    ('1 pair', '2 abilities')
    """
    return f"{count:,} {word if count == 1 else several or word + 's'}"


PAGE = "index.html"
FINDINGS = (
    "The findings of “Ability Transfer and Recovery via Modularized Parameters Localization” (arXiv 2601.09398), "
    "computed from saved scores. Figures and tables carry the paper's numbers."
)
_CONTENT = {PAGE, "figures", "tables"}
_PIXELS = 1.5  # at most so many of a page for one point of a figure
_GENERATOR = '<meta name="generator" content="act_lightning report">'


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: As shown.
        value: The number itself, as Python writes it; ``None`` for text.
    """

    text: str
    value: str | None = None


def write_report(
    out: Path,
    title: str,
    parts: Sequence[Section | Absent],
    limits: Sequence[str],
    now: datetime | None = None,
    about: str = FINDINGS,
) -> Path:
    """Write the report to ``out``, whole or not at all; an earlier report there is replaced.

    Args:
        out: The folder to be: new, empty, or an earlier report.
        title: Of the page.
        parts: Its sections, and what is missing.
        limits: What the report does not show, whatever the data.
        now: When it was made.
        about: What the page is, in a sentence or two below its title.

    Returns:
        The page.

    Raises:
        ActError: ``out`` holds something else, or cannot be written.
    """
    require_report_folder(out)
    with atomic_folder(out) as folder:
        for name in ("figures", "tables"):
            (folder / name).mkdir()
        items = [item for part in parts if isinstance(part, Section) for item in part.content]
        drawn = {_key(item): _write(folder, item) for item in items if not isinstance(item, str)}
        page = _render(title, parts, limits, drawn, now or datetime.now(UTC), about)
        (folder / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def require_report_folder(out: Path) -> None:
    """Refuse a folder whose content is not ours to replace.

    Raises:
        ActError: It is a file, or holds what no report has written.
    """
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {"a file"}
    page = out / PAGE
    ours = page.is_file() and _GENERATOR in page.read_text(encoding="utf-8", errors="replace")
    if names and not (ours and names <= _CONTENT):
        problem = f"must be a new folder or an earlier report, and holds {', '.join(sorted(names)[:3])}"
        raise ActError(
            ConfigIssue("--out", str(out), problem, "Name another folder: an earlier report is replaced as a whole.")
        )


def _key(item: Picture | ReportTable) -> tuple[str, str]:
    return ("table" if isinstance(item, ReportTable) else "figure", item.name)


def _write(folder: Path, item: Picture | ReportTable) -> Markup | list[list[Cell]]:
    """Write the files of one item, and give what the page shows of it."""
    if isinstance(item, ReportTable):
        item.frame.to_csv(
            folder / "tables" / f"{item.name}.csv", lineterminator="\n", index_label=item.frame.index.name or ""
        )
        return [
            _cells(item, name, row)
            for name, row in zip(item.frame.index, item.frame.itertuples(index=False), strict=True)
        ]
    figure = item.draw()
    svg = as_svg(figure)
    (folder / "figures" / f"{item.name}.svg").write_text(svg, encoding="utf-8")
    (folder / "figures" / f"{item.name}.png").write_bytes(as_png(figure))
    return inline_svg(svg, item.name)


def _cells(table: ReportTable, name: object, row: Sequence[Any]) -> list[Cell]:
    columns = list(table.frame.columns)
    index = cell(name, False) if isinstance(name, float) else Cell(str(name))
    return [index, *(cell(value, column in table.shares) for column, value in zip(columns, row, strict=True))]


def cell(value: object, share: bool) -> Cell:
    """A value as a table shows it.

    >>> cell(0.25331, True), cell(17505, False).text, cell(0.19, True).text, cell(float("nan"), True).text
    (Cell(text='25.3 %', value='0.25331'), '17,505', '19.0 %', '–')
    """
    if isinstance(value, str):
        return Cell(value)
    if value is None or pd.isna(value):
        return Cell("–")
    number = float(value)  # type: ignore[arg-type]
    if share:
        return Cell(f"{_digits(100 * number, 3)} %", repr(number))
    if isinstance(value, float):
        return Cell(_digits(number, 4), repr(number))
    return Cell(f"{int(number):,}", repr(int(number)))


def _digits(number: float, digits: int) -> str:
    """As many digits as asked for, also where the last are 0; nothing of a zero's."""
    return f"{number:#.{digits}g}".rstrip(".") if number else "0"


def inline_svg(svg: str, name: str) -> Markup:
    """The SVG for the inside of a page: its colors as variables, its ids its own, its size the page's."""
    body = with_variables(svg[svg.index("<svg") :])
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'((?:xlink:)?href="|url\()#', rf"\g<1>#{name}-", body)
    width = re.search(r' width="([\d.]+)pt"', body)
    limit = f' style="max-width: {float(width.group(1)) * _PIXELS:.0f}px"' if width else ""
    body = re.sub(r' width="[\d.]+pt"', limit, body, count=1)
    body = re.sub(r' height="[\d.]+pt"', "", body, count=1)
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body).replace("xlink:href", "href")
    return Markup(body)


def _render(
    title: str,
    parts: Sequence[Section | Absent],
    limits: Sequence[str],
    drawn: dict[tuple[str, str], Any],
    now: datetime,
    about: str,
) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["glued"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    template = environment.from_string(files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        about=about,
        sections=[part for part in parts if isinstance(part, Section)],
        absent=[part for part in parts if isinstance(part, Absent)],
        limits=limits,
        drawn=drawn,
        kind=lambda item: "text" if isinstance(item, str) else "picture" if isinstance(item, Picture) else "table",
        numeric=pd.api.types.is_numeric_dtype,
        generator=Markup(_GENERATOR),
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
        version=act_lightning.__version__,
        made=now.strftime("%Y-%m-%d %H:%M UTC"),
    )
