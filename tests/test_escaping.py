"""Names and texts of strangers' files, at every place where they leave the program."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from act_lightning.analysis.figures.findings import dots_figure
from act_lightning.analysis.report.page import Picture, ReportTable, Section, inline_svg, write_report
from act_lightning.cards.card import read_card, render_card, table
from act_lightning.console import Console
from act_lightning.escaping import csv_cell, file_name, markdown_code, markdown_text, terminal_text
from act_lightning.evaluation.tables import csv_table, markdown_table
from tests.analysis.runs import write_run
from tests.analysis.test_report import Page
from tests.front_door import call

CLIPBOARD = "\x1b]52;c;aGk=\x07"
HTML = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
ANY = st.text(st.characters(), max_size=40)


@given(ANY)
def test_a_terminal_gets_no_control_characters(text: str) -> None:
    escaped = terminal_text(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", escaped)
    assert terminal_text(escaped) == escaped
    document = terminal_text(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(document) == {text: [text]}


@given(ANY, st.booleans())
def test_the_console_prints_text_as_it_is_but_for_control_characters(text: str, in_color: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=400, force_terminal=in_color)
    columns = Table(text, title=text, box=None)
    columns.add_row(text, style="red")
    for content in (text, columns, "[red]x[/] :smile:"):
        console.print(content)
    printed = re.sub("\x1b\\[[0-9;]*m", "", file.getvalue())  # rich's own colors
    assert "\x1b" not in printed
    assert "[red]x[/] :smile:" in printed


@given(ANY, ANY)
def test_markdown_stays_in_its_line_and_cell(first: str, second: str) -> None:
    lines = table([["a", "b"], [first, second]])
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3
    assert "\n" not in lines[2]
    assert "<" not in markdown_text(first)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`\[\]]", markdown_text(first))
    code = markdown_code(first)
    fence = re.match("`+", code)
    assert fence is not None
    assert code.count(fence[0]) >= 2
    assert fence[0] not in code.strip("`")
    assert markdown_table(["a", "b"], [[first, second]]).count("\n") == 3


@given(ANY)
def test_no_cell_of_a_csv_file_is_a_formula(text: str) -> None:
    content = list(csv.reader(io.StringIO(csv_table([{text or "x": text}]))))
    for row in content:
        for cell in row:
            assert not re.match(r"\s*[=@]", cell)
            assert not re.match(r"\s*[+-]\D", cell)
    assert csv_cell(-1.5) == -1.5


@given(ANY)
def test_file_names_are_names(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", file_name(text))


def handlers(source: str) -> list[str]:
    """Attributes of a page's elements that run code."""
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(name for name, value in attrs if name.startswith("on") or "javascript:" in (value or ""))

    Parser().feed(source)
    return found


def test_a_report_of_hostile_names(tmp_path: Path) -> None:
    frame = pd.DataFrame({"=1+1": [0.5, 0.25], HTML: ["@SUM(A1)", CLIPBOARD]}, index=["=cmd|'/C calc'!A0", HTML])
    draw = lambda: dots_figure(pd.DataFrame({"$\\frac$": [0.5]}, index=[HTML]), "#ffffff")  # noqa: E731
    content = [Picture(HTML, HTML, draw), ReportTable(HTML, HTML, frame), HTML]
    page = Page(write_report(tmp_path / "report", HTML, [Section("a", HTML, HTML, [HTML], content)], [HTML]))
    assert not {"script", "img"} & set(page.tags)
    assert not handlers(page.source)
    name = file_name(HTML)
    assert f"figure-{name}" in page.ids
    rows = list(csv.reader((tmp_path / f"report/tables/{name}.csv").read_text().splitlines()))
    assert rows[0][1] == "'=1+1"
    assert rows[1][0].startswith("'=cmd")
    assert rows[1][2] == "'@SUM(A1)"
    svg = (tmp_path / f"report/figures/{name}.svg").read_text()
    ElementTree.fromstring(svg)
    assert "onerror" not in svg


def test_an_svg_is_data() -> None:
    ns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    evil = (
        f'<svg {ns} width="10pt" height="5pt" onload="a()"><script>b()</script><g id="x" onclick="c()">'
        '<a xlink:href="javascript:d()"><path d="M0"/></a><use xlink:href="#x"/><use href="javascript:e()"/>'
        '<foreignObject><p>f</p></foreignObject><path clip-path="url(#x)" style="fill: none"/></g></svg>'
    )
    assert str(inline_svg(evil, "n")) == (
        '<svg style="--width: 15px; max-width: 15px"><g id="n-x"><use href="#n-x" /><use />'
        '<path clip-path="url(#n-x)" style="fill: none" /></g></svg>'
    )


@pytest.mark.parametrize("ability", ['"><b onload=a()>', "$\\frac$", "=1+1"])
def test_the_verb_report_on_a_score_file_with_such_a_name(tmp_path: Path, ability: str) -> None:
    write_run(tmp_path / "run", abilities=["math-en", ability])
    outcome = call("report", tmp_path / "run", "--no-weights", "--show", ability)
    if outcome.status:
        assert outcome.err.startswith("error: ")
        return
    page = Page(tmp_path / "run/report/index.html")
    assert not {"script", "img"} & set(page.tags)
    assert not handlers(page.source)


def test_a_patch_cannot_write_the_card_or_the_terminal(
    tmp_path: Path, target_folder: Path, source_folder: Path
) -> None:
    patch = tmp_path / "a.safetensors"
    assert call("patch", "make", "--base", target_folder, "--tuned", source_folder, "--out", patch).status == 0
    with safe_open(patch, "pt") as file:
        metadata = file.metadata()
    record: dict[str, Any] = json.loads(metadata["act_patch"])
    recipe = "\n\n## Recipe\n\n```yaml\nmodel: {target: evil}\n```\n\n## Record\n\n```json\n{}\n```\n"
    evil = f"x{CLIPBOARD}`{recipe}<script>"
    record["provenance"] |= {"tuned": evil, "base": f"a/b\n---\n{evil}"}
    record["provenance"]["licenses"] = {evil: {"license": f"mit\n---\n{recipe}", "license_name": "n", "extra": evil}}
    save_file(load_file(patch), patch, metadata | {"act_patch": json.dumps(record)})
    for arguments in (["show", patch], ["show", patch, "--json"]):
        outcome = call("patch", *arguments)
        assert "\x1b" not in outcome.out + outcome.err, arguments
    out = tmp_path / "patched"
    outcome = call("patch", "apply", "--model", target_folder, "--patch", patch, "--out", out)
    if outcome.status:  # refused for the types or sizes in its record
        assert outcome.err.startswith("error: ")
        assert "\x1b" not in outcome.err
        return
    text = (out / "README.md").read_text()
    assert "\n## Recipe" not in text
    assert "<script>" not in text.partition("\n---\n")[2]
    assert "\x1b" not in text
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "transformers"
    assert "extra" not in data


def test_a_card_of_hostile_names_reads_back(tmp_path: Path) -> None:
    recipe = "\n\n## Recipe\n\n```yaml\nmodel: {target: evil}\n```\n"
    models = {"model.target": {"name": f"a`{recipe}", "license": {"license": f"mit{recipe}", "license_link": ["x"]}}}
    record = {"verb": "fit", "models": models, "data": {}}
    mine = {"model": {"target": f"b{recipe}"}, "data": {"abilities": {f"|{recipe}": {"path": f"<b>{recipe}"}}}}
    transfer = {"sources": {f"s{recipe}": {"model": f"m{recipe}", "scale": recipe}}, "method": recipe}
    (tmp_path / "README.md").write_text(render_card(record, mine, transfer, [["a"], [recipe]]))
    assert read_card(tmp_path) == (mine, record)


def test_an_index_of_hostile_names_is_no_text_for_a_terminal(tmp_path: Path, target_folder: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(target_folder, model)
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": f"{CLIPBOARD}.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    outcome = call("patch", "make", "--base", model, "--tuned", target_folder, "--out", tmp_path / "p")
    assert outcome.status == 1
    assert "\x1b" not in outcome.err
    assert "]52" in outcome.err
