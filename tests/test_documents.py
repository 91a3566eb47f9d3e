"""Documents: links and anchors that lead somewhere, pages that scripts write, and a site that fetches nothing."""

from __future__ import annotations

import re

import pytest
import yaml

from scripts import site_pages

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
