"""The page: everything it needs is in it, its numbers are the functions', and it says what it does not show."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from act_lightning.analysis import (
    concentration,
    head_and_embedding,
    overlap_matrix,
    read_abilities,
    read_runs,
    top_masks,
)
from act_lightning.analysis.figures.findings import dots_figure
from act_lightning.analysis.report.evidence import Evidence, gather
from act_lightning.analysis.report.findings_report import SECTIONS, make_report
from act_lightning.analysis.report.page import Absent, Picture, ReportTable, Section, write_report
from act_lightning.analysis.saved import SavedScores
from act_lightning.errors import ActError
from tests.analysis.runs import ABILITIES, QWEN, write_mixture_run, write_run
from tests.front_door import call, left
from tests.reference.analysis import spearman

P = 0.02
COMPARISON = [
    {"model": model, "share": None, "correct": {"words": correct}, "total": {"words": 8}}
    for model, correct in (("target", 3), ("source s", 8), ("fine-tuning alone", 4), ("ACT", 6))
]


class Page(HTMLParser):
    """What a page refers to, its ids, its text, and the cells of its tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.references += [str(values[name]) for name in ("src", "href", "srcset", "data") if values.get(name)]
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "table":
            self.tables[str(values["id"])] = []
        if tag == "tr" and self.tables:
            list(self.tables.values())[-1].append([])
        self._cell = tag in ("td", "th")
        if self._cell:
            list(self.tables.values())[-1][-1].append(values.get("data-value") or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell and not list(self.tables.values())[-1][-1][-1]:
            list(self.tables.values())[-1][-1][-1] = data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, target_folder: Path, source_folder: Path) -> Path:
    """Two pairs of models, of which one is on disk and one bears the names of the paper's."""
    run = write_run(tmp_path_factory.mktemp("report") / "run", QWEN, "qwen")
    write_run(run, (str(target_folder), str(source_folder)), "tiny", ("math-en",), seed=1)
    (run / "evaluations").mkdir()
    (run / "evaluations" / "comparison.json").write_text(json.dumps(COMPARISON))
    return run


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    result = call("report", run, "--ratio", P, 0.1, "--show", "math-en")
    assert (result.status, result.out) == (0, f"{run}/report/index.html\n")
    return Page(run / "report" / "index.html")


def content(evidence: Evidence) -> list[Picture | ReportTable | str]:
    """All items of a report, with nothing drawn."""
    parts = [part for build in SECTIONS for part in build(evidence)]
    return [item for part in parts if isinstance(part, Section) for item in part.content]


def test_the_page_says_what_came_of_the_run(page: Page) -> None:
    text = " ".join(page.text).replace("\N{NO-BREAK SPACE}", " ")
    assert "Right answers to words: target 37.5 %, fine-tuning alone 50 %, ACT 75 %." in text
    assert "`" not in text


def test_the_page_needs_nothing_but_itself(page: Page, run: Path) -> None:
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "url(http" not in page.source
    assert "@import" not in page.source
    files, anchors = [], []
    for reference in page.references:
        (anchors if reference.startswith("#") else files).append(reference)
    assert {anchor[1:] for anchor in anchors} <= set(page.ids)
    assert all((run / "report" / file).is_file() for file in files)
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_and_table_is_there_as_a_file_too(page: Page, run: Path) -> None:
    items = content(gather([run], (P, 0.1), shown=("math-en",), quiet=True))
    pictures = {item.name for item in items if isinstance(item, Picture)}
    tables = {item.name for item in items if isinstance(item, ReportTable)}
    assert {f"figure-{name}" for name in pictures} <= set(page.ids)
    assert set(page.tables) == {f"table-{name}" for name in tables}
    expected = [f"figures/{name}.{end}" for name in pictures for end in ("png", "svg")]
    expected += [f"tables/{name}.csv" for name in tables] + [".act_lightning.json", "figures", "tables", "index.html"]
    assert left(run / "report") == sorted(expected)
    for name in pictures:
        with Image.open(run / "report" / "figures" / f"{name}.png") as image:
            assert image.width > 300


def test_the_numbers_are_the_functions(page: Page, run: Path) -> None:
    saved = read_runs([run])
    abilities = read_abilities(ABILITIES)
    scores = {label: saved.pairs[0].scores[one.name] for label, one in abilities.items()}
    masks = top_masks(scores, P)
    frames = {
        "overlap-1": overlap_matrix(masks),
        "overlap-0.1-1": overlap_matrix(top_masks(scores, 0.1)),
        "concentration-1": concentration(scores, P),
        "head-and-embedding-1": head_and_embedding(masks, saved.inventory),
    }
    for name, frame in frames.items():
        head, *rows = page.tables[f"table-{name}"]
        with (run / "report" / "tables" / f"{name}.csv").open(encoding="utf-8") as file:
            written = list(csv.reader(file))
        assert head[1:] == written[0][1:] == list(frame.columns)
        for row, line, (label, values) in zip(rows, written[1:], frame.iterrows(), strict=True):
            assert row[0] == line[0] == label
            assert [float(cell) for cell in row[1:]] == [float(cell) for cell in line[1:]] == values.tolist()


def verdicts(saved: SavedScores) -> list[str]:
    """By plain counting, of the first pair alone: Findings 1 and 2."""
    kinds, result = ("supported", "not supported"), []
    for pair in saved.pairs[:1]:
        concentrated = spread = 0
        for values in pair.scores.values():
            ranked = sorted(values.tolist(), reverse=True)
            concentrated += sum(ranked[: int(P * len(ranked))]) >= min(10 * P, 0.5) * sum(ranked)
            mask = top_masks({"a": values}, P)["a"].tolist()
            types: Counter[str] = Counter()
            for module, span in saved.inventory.spans():
                types[module.name.rsplit(".", 1)[-1]] += sum(mask[span])
            spread += max(types.values()) <= 0.5 * sum(mask)
        for met in (concentrated, spread):
            kind = kinds[met == 0] if met in (0, len(pair.scores)) else "supported in part"
            result.append(f"Met by {met} of {len(pair.scores)} abilities: the finding is {kind} here.")
    return result


def test_the_summary_says_what_was_found_and_what_was_not(page: Page, run: Path) -> None:
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    saved = read_runs([run])
    heads = head_and_embedding(top_masks(saved.pairs[0].scores, P), saved.inventory)["lm_head share"]
    assert f"{100 * heads.min():.3g}–{100 * heads.max():.3g} % are rows of lm_head" in words
    assert "Masks of one ability on different pairs of models share" in words
    assert "Qwen2.5-Math-7B-Instruct is neither a folder here nor in the hub's cache" in words
    assert "rank correlation over all channels" in words
    for supported in verdicts(saved):
        assert supported in words
    assert "How sure the masks are" in words
    assert "EN-Math shares 25.3 % with AR-Math" in words
    assert "37.5 %" in words


def test_the_papers_numbers_stand_beside_ours(run: Path) -> None:
    evidence = gather([run], weights=False, quiet=True)
    tables = {item.name: item.frame for item in content(evidence) if isinstance(item, ReportTable)}
    beside = tables["overlap-paper-1"].set_index("compared", append=True)
    ours = overlap_matrix(top_masks(read_runs([run]).pairs[0].scores, 0.01))
    assert tuple(beside.loc["EN-Math", "AR-Math"]) == (ours.loc["math-en", "math-ar"], 0.253)
    assert beside.loc[("EN-Math", "union of AR"), "paper"] == 0.264
    (absent,) = [part for part in SECTIONS[5](evidence) if isinstance(part, Absent)][:1]
    assert "weights were not to be read" in absent.reason


def test_one_ability_of_one_pair_is_enough(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", abilities=("gsm8k",))
    evidence = gather([run], (P,), readings={"gsm8k": "math-en"}, quiet=True)
    assert list(evidence.abilities) == ["EN-Math"]
    parts = [part for build in SECTIONS for part in build(evidence)]
    reasons = {part.title[:9]: part.reason for part in parts if isinstance(part, Absent)}
    assert reasons["Finding 3"] == "it needs the scores of two abilities of one pair of models."
    assert "name two or more runs" in reasons["Finding 4"]
    assert "neither transfer.json" in reasons["What the "]


def test_scores_of_other_selections_are_drawn_like_the_papers(tmp_path: Path) -> None:
    """Beside them, at the run's own p, with overlap and rank correlation of the two; Finding 4 stays one of models."""
    run = write_run(tmp_path / "run", abilities=("math-en", "math-ar"))
    write_run(run, abilities=("math-en", "math-ar"), seed=1, scorer="attribution")
    (run / "transfer.json").write_text(json.dumps({"sources": {"source": {"ratio": 0.05}}}))
    evidence = gather([run], shown=("math-en",), quiet=True)
    assert evidence.ratio == 0.05
    paper, other = evidence.views
    assert other.heading == ["Qwen2.5-Math-7B-Instruct vs. Qwen2.5-7B-Instruct, by attribution"]
    parts = [part for build in SECTIONS[:-1] for part in build(evidence)]
    items = [item for part in parts if isinstance(part, Section) for item in part.content if not isinstance(item, str)]
    names = {item.name.rpartition("-")[0] for item in items if item.name.endswith("-1")} - {"overlap-paper"}
    assert names == {item.name.rpartition("-")[0] for item in items if item.name.endswith("-2")}
    assert any(isinstance(part, Absent) and part.title.startswith("Finding 4") for part in parts)
    for item in items:
        if isinstance(item, Picture) and item.name.endswith("-2"):
            assert item.draw().axes, item.name
    tables = {item.name: item.frame for item in items if isinstance(item, ReportTable)}
    for ability, row in tables["selections"].iterrows():
        values = [view.scores[str(ability)].tolist() for view in (paper, other)]
        count = len(values[0]) // 20
        best = [set(sorted(range(len(each)), key=lambda i, each=each: (-each[i], i))[:count]) for each in values]
        assert row["overlap"] == len(best[0] & best[1]) / count
        assert row["rank correlation"] == pytest.approx(spearman(*values))
    first, second = other.scores.values()
    expected = spearman(first.tolist(), second.tolist())
    assert tables["rank-correlation-2"].iloc[0, 1] == pytest.approx(expected)
    assert tables["overlap-by-group-2"]["rank correlation"].iloc[0] == pytest.approx(expected)


@pytest.mark.parametrize("experts", [8, 64])
def test_experts_are_a_type_of_module_and_have_a_map(experts: int, tmp_path: Path) -> None:
    run = write_mixture_run(tmp_path / "run", 3, experts)
    result = call("report", run)
    assert result.status == 0, result.err
    page = Page(run / "report" / "index.html")
    assert {"figure-experts-math-en", "figure-experts-used-math-en"} <= set(page.ids)
    assert "channels of each expert that are selected at p = 1 %" in page.words
    assert "experts.gate_up_proj" in page.words
    assert not {"script", "link", "img"} & set(page.tags)
    sizes = [len(file.read_bytes()) for file in (run / "report" / "figures").glob("experts-*.svg")]
    assert len(sizes) == 2
    assert max(sizes) < 100_000


def small_report(out: Path, name: str = "x") -> Path:
    """A report of one section with a table and a figure."""
    frame = pd.DataFrame({"n": [3]}, index=[name])
    figure = Picture("dots", name, partial(dots_figure, frame, name))
    return write_report(
        out, name, [Section("s", name, summary=[name], content=[figure, ReportTable("n", name, frame)])], ()
    )


def test_an_earlier_report_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small_report(out)
    before = left(tmp_path)
    small_report(out, "y")
    assert left(tmp_path) == before
    assert "<h1>y</h1>" in (out / "index.html").read_text(encoding="utf-8")
    (out / "figures" / "notes.txt").write_text("mine")
    with pytest.raises(ActError, match=r"--out.*holds figures/notes.txt, not listed"):
        small_report(out)
    assert (out / "figures" / "notes.txt").read_text() == "mine"


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    small_report(tmp_path / "out")
    before = {name: (tmp_path / name).read_bytes() for name in left(tmp_path) if (tmp_path / name).is_file()}

    def fail() -> Figure:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        write_report(tmp_path / "out", "t", [Section("s", "s", content=[Picture("p", "p", fail)])], ())
    assert {name: (tmp_path / name).read_bytes() for name in left(tmp_path) if (tmp_path / name).is_file()} == before


def test_names_from_files_cannot_break_the_page(tmp_path: Path) -> None:
    page = Page(small_report(tmp_path / "out", "<script>alert(1)</script> & more"))
    assert "script" not in page.tags
    assert "<script>alert(1)</script> & more" in page.words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio", "1.5"], "--ratio = 1.5: must lie in (0, 1]"),
        (["--ratio", "1e-9"], "must select at least one of"),
        (["--show", "nothing"], "--show = 'nothing': must be one of math-en"),
        (["--ability", "math-en"], "--ability = 'math-en': must read NAME=VALUE"),
        (["--ability", "other=math-en"], "--ability = 'other': must be one of math-en"),
        (["--model", "other=/nowhere"], "--model = 'other': must be one of"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", abilities=("math-en",))
    result = call("report", run, *arguments)
    assert result.status == 1
    assert message in result.err
    assert not (run / "report").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"sources": {"a": {}}}'])
def test_a_damaged_transfer_json_is_refused_by_name(content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", abilities=("math-en",))
    (run / "transfer.json").write_text(content)
    with pytest.raises(ActError, match=r"transfer\.json"):
        make_report([run], ratios=(P,), quiet=True)
    assert not (run / "report").exists()


def browser() -> str:
    """Chromium or a relative of it; where ``ACT_LIGHTNING_BROWSER`` is set it must be there, as ``.ci/run`` sees to."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None and os.environ.get("ACT_LIGHTNING_BROWSER"):
        pytest.fail(f"the page must be opened in a browser, and none of {', '.join(names)} is installed")
    return found or pytest.skip(f"none of {', '.join(names)} is installed (apt-get install chromium)")


_MEASURE = """<script>
const wide = [...document.querySelectorAll("main > section > *")].filter(e => e.scrollWidth > e.clientWidth + 1);
const flat = [...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height < 50);
document.title = JSON.stringify({page: document.documentElement.scrollWidth > innerWidth, wide: wide.length,
  flat: flat.length, figures: document.querySelectorAll("figure svg").length,
  broken: document.querySelectorAll("parsererror").length});
</script>"""


@pytest.mark.slow
def test_the_page_opens_in_a_browser(page: Page, tmp_path: Path) -> None:
    copy = tmp_path / "page.html"
    copy.write_text(page.source + _MEASURE, encoding="utf-8")
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=500,900"]  # fmt: skip
    document = subprocess.run(
        [*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    measured = json.loads(document.stdout.split("<title>")[1].split("</title>")[0])
    expected = page.source.count("<figure ")
    assert measured == {"page": False, "wide": 0, "flat": 0, "figures": expected, "broken": 0}
    for scheme, bright in (("1", True), ("0", False)):
        shot = tmp_path / f"{scheme}.png"
        options = [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}"]
        subprocess.run([*command, *options, copy.as_uri()], capture_output=True, check=True, timeout=120)
        with Image.open(shot) as image:
            assert (image.convert("L").getpixel((2, 2)) > 200) == bright
