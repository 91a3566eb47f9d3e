"""The paper's sets in configs/data: each overlay by its command, with small files of the same columns in place."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest

from act_lightning.translation.assignments import LANGUAGES as NAMED
from tests.cli.test_configs import ROOT, content_of, small, tiny_pair
from tests.front_door import Config, Outcome, call, write_yaml
from tests.hub_rows import in_place
from tests.translation.server import serving

__all__ = ["tiny_pair"]  # a fixture

FOLDER = ROOT / "configs" / "data"
LANGUAGES = ("en", "zh", "ar", "bn", "hu", "ja", "ko", "sw", "te", "th", "vi")
TRANSLATED = LANGUAGES[1:]


def overlay(folder: Path, *files: Path) -> Config:
    """Local rows for everything that config files name, and tiny models."""
    kinds = ("abilities", "evaluations")
    return {
        kind: {
            k: v for file in files for k, v in in_place(content_of(file).get("data", {}).get(kind, {}), folder).items()
        }
        for kind in kinds
    }


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``data translate`` makes of translation.yaml with small rows and a server of ours."""
    root = tmp_path_factory.mktemp("translated")
    file = FOLDER / "translation.yaml"
    rows = write_yaml(root / "small.yaml", {"data": {"abilities": overlay(root, file)["abilities"]}})
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-test")
        patch.setenv("NO_PROXY", "127.0.0.1")
        given = {"base_url": server.url, "out": root / "out", "requests_per_minute": 10**7, "tokens_per_minute": 10**9}
        options = [word for name, value in given.items() for word in (f"--translate.{name}", value)]
        outcome = call("data", "translate", "--config", file, "--config", rows, *options)
        assert outcome.status == 0, outcome.err
        models = {body["model"]: set[str]() for body in server.asked}
        for body in server.asked:
            models[body["model"]].add(body["messages"][0]["content"].split("into ")[1].split(",")[0])
    assert models["gpt-4o"] == {"Telugu"}
    assert len(models["gpt-4o-mini"]) == 10  # Telugu science among them
    return root / "out"


def run(verb: str, names: tuple[str, ...], pair: tuple[Path, Path], translated: Path, root: Path) -> Outcome:
    """A verb with a config of the paper and overlays, on tiny models and local rows."""
    files = [ROOT / "configs" / name for name in names]
    given = small(content_of(files[0]), pair, root)
    data = {kind: given["data"][kind] | local for kind, local in overlay(root, *files[1:]).items()}
    for file in files[1:]:
        for name, one in content_of(file)["data"].get("abilities", {}).items():
            if one["path"].startswith("data/translated/"):
                data["abilities"][name] = {"path": str(translated / Path(one["path"]).name)}
    last = write_yaml(root / "last.yaml", given | {"data": data})
    return call(verb, *(word for file in (*files, last) for word in ("--config", file)))


def test_translation_gives_each_language_samples_of_its_own(translated: Path) -> None:
    def originals(ability: str, code: str) -> list[str]:
        rows = pyarrow.parquet.read_table(translated / f"{ability}-{code}.parquet").to_pylist()
        return [row["original_prompt"] for row in rows]

    math = [prompt for code in TRANSLATED for prompt in originals("math", code)]
    assert len(math) == len(set(math)) == 2 * len(TRANSLATED)
    science = {tuple(originals("science", code)) for code in TRANSLATED}
    assert len(science) == 1
    assert len(next(iter(science))) == 3


@pytest.mark.slow
def test_recovery_on_the_papers_abilities(tiny_pair: tuple[Path, Path], translated: Path, tmp_path: Path) -> None:
    names = ("paper/table3_sft.yaml", "data/math.yaml", "data/science.yaml")
    outcome = run("fit", names, tiny_pair, translated, tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_merging_on_the_papers_abilities(tiny_pair: tuple[Path, Path], translated: Path, tmp_path: Path) -> None:
    outcome = run("merge", ("paper/table4.yaml", "data/english.yaml"), tiny_pair, translated, tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "merged" / "config.json").is_file()


@pytest.mark.slow
def test_table_3_is_measured(tiny_pair: tuple[Path, Path], translated: Path, tmp_path: Path) -> None:
    outcome = run("test", ("paper/table3_sft.yaml", "data/benchmax.yaml"), tiny_pair, translated, tmp_path)
    assert outcome.status == 0, outcome.err
    assert all(f"science-{code}" in outcome.out for code in TRANSLATED[1:])


def test_what_the_paper_says_of_its_sets() -> None:
    math, science = (content_of(FOLDER / f"{name}.yaml")["data"]["abilities"] for name in ("math", "science"))
    english = content_of(FOLDER / "english.yaml")["data"]["abilities"]
    translation = content_of(FOLDER / "translation.yaml")
    assert list(math) == [f"math-{code}" for code in LANGUAGES]
    assert list(science) == [f"science-{code}" for code in LANGUAGES]
    assert english["math-en"] == math["math-en"] == translation["data"]["abilities"]["math"]
    assert (
        english["science-en"] == science["science-en"] == {**translation["data"]["abilities"]["science"], "limit": None}
    )
    assert english["code-en"]["limit"] == math["math-en"]["limit"] == 1500
    assert science["science-en"]["per_group"]["limit"] * 3 == 1500
    settings = translation["translate"]
    assert tuple(settings["languages"]) == TRANSLATED
    assert set(TRANSLATED) <= set(NAMED)
    assert (settings["distinct"], settings["model"], settings["models"]) == (
        ["math"],
        "gpt-4o-mini",
        {"math-te": "gpt-4o"},
    )
    for ability, sets in (("math", math), ("science", science)):
        for code in TRANSLATED:
            assert sets[f"{ability}-{code}"]["path"] == f"{settings['out']}/{ability}-{code}.parquet"
    table = content_of(FOLDER / "benchmax.yaml")["data"]["evaluations"]
    roles = {name: one["role"] for name, one in table.items()}
    assert roles == dict.fromkeys(("math-en", "math-zh"), "keep") | {
        f"science-{code}": "recover" for code in TRANSLATED[1:]
    }
    assert all(name.endswith(f"-{one['language']}") and one["name"] == one["language"] for name, one in table.items())


@pytest.mark.parametrize("name", ["table3_sft", "table3_transfer", "pair_math_7b", "pair_math_1.5b"])
def test_the_papers_configs_say_what_the_overlays_say(name: str) -> None:
    def sets(overlay: str, kind: str) -> Config:
        found: Config = content_of(FOLDER / f"{overlay}.yaml")["data"][kind]
        return found

    data = content_of(ROOT / "configs" / "paper" / f"{name}.yaml")["data"]
    abilities = sets("math", "abilities") | sets("science", "abilities")
    assert data["abilities"] == {one: abilities[one] for one in data["abilities"]}
    assert data["evaluations"] == sets("benchmax", "evaluations")


def test_table_4_says_what_its_overlay_says() -> None:
    abilities = content_of(ROOT / "configs" / "paper" / "table4.yaml")["data"]["abilities"]
    plain = {name: {key: value for key, value in one.items() if key != "template"} for name, one in abilities.items()}
    assert plain == content_of(FOLDER / "english.yaml")["data"]["abilities"]
    assert [one["template"] for one in abilities.values()] == ["wizardmath", "tulu", "wizardlm"]
