"""Documents: links and anchors that lead somewhere, pages that scripts write, and a site that fetches nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from act_lightning.merging import METHODS
from act_lightning.profiling.memory import PLACEMENTS
from act_lightning.scorers import SCORERS, UNSCORED
from scripts import docstring_markup, site_pages
from scripts.models_page import PAGE, YES, read_rows
from tests import test_matrix
from tests.front_door import basic, run
from tests.tiny import ARCHITECTURES, write_jsonl

ROOT = site_pages.ROOT
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md", "configs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
NOTEBOOK = "docs/tutorial.ipynb"


def text_of(document: str) -> str:
    if document == NOTEBOOK:
        return site_pages.notebook_page(ROOT / document)[0]
    return site_pages.include((ROOT / document).read_text(encoding="utf-8"), document)


def anchors(document: str) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {site_pages.slug(re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)) for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, NOTEBOOK])
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text):
        if ":" in path:
            continue
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), path
        if anchor and file.suffix in (".md", ".ipynb"):
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), f"{path}#{anchor}"


def test_hints_and_configs_name_pages_that_exist() -> None:
    files = [*ROOT.glob("act_lightning/**/*.py"), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("scripts/*")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    pages = {page for text in texts for page in re.findall(r"\bdocs/[\w-]+\.(?:md|ipynb)\b", text)}
    assert len(pages) > 5
    assert not [page for page in pages if not (ROOT / page).is_file()]


def test_every_page_is_in_the_navigation() -> None:
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=loader)
    named = set(re.findall(r"[\w-]+\.md", str(site["nav"])))
    added = {*site_pages.PAGES.values(), f"{site_pages.CONFIGS}.md"}
    assert named == {path.name for path in ROOT.glob("docs/*.md")} | {name for name in added if name.endswith(".md")}


def test_sections_are_taken_whole() -> None:
    text = "# A\n\nx\n\n## B: one\n\n```bash\n# B: none\n```\n\n### C\n\ny\n\n## D\n\nz\n"
    assert site_pages.section(text, "B: one") == "## B: one\n\n```bash\n# B: none\n```\n\n### C\n\ny"
    assert site_pages.section(text, "A") == text.strip()
    with pytest.raises(ValueError, match="0 headings start with 'E'"):
        site_pages.section(text, "E")


def test_links_point_to_the_pages_of_the_site() -> None:
    page = "docs/choosing.md"
    assert site_pages.rewrite("[a](../benchmarks/RESULTS.md#speed)", page) == "[a](results.md#speed)"
    assert site_pages.rewrite("[a](tutorial.ipynb), [b](claims.md)", page) == "[a](tutorial.md), [b](claims.md)"
    assert site_pages.rewrite("[a](../configs/paper)", page) == "[a](configs.md#configspaper)"
    assert site_pages.rewrite("[the lock](requirements.lock)", "SECURITY.md") == "the lock (`requirements.lock`)"
    assert site_pages.rewrite("```\n[a](none.md)\n```", page) == "```\n[a](none.md)\n```"
    with pytest.raises(ValueError, match=r"links to none\.md"):
        site_pages.rewrite("[a](none.md)", page)


@pytest.mark.parametrize(
    ("text", "css", "count"),
    [
        (
            '<a href="https://arxiv.org">x</a><img src="act.svg"><link href="assets/site.css" rel="stylesheet">',
            False,
            0,
        ),
        ('<img alt="x" src="https://example.org/x.png">', False, 1),
        ('<link rel="stylesheet" href="//fonts.example.org/css">', False, 1),
        ('<script async src="http://example.org/x.js"></script>', False, 1),
        ("@font-face { src: url(https://example.org/x.woff2) }", True, 1),
        (".x { background: url(\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>\") }", True, 0),
    ],
)
def test_what_a_page_would_fetch_is_seen(text: str, css: bool, count: int) -> None:
    assert len(site_pages.fetched(text, css)) == count


def test_what_a_page_is_about_is_its_first_sentence() -> None:
    page = "# T\n\n```bash\nx\n```\n\n| a |\n|---|\n\n*A* sweep of [p](x.md)\nand λ. More.\n"
    assert site_pages.first_sentence(page) == "*A* sweep of p and λ."


def test_a_notebook_is_a_page_with_what_its_cells_show() -> None:
    text, figures = site_pages.notebook_page(ROOT / NOTEBOOK)
    assert [*figures] == ["assets/tutorial-1.png"]
    assert figures["assets/tutorial-1.png"].startswith(b"\x89PNG")
    for part in (
        '<img class="figure" src="assets/tutorial-1.png"',
        "<table>",
        '```yaml title="evaluate.yaml"',
        "```bash\n",
    ):
        assert part in text


def support_rows() -> dict[str, list[str]]:
    """The rows of the page on what is supported, by their first cell."""
    lines = (ROOT / "docs" / "support.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" |")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("verbs", test_matrix.VERBS),
        ("selections", (*SCORERS, *UNSCORED)),
        ("placements", tuple(name for name in PLACEMENTS if name != "auto")),
        ("methods", tuple(METHODS)),
    ],
)
def test_the_support_matrix_names_what_the_test_matrix_tries(kind: str, names: tuple[str, ...]) -> None:
    (row,) = (row for row in support_rows() if row.startswith(f"{kind} "))
    assert set(re.findall("`([^`]+)`", row)) == set(names)


def test_the_support_matrix_names_tests_that_exist() -> None:
    rows = support_rows()
    tests = {name for row in rows.values() for name in re.findall(r"`(tests/[^`]+)`", " ".join(row))}
    assert len(tests) > 10
    assert not [name for name in tests if not (ROOT / name).exists()]
    for refused in test_matrix.REFUSALS:
        assert rows[f"`{refused[0]}` of Lightning"][2:4] == ["–", "–"], "under FSDP2 and FSDP1"


def test_the_support_matrix_says_of_models_what_was_tried() -> None:
    tried = {row.model_type: row for row in read_rows(PAGE.read_text(encoding="utf-8"))}
    named: set[str] = set()
    for types, *marks in (row for row in support_rows().values() if len(row) == 4 and row[0].startswith("`")):
        for model_type in re.findall("`([^`]+)`", types):
            row = tried[model_type]
            works = [YES == row.profile == row.merge == row.fit, row.layerwise == YES, row.packing == YES]
            assert [mark == "C" for mark in marks] == works, model_type
            named.add(model_type)
    assert {*ARCHITECTURES} < named


def test_the_page_on_files_names_what_a_run_writes(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl", ({"prompt": f"Say {i}", "answer": "one two"} for i in range(6)))
    config = basic(tmp_path, target_folder, source_folder, tmp_path / "d.jsonl")
    outcome = run("merge", config)
    assert outcome.status == 0, outcome.err
    named = re.findall("`([^`\n]+)`", (ROOT / "docs" / "files.md").read_text(encoding="utf-8"))
    root = Path(config["trainer"]["default_root_dir"])
    assert {path.name for path in root.iterdir()} <= {name.split("/")[0] for name in named}
    transfer = json.loads((root / "transfer.json").read_text())
    (source,) = transfer["sources"].values()
    assert {*transfer, *source, *source["abilities"]["d"]} - {"sources", "abilities", "model"} <= {*named}


def test_docstrings_are_shown_as_markdown() -> None:
    docstring = "Of :class:`~a.B`.\n\nArgs:\n    x: One.\n\n>>> f(1)\n2\n>>> g()\n\nEnd.\n"
    shown = "Of `a.B`.\n\nArgs:\n    x: One.\n\n```pycon\n>>> f(1)\n2\n>>> g()\n```\n\nEnd.\n"
    assert docstring_markup.markdown(docstring) == shown
