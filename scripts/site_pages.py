"""Hook of MkDocs: pages from outside docs/, links as the repository has them, llms.txt, and nothing from the network.

Documents link to each other by the repository's own paths, so that they are read on GitHub and in a checkout, too. For
the site, this hook adds the pages that lie elsewhere, shows every shipped config on one page, turns the tutorial's
notebook into a page, replaces ``<!-- include FILE -->`` and ``<!-- include FILE: Start of a heading -->`` with that
file or section, and points links to where their targets are. A link that leads nowhere ends the build, as does a page
that would fetch anything.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {  # of the repository: of the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "benchmarks/RESULTS.md": "results.md",
    "benchmarks/study/tables.md": "study.md",
    "benchmarks/study/figure.svg": "assets/study.svg",
    "docs/tutorial.ipynb": "tutorial.md",
}
NOTEBOOK, CONFIGS = "tutorial", "configs"
_INCLUDE = re.compile(r"^<!-- include ([^\s:]+)(?:: (.+))? -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]*|<link\b[^>]*\bhref=\"(?:https?:)?//[^\"]*"
)
_FETCHED_BY_CSS = re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^)\"']*")


def section(text: str, start: str) -> str:
    """The section of a Markdown text whose heading starts so, heading included."""
    headings = [*re.finditer(r"^(#+) (.*)$", _FENCED.sub(lambda block: "x" * len(block[0]), text), re.MULTILINE)]
    found = [i for i, heading in enumerate(headings) if heading[2].startswith(start)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} headings start with {start!r}, not one")
    (first,) = found
    after = (later.start() for later in headings[first + 1 :] if len(later[1]) <= len(headings[first][1]))
    return text[headings[first].start() : next(after, len(text))].strip()


def include(markdown: str, page: str) -> str:
    """Put files and sections where a page asks for them, with their links as that page would write them."""

    def content(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8").strip()
        text = section(text, match[2]) if match[2] else text
        return outside_code(text, lambda part: _LINK.sub(lambda link: moved(link, match[1], page), part))

    return _INCLUDE.sub(content, markdown)


def moved(link: re.Match[str], old: str, new: str) -> str:
    """A link of one page, written in another."""
    mark, text, path, anchor = link.groups(default="")
    if is_elsewhere(path):
        return link[0]
    return f"{mark}[{text}]({relpath(normpath(join(dirname(old), path or old)), dirname(new) or '.')}{anchor})"


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change a text, but not its fenced code."""
    return "".join(part if i % 2 else change(part) for i, part in enumerate(_FENCED.split(markdown)))


def is_elsewhere(path: str) -> bool:
    """Whether a link's path is no file's: an address, or the page itself."""
    return not path or ":" in path


def rewrite(markdown: str, page: str) -> str:
    """Point every link of a page at the site's page or file; ``page`` is its path in the repository.

    Raises:
        ValueError: A link leads to no file.
    """

    def target(link: re.Match[str]) -> str:
        mark, text, path, anchor = link.groups(default="")
        if is_elsewhere(path):
            return link[0]
        file = normpath(join(dirname(page), path))
        if not (ROOT / file).exists():
            raise ValueError(f"{page} links to {path}, which does not exist")
        if file in PAGES:
            return f"{mark}[{text}]({PAGES[file]}{anchor})"
        if file.startswith("docs/"):
            return f"{mark}[{text}]({file.removeprefix('docs/')}{anchor})"
        if f"{file}/".startswith("configs/"):
            return f"[{text}]({CONFIGS}.md{'' if file == 'configs' else '#' + slug(file)})"
        return text if file in text else f"{text} (`{file}`)"

    return outside_code(markdown, lambda part: _LINK.sub(target, part))


def slug(heading: str) -> str:
    """The anchor of a heading, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def configs_page() -> str:
    """Every shipped config as it is, by folder; tasks of lm-evaluation-harness are only described."""
    folder = ROOT / "configs"
    lines = ["# Configs", "", "These files are in the repository; pass them with `--config`, one after another.", ""]
    lines += config_sections(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_dir() and "lm_eval" not in path.parts):
        lines += [f"## {path.relative_to(ROOT).as_posix()}", "", *config_sections(path)]
    readme = (folder / "lm_eval" / "README.md").read_text(encoding="utf-8").split("\n\n")
    return "\n".join([*lines, "## configs/lm_eval", "", readme[1], ""])


def config_sections(folder: Path) -> list[str]:
    """A section for each config of a folder."""
    lines = []
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8").rstrip()
        lines += [f"### {path.relative_to(ROOT).as_posix()}", "", "```yaml", text, "```", ""]
    return lines


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook's cells and outputs as Markdown, and its figures by name."""
    lines, figures = ["---", "hide: [navigation]", "---", ""], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        magic, _, rest = source.partition("\n")
        if magic.startswith("%%writefile"):
            lines += [f'```yaml title="{magic.split()[1]}"', rest, "```", ""]
            continue
        lines += ["```bash", rest] if magic == "%%bash" else ["```python", source]
        lines += ["```", ""]
        for output in cell["outputs"]:
            data = {
                kind: "".join(value) for kind, value in output.get("data", {}).items() if isinstance(value, str | list)
            }
            if "image/png" in data:
                name = f"assets/{path.stem}-{len(figures) + 1}.png"
                figures[name] = base64.b64decode(data["image/png"])
                lines += [f'<img class="figure" src="{name}" alt="What the cell above shows">', ""]
            elif "text/html" in data:
                table = re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.DOTALL)
                table = re.sub(r"<table[^>]*>", "<table>", table)
                lines += [re.sub(r"^\s+", "", table, flags=re.MULTILINE), ""]
            else:
                text = data.get("text/plain") or "".join(output.get("text", ""))
                lines += ["```{ .text .output }", text.rstrip(), "```", ""]
    return "\n".join(lines), figures


def fetched(text: str, css: bool = False) -> list[str]:
    """What a page or style sheet would fetch from the network.

    >>> fetched('<a href="https://arxiv.org">paper</a><script src="https://unpkg.com/x"></script>')
    ['<script src="https://unpkg.com/x']
    """
    return (_FETCHED_BY_CSS if css else _FETCHED).findall(text)


def first_sentence(markdown: str) -> str:
    """What a page is about: the first sentence of its first paragraph."""
    paragraphs = (part.strip() for part in _FENCED.sub("", markdown).split("\n\n"))
    text = next((part for part in paragraphs if re.match(r"[\w*`\[]", part)), "")
    return re.split(r"(?<=[.?:])\s", " ".join(_LINK.sub(r"\2", text).split()), maxsplit=1)[0].rstrip(":")


# What MkDocs calls.

_markdown: dict[str, str] = {}


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 - types of MkDocs, which tests do without
    """Add what lies outside docs/."""
    from mkdocs.structure.files import File

    for path, uri in PAGES.items():
        if path not in ("README.md", "docs/tutorial.ipynb"):
            files.append(File.generated(config, uri, abs_src_path=os.fspath(ROOT / path)))
    files.append(File.generated(config, f"{CONFIGS}.md", content=configs_page()))
    text, figures = notebook_page(ROOT / "docs" / f"{NOTEBOOK}.ipynb")
    for name, content in {f"{NOTEBOOK}.md": text, **figures}.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Include files, and rewrite links."""
    uri = page.file.src_uri
    sources = {name: path for path, name in PAGES.items() if path != "README.md"}
    path = sources.get(uri, f"docs/{uri}")
    _markdown[uri] = rewrite(include(markdown, path), path)
    return _markdown[uri]


def on_nav(nav: Any, config: Any, **_: Any) -> None:  # noqa: ANN401
    """Remember the order of pages."""
    config.extra["pages"] = nav.pages


def on_post_build(config: Any) -> None:  # noqa: ANN401
    """Write llms.txt and the Markdown of every page; refuse what would be fetched."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    room = ""
    for page in config.extra["pages"]:
        uri = page.file.src_uri
        (site / uri).write_text(_markdown[uri], encoding="utf-8")
        if page.parent and page.parent.title != room:
            room = page.parent.title
            lines += ["", f"## {room}", ""]
        lines.append(f"- [{page.title}]({uri}): {first_sentence(_markdown[uri])}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file in (*site.rglob("*.html"), *site.rglob("*.css")):
        if found := fetched(file.read_text(encoding="utf-8"), file.suffix == ".css"):
            raise ValueError(f"{file} would fetch {found[0]}")
