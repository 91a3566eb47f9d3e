"""Recipes without the paths of one's machine, and with those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from act_lightning.cards.card import result_rows
from act_lightning.cards.record import portable_recipe, read_license
from act_lightning.cli.replay_settings import Overrides, localize, take_settings
from act_lightning.errors import ActError

RECIPE = {
    "model": {"target": "/home/me/models/base", "revision": None},
    "data": {
        "abilities": {
            "a": {"path": "C:\\data\\a.jsonl"},
            "b": {"path": "org/data"},
            "d": {"path": "/home/me/part-*.jsonl"},
            "c": {"path": "data/c.jsonl", "template": "/{prompt}/"},
        },
        "template": "~/templates/mine.jinja",
    },
    "profile": {"sources": [{"model": "org/source"}, {"model": "/home/me/models/other/"}, {"model": "lab:generalist"}]},
    "trainer": {"default_root_dir": "/home/me/runs/x", "logger": {"init_args": {"save_dir": "/home/me/logs"}}},
}


def test_absolute_paths_are_shortened_and_nothing_else() -> None:
    found, shortened = portable_recipe(RECIPE)
    assert "/home/me" not in str(found)
    assert found["data"]["abilities"] == {
        "a": {"path": "a.jsonl"},
        "b": {"path": "org/data"},
        "d": {"path": "part-*.jsonl"},
        "c": {"path": "data/c.jsonl", "template": "/{prompt}/"},
    }
    assert shortened == [
        "model.target",
        "data.abilities.a.path",
        "data.abilities.d.path",
        "data.template",
        "profile.sources.1.model",
        "trainer.default_root_dir",
        "trainer.logger.init_args.save_dir",
    ]


def located(folders: list[Path], *options: str) -> dict[str, Any]:
    recipe, shortened = portable_recipe(RECIPE)
    settings, left_out = take_settings(recipe, Overrides.parse(options))
    assert left_out == ["trainer.default_root_dir", "trainer.logger"]
    return localize(settings, shortened, folders, Path("out"), Overrides.parse(options))[0]


def test_paths_of_this_machine_are_put_in(tmp_path: Path) -> None:
    for name in ("base", "other", "a.jsonl", "part-1.jsonl", "data/c.jsonl"):
        (tmp_path / name).mkdir(parents=True)
    found = located([tmp_path / "none", tmp_path], "--data.template", "/elsewhere/mine.jinja")
    assert found["model"]["target"] == str(tmp_path / "base")
    assert found["data"]["abilities"]["a"]["path"] == str(tmp_path / "a.jsonl")
    assert found["data"]["abilities"]["b"]["path"] == "org/data"
    assert found["data"]["abilities"]["d"]["path"] == str(tmp_path / "part-*.jsonl")
    assert found["data"]["template"] == "/elsewhere/mine.jinja"
    assert found["data"]["cache_dir"] == "out/cache"
    assert found["trainer"] == {"default_root_dir": "out"}
    assert [source["name"] for source in found["profile"]["sources"]] == ["source", "other", "generalist"]


def test_everything_that_is_not_found_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ActError) as caught:
        located([tmp_path])
    assert {issue.setting for issue in caught.value.issues} == {
        "model.target",
        "data.abilities.a.path",
        "data.abilities.d.path",
        "data.abilities.c.path",
        "data.template",
        "profile.sources.1.model",
    }


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("---\nlicense: other\nlicense_name: q\nlicense_link: https://x.y\n---\n# M", 3),
        ("---\nlicense_name: q\n---\n", 0),
        ("# no front matter", 0),
        ("---\nlicense: [\n---\n", 0),
        (None, 0),
    ],
)
def test_licenses_are_read_and_never_invented(tmp_path: Path, text: str | None, stated: int) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert len(read_license(tmp_path)) == stated


def test_results_of_comparisons_and_of_anything_else(tmp_path: Path) -> None:
    row = '[{"model": "transfer", "correct": {"gsm": 3, "no": 0}, "total": {"gsm": 4, "no": 0}}]'
    (tmp_path / "comparison.json").write_text(row)
    (tmp_path / "other.json").write_text('{"gsm": {"exact": 0.5, "seeded": true, "name": "x"}}')
    (tmp_path / "broken.json").write_text("{")
    assert result_rows(tmp_path, "0")[1:] == [
        ["gsm", "transfer", "accuracy", "75.0% (3 of 4)"],
        ["no", "transfer", "accuracy", "no items"],
        ["other", "", "gsm.exact", "0.5"],
    ]
    assert result_rows(tmp_path / "nowhere", "0") == []
