"""The verb `sweep`, from a config to its files."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from act_lightning.sweep.sweep_settings import RATIOS, SCALES
from tests.front_door import Config, Outcome, call, changed, run
from tests.sweep.folders import make_config

Row = dict[str, str]
WITH_RATIO = ("act", "ties", "dare", "random", "weight", "local")
METHODS = "act,task_arithmetic,ties,dare,random,weight,local"
TIES_OF_HALF = "{class_path: act_lightning.merging.TIES, init_args: {density: 0.5}}"
GRID = ("--sweep.scales", "0.3,1.0", "--sweep.ratios", "[0.1, 0.5]")


@pytest.fixture(scope="module")
def base_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def swept(base_config: Config) -> Path:
    """A run that was swept with five methods."""
    outcome = run("sweep", base_config, *GRID, "--sweep.methods", METHODS)
    assert outcome.status == 0, outcome.err
    return Path(base_config["trainer"]["default_root_dir"])


def rows(root: Path) -> list[Row]:
    return list(csv.DictReader((root / "sweep" / "results.csv").read_text().splitlines()))


def of(results: list[Row], method: str, scale: float, ratio: float) -> Row:
    (row,) = [
        one
        for one in results
        if one["method"] == method and (float(one["scale"]), float(one["ratio"])) == (scale, ratio)
    ]
    return row


def with_root(config: Config, name: str) -> Config:
    root = Path(config["trainer"]["default_root_dir"]).with_name(name)
    root.mkdir(exist_ok=True)
    return changed(config, "trainer.default_root_dir", str(root / "run"))


def test_the_papers_grid_is_the_default() -> None:
    assert SCALES == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert RATIOS[:11] == (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.15)
    assert [round(b - a, 9) for a, b in pairwise(RATIOS[9:])] == [0.05] * 18


def test_every_point_once_and_the_target_first(swept: Path) -> None:
    results = rows(swept)
    assert results[0]["method"] == "target"
    assert float(results[0]["keep"]) == 1.0
    expected = {(m, s, p) for m in WITH_RATIO for s in (0.3, 1.0) for p in (0.1, 0.5)}
    expected |= {("task_arithmetic", s, 1.0) for s in (0.3, 1.0)}
    points = [(row["method"], float(row["scale"]), float(row["ratio"])) for row in results[1:]]
    assert len(points) == len(set(points))
    assert expected <= set(points)
    content = json.loads((swept / "sweep" / "results.json").read_text())
    assert len(content["points"]) == len(points)
    assert len({row["lost_correct"] for row in results}) > 2, "points that all score alike would test nothing"


@pytest.mark.parametrize(
    ("method", "scale", "ratio", "overrides"),
    [
        ("act", 1.0, 0.1, ("--transfer.ratio", "0.1", "--transfer.scale", "1.0")),
        ("task_arithmetic", 0.3, 1.0, ("--transfer.selection", "all", "--transfer.scale", "0.3")),
        ("ties", 0.3, 0.5, ("--transfer", f"{{selection: all, scale: 0.3, method: {TIES_OF_HALF}}}")),
    ],
)  # fmt: skip
def test_a_point_is_what_merge_and_test_give(
    base_config: Config, swept: Path, method: str, scale: float, ratio: float, overrides: tuple[str, ...]
) -> None:
    merged, tested = with_root(base_config, f"merge-{method}"), with_root(base_config, f"test-{method}")
    assert run("merge", merged, *overrides).status == 0
    model = Path(merged["trainer"]["default_root_dir"]) / "merged"
    assert run("test", tested, "--model.target", model).status == 0
    results = json.loads((Path(tested["trainer"]["default_root_dir"]) / "evaluations" / "results.json").read_text())
    row = of(rows(swept), method, scale, ratio)
    for name, one in results["sets"].items():
        assert (int(row[f"{name}_correct"]), int(row[f"{name}_total"])) == (one["correct"], one["total"])
    assert float(row["recover_low"]) == pytest.approx(results["means"]["recover"]["low"])
    if method == "act":
        report = json.loads((model / "transfer.json").read_text())["sources"]["s"]
        assert float(row["parameter_share"]) == pytest.approx(report["parameter_share"])


@pytest.mark.parametrize("method", ["random", "weight", "local"])
def test_other_selections_move_as_many_parameters(swept: Path, method: str) -> None:
    results = rows(swept)
    for ratio in (0.1, 0.5):
        act, other = (float(of(results, name, 0.3, ratio)["parameter_share"]) for name in ("act", method))
        assert act * 0.97 < other <= act


def test_the_best_point_is_a_config_that_runs(base_config: Config, swept: Path) -> None:
    """What it merges is what the point says it moved."""
    folder = swept / "sweep"
    best = json.loads((folder / "results.json").read_text())["best"]
    assert (folder / "best.yaml").read_text().startswith(f"# The best point of a sweep: {best['method']}, λ ")
    root = folder.with_name("merge-best")
    outcome = call("merge", "--config", folder / "best.yaml", "--trainer.default_root_dir", root)
    assert outcome.status == 0, outcome.err
    report = json.loads((root / "transfer.json").read_text())
    row = of(rows(swept), best["method"], best["scale"], best["ratio"])
    (source,) = report["sources"].values()
    assert source["scale"] == best["scale"]
    density = best["ratio"] if best["method"] in ("ties", "dare") else 1.0
    assert source["parameter_share"] * density == pytest.approx(float(row["parameter_share"]))
    tested = with_root(base_config, "test-best")
    assert run("test", tested, "--model.target", root / "merged").status == 0
    results = json.loads((Path(tested["trainer"]["default_root_dir"]) / "evaluations" / "results.json").read_text())
    assert {name: int(row[f"{name}_correct"]) for name in ("kept", "lost")} == {
        name: one["correct"] for name, one in results["sets"].items()
    }


def test_a_sweep_without_gain_says_so_and_names_no_best_point(base_config: Config, swept: Path) -> None:
    """λ = 0 is the control: the target itself."""
    config = with_root(base_config, "control")
    root = Path(config["trainer"]["default_root_dir"])
    outcome = run("sweep", config, "--transfer.scores", swept / "scores", "--sweep.scales", 0, "--sweep.ratios", 0.1)
    assert outcome.status == 0, outcome.err
    target, control = rows(root)
    assert (control["keep"], control["recover"]) == (target["keep"], target["recover"])
    words = "No point improves on the target: of those that lose at most 1 point of keep, the best recovers "
    assert words in " ".join(outcome.out.split())
    assert not (root / "sweep" / "best.yaml").exists()
    assert json.loads((root / "sweep" / "results.json").read_text())["best"] is None


def test_methods_are_compared(swept: Path) -> None:
    results = list(csv.DictReader((swept / "sweep" / "methods.csv").read_text().splitlines()))
    assert [row["method"] for row in results[:2]] == ["target", "act"]
    at = results[1]
    for row in results[2:]:
        if "equal λ" in row["compared_at"]:
            assert row["scale"] == at["scale"]
        if "equal parameters" in row["compared_at"]:
            assert float(row["parameter_share"]) == pytest.approx(float(at["parameter_share"]), rel=0.02)
    assert {row["method"] for row in results if "equal parameters" in row["compared_at"]} == {*WITH_RATIO} - {"act"}
    assert (swept / "sweep" / "methods.md").read_text().count("\n") == len(results) + 2


def test_the_page_has_every_figure_and_table(swept: Path) -> None:
    report = swept / "sweep" / "report"
    page = (report / "index.html").read_text()
    names = {"front", "along-p", "along-lambda", *(f"{role}-{m}" for role in ("keep", "recover") for m in WITH_RATIO)}
    for name in names:
        assert f'id="figure-{name}"' in page
        assert (report / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (report / "figures" / f"{name}.svg").is_file()
    points = list(csv.DictReader((report / "tables" / "points.csv").read_text().splitlines()))
    assert len(points) == len(rows(swept)) - 1
    assert {"kept (keep)", "keep from", "lost (recover)", "recover to", "λ", "p"} <= {*points[0]}
    assert not [name for name in ("keep_high", "recover_low", "parameter_share", "compared_at") if name in page]
    best = json.loads((swept / "sweep" / "results.json").read_text())["best"]
    tables = {
        name: list(csv.DictReader((report / "tables" / f"{name}.csv").read_text().splitlines()))
        for name in ("along-p", "along-lambda", "methods")
    }
    assert {float(row["λ"]) for row in tables["along-p"]} == {best["scale"]}
    # where the best ignores p, at the p where methods are compared
    p = best["ratio"] if best["method"] in WITH_RATIO else float(tables["methods"][1]["p"])
    assert {float(row["p"]) for row in tables["along-lambda"] if row["method"] in WITH_RATIO} == {p}
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_plan_counts_the_points(base_config: Config) -> None:
    outcome = run("plan", base_config, "--for", "sweep", "--json", *GRID, "--sweep.methods", "act,task_arithmetic")
    assert outcome.status == 0, outcome.out
    assert json.loads(outcome.out)["sweep"] == {"points": 1 + 4 + 2}


def test_again_evaluates_nothing(base_config: Config, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(swept)
    monkeypatch.setattr("act_lightning.sweep.runner.TrialRunner.evaluate", None)
    outcome = run("sweep", base_config, *GRID, "--sweep.methods", METHODS)
    assert outcome.status == 0, outcome.err
    assert rows(swept) == before
    words = " ".join(outcome.out.split())
    for method in ("act", "random", "local"):
        assert words.count(f"{method}: s: λ ") == 1, "what the masks at the best point hold"
    assert "task_arithmetic: s: λ" not in words


def test_a_sweep_of_something_else_is_not_continued(base_config: Config, swept: Path) -> None:
    for path, value, what in (
        ("data.evaluations.lost.max_new_tokens", 5, "evaluations"),
        ("seed_everything", 7, "seed"),
        ("model.dtype", "bfloat16", "dtype, scores"),
        ("model.target", base_config["profile"]["sources"][0]["model"], "scores, sources, target"),
    ):
        config = changed(base_config, path, value)
        if path == "model.target":  # the two change places
            config = changed(config, "profile.sources.0.model", base_config["model"]["target"])
        outcome = run("sweep", config, *GRID)
        assert outcome.status == 1, path
        assert f"holds a sweep with other {what}." in outcome.err, outcome.err


def assert_refused(outcome: Outcome, *messages: str) -> None:
    assert outcome.status == 1
    for message in messages:
        assert message in outcome.err, outcome.err


def test_all_that_is_wrong_is_told_at_once(base_config: Config, tmp_path: Path) -> None:
    config = changed(base_config, "trainer.default_root_dir", str(tmp_path / "nothing" / "run"))
    (tmp_path / "nothing").mkdir()
    config = changed(config, "data.evaluations.kept", ...)
    wrong = (
        *("--sweep.scales", "0.4,much", "--sweep.ratios", "[0, 1.5]", "--sweep.methods", "act,magic"),
        *("--sweep.trials", "3", "--sweep.keep_within", "-1"),
    )
    assert_refused(
        run("sweep", config, *wrong),
        "sweep.scales = 'much': must be numbers",
        "sweep.ratios = 0.0: must lie in (0, 1]",
        "sweep.ratios = 1.5: must lie in (0, 1]",
        "sweep.methods = 'magic': must be one of act, task_arithmetic, ties",
        "sweep.trials = 3: has no meaning where sampler is grid",
        "sweep.keep_within = -1.0: must lie in [0, 100]",
        "data.evaluations = ['recover']: must hold a set with role: keep",
    )
    assert not (tmp_path / "nothing" / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sweep.scales", "[.nan]"), "sweep.scales = nan: must be a finite number"),
        (("--sweep.scales", "[]"), "sweep.scales = []: must not be empty"),
        (("--sweep.methods", ","), "sweep.methods = ',': must not be empty"),
        (("--sweep.ratios", "0.0001"), "sweep.ratios[0] = 0.0001: must select at least one of"),
        (("--sweep.sampler", "tpe"), "sweep.trials = None: must say how many points tpe tries"),
        (("--profile.sources", "null"), "profile.sources = None: must name the sources when `sweep` runs"),
        (("--data.evaluations", "{}"), "data.evaluations = []: must hold a set with role: keep and one with role: rec"),
    ],
)
def test_bad_input(base_config: Config, tmp_path: Path, arguments: tuple[str, str], message: str) -> None:
    config: Any = changed(base_config, "trainer.default_root_dir", str(tmp_path / "run"))
    if arguments[0] == "--data.evaluations":
        config, arguments = changed(config, "data.evaluations", {}), ("--sweep.scales", "0.4")
    assert_refused(run("sweep", config, *arguments), message)
