"""A report as a folder: one self-contained page of sections, figures as SVG and PNG, tables as CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

import act_lightning
from act_lightning.analysis.figures.style import css_variables, render, with_variables
from act_lightning.checkpoints.files import atomic_folder
from act_lightning.checkpoints.manifest import foreign_issue, write_manifest
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.escaping import csv_cell, file_name


@dataclass(frozen=True)
class Picture:
    """A figure with the name of its files, unique in the report; its caption begins with what it is in the paper.

    ``draw`` makes it when it is written: matplotlib takes seconds for a dozen.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class ReportTable:
    """A table with the name of its file, unique in the report, and a caption that begins with what it is in the paper.

    Names of rows are the index of the frame. Columns in ``shares`` are shown in %; on the page a table that is not
    ``shown`` is folded.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shares: frozenset[str] = frozenset()
    shown: bool = True


Item = Picture | ReportTable | str
"""A figure, a table, or text: a heading or a sentence."""


@dataclass
class Section:
    """A part of the report: id and heading, the paper's claim, sentences for the top of the page, and the content."""

    key: str
    title: str
    claim: str = ""
    summary: list[str] = field(default_factory=list)
    content: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Absent:
    """A part that could not be shown, and the reason."""

    title: str
    reason: str


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

    >>> numbers([0.7123, 0.8]), numbers([4.5]), numbers([17505, 940]), numbers([0.5, -0.1])
    ('0.712–0.8', '4.5', '940–17,505', '-0.1 to 0.5')
    """
    values = list(values)
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}{' to ' if min(values) < 0 else '–'}{high}"


def counted(count: int, word: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "pair"), counted(2, "ability", "abilities")
    ('1 pair', '2 abilities')
    """
    return f"{count:,} {word if count == 1 else plural or word + 's'}"


def verdict(criterion: str, met: Iterable[bool], word: str, plural: str | None = None) -> str:
    """Whether a finding holds here: of how many a criterion of ours, which the paper does not give, is met.

    >>> verdict("at least ten times an equal share", [True, False], "ability", "abilities")
    'Criterion: at least ten times an equal share. Met by 1 of 2 abilities: the finding is supported in part here.'
    """
    cases = [bool(case) for case in met]
    kind = "supported" if all(cases) else "supported in part" if any(cases) else "not supported"
    met_by = f"{sum(cases)} of {counted(len(cases), word, plural)}"
    return f"Criterion: {criterion}. Met by {met_by}: the finding is {kind} here."


PAGE = "index.html"
FINDINGS = (
    "The findings of “Ability Transfer and Recovery via Modularized Parameters Localization” (arXiv 2601.09398), "
    "computed from saved scores. Figures and tables carry the paper's numbers."
)
_PIXELS = 1.5  # at most so many of a page for one point of a figure
_DRAWING = frozenset({"svg", "g", "defs", "style", "clipPath", "path", "rect", "use", "image"})
_DRAWING_ATTRIBUTES = frozenset(
    {"clip-path", "d", "height", "style", "transform", "type", "version", "viewBox", "width", "x", "y"}
)


@dataclass(frozen=True)
class Cell:
    """One cell of a table as shown, and the number itself as Python writes it; ``None`` for text."""

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
    """Write the report to ``out``, whole or not at all, and return its page; an earlier report there is replaced.

    ``limits`` are what it does not show, whatever the data; ``about`` is a sentence or two below the title.

    Raises:
        ActError: ``out`` holds something other than a report, or cannot be written.
    """
    require_report_folder(out)
    with atomic_folder(out) as folder:
        for name in ("figures", "tables"):
            (folder / name).mkdir()
        contents: dict[tuple[str, str], Any] = {}
        for item in (item for part in parts if isinstance(part, Section) for item in part.content):
            if isinstance(item, ReportTable):
                contents["table", item.name] = _write_table(folder / "tables", item)
            elif isinstance(item, Picture):
                figure, name = item.draw(), file_name(item.name)
                svg = render(figure, "svg").decode()
                (folder / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
                (folder / "figures" / f"{name}.png").write_bytes(render(figure, "png"))
                contents["figure", item.name] = inline_svg(svg, name)
        page = _render(title, parts, limits, contents, now or datetime.now(UTC), about)
        (folder / PAGE).write_text(page, encoding="utf-8")
        for name in ("figures", "tables"):
            with suppress(OSError):  # it is not empty
                (folder / name).rmdir()
        write_manifest(folder)
    return out / PAGE


def require_report_folder(out: Path) -> None:
    """Check that ``out`` may be replaced.

    Raises:
        ActError: It is a file, or holds something that no report has written.
    """
    if out.exists() and not out.is_dir():
        hint = "Name another folder: an earlier report is replaced as a whole."
        raise ActError(ConfigIssue("--out", str(out), "must be a folder, and is a file", hint))
    if issue := foreign_issue(out, "--out", "report"):
        raise ActError(issue)


def _write_table(folder: Path, table: ReportTable) -> list[list[Cell]]:
    """Write a table as CSV, and return its rows as the page shows them."""
    frame = table.frame
    cells = frame.map(csv_cell).rename(index=csv_cell, columns=csv_cell)
    path = folder / f"{file_name(table.name)}.csv"
    cells.to_csv(path, lineterminator="\n", index_label=csv_cell(frame.index.name or ""))
    rows = []
    for name, values in zip(frame.index, frame.itertuples(index=False), strict=True):
        first = cell(name, False) if isinstance(name, float) else Cell(str(name))
        others = (cell(value, column in table.shares) for column, value in zip(frame.columns, values, strict=True))
        rows.append([first, *others])
    return rows


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
    if not share and not isinstance(value, float):
        return Cell(f"{int(number):,}", repr(int(number)))
    text = f"{100 * number:#.3g}" if share else f"{number:#.4g}"  # with trailing zeros
    return Cell((text.rstrip(".") if number else "0") + (" %" if share else ""), repr(number))


def inline_svg(svg: str, name: str) -> Markup:
    """The SVG for the inside of a page: its colors as variables, its ids its own, its size the page's.

    It is parsed as data, and only what draws is kept: no scripts, handlers, links or comments.
    """
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [child for child in parent if _local(child.tag) not in _DRAWING]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == "href" and value.startswith(("#", "data:image/png;base64,")):
                element.set(key, f"#{name}-{value[1:]}" if value.startswith("#") else value)
            elif key in _DRAWING_ATTRIBUTES:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    width = re.fullmatch(r"([\d.]+)pt", root.attrib.pop("width", ""))
    root.attrib.pop("height", None)
    if width:
        pixels = f"{float(width[1]) * _PIXELS:.0f}px"
        root.set("style", f"--width: {pixels}; max-width: {pixels}")
    return Markup(with_variables(ElementTree.tostring(root, encoding="unicode")))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _sentence(text: str) -> Markup:
    """A sentence as HTML: nothing of it is obeyed, what stands between backticks is code, and numbers keep their %.

    >>> print(_sentence("`a` <b> 5 %").replace("\N{NO-BREAK SPACE}", "_"))
    <code>a</code> &lt;b&gt; 5_%
    """
    pieces = text.replace(" %", "\N{NO-BREAK SPACE}%").split("`")
    pieces = pieces if len(pieces) % 2 else [text]
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if number % 2 else piece for number, piece in enumerate(pieces)
    )


def _render(
    title: str,
    parts: Sequence[Section | Absent],
    limits: Sequence[str],
    contents: dict[tuple[str, str], Any],
    now: datetime,
    about: str,
) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["file_name"] = file_name
    environment.filters["glued"] = _sentence
    template = environment.from_string(files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        about=about,
        sections=[part for part in parts if isinstance(part, Section)],
        absent=[part for part in parts if isinstance(part, Absent)],
        limits=limits,
        drawn=contents,
        kind=lambda item: "text" if isinstance(item, str) else "picture" if isinstance(item, Picture) else "table",
        numeric=pd.api.types.is_numeric_dtype,
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
        version=act_lightning.__version__,
        made=now.strftime("%Y-%m-%d %H:%M UTC"),
    )
