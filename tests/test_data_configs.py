"""The paper's sets in configs/data: each overlay by its command, with small files of the same columns in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from act_lightning.translation.instructions import LANGUAGES as NAMED
from tests.front_door import Config, Outcome, call, write_yaml
from tests.test_configs import ROOT, content_of, small, tiny_pair
from tests.tiny import write_jsonl
from tests.translation.server import serving

__all__ = ["tiny_pair"]  # a fixture

FOLDER = ROOT / "configs" / "data"
LANGUAGES = ("en", "zh", "ar", "bn", "hu", "ja", "ko", "sw", "te", "th", "vi")
TRANSLATED = LANGUAGES[1:]
SUBJECTS = ("physics", "chemistry", "biology", "math")
ROWS: dict[str, list[dict[str, Any]]] = {
    "meta-math/MetaMathQA": [
        {
            "type": "GSM",
            "query": f"Anna buys {i} pens for $2 each. Total?",
            "response": f"It is {2 * i}.\nThe answer is: {2 * i}",
        }
        for i in range(24)
    ],
    "MegaScience/MegaScience": [
        {"question": f"Why does {i} hold?", "answer": f"Since $a^{i}$ does.", "subject": SUBJECTS[i % 4]}
        | {"reference_answer": "a", "source": "textbook_reasoning"}
        for i in range(16)
    ],
    "nvidia/OpenCodeInstruct": [
        {"id": str(i), "input": f"Write f{i}.", "output": f"def f{i}(): ..."} for i in range(4)
    ],
    "LLaMAX/BenchMAX_Math": [
        {"question": f"What is 1000 + {i}?", "answer": None, "answer_number": 1000 + i, "equation_solution": None}
        for i in range(2)
    ],
    "LLaMAX/BenchMAX_Science": [
        {"Question": f"Which is {i}?", "Correct Answer": f"{i}"}
        | {f"Incorrect Answer {n}": f"{i + n}" for n in (1, 2, 3)}
        for i in range(2)
    ],
}
"""Rows with the columns of the hub's data sets, by id."""


def in_place(sets: Config, folder: Path) -> Config:
    """What puts local rows in the place of those of the hub, and asks for fewer; files that were named stay."""
    found: Config = {}
    for name, one in sets.items():
        if one["path"] not in ROWS:
            continue
        file = write_jsonl(folder / f"{one['path'].split('/')[1]}.jsonl", ROWS[one["path"]])
        found[name] = {"path": str(file), "name": None, "split": None, "streaming": False}
        if "per_group" in one:
            found[name]["per_group"] = {**one["per_group"], "limit": 1}
        if one.get("limit"):
            found[name]["limit"] = 2
        if "role" in one:
            found[name]["max_new_tokens"] = 2
    return found


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
    data = overlay(root, *files[1:])
    for file in files[1:]:
        for name, one in content_of(file)["data"].get("abilities", {}).items():
            if one["path"].startswith("data/translated/"):
                data["abilities"][name] = {"path": str(translated / Path(one["path"]).name)}
    if verb == "test":
        data["abilities"] = given["data"]["abilities"]
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
    names = ("paper/recovery.yaml", "data/math.yaml", "data/science.yaml")
    outcome = run("fit", names, tiny_pair, translated, tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_merging_on_the_papers_abilities(tiny_pair: tuple[Path, Path], translated: Path, tmp_path: Path) -> None:
    outcome = run("merge", ("paper/merging.yaml", "data/english.yaml"), tiny_pair, translated, tmp_path)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "run" / "merged" / "config.json").is_file()


@pytest.mark.slow
def test_table_3_is_measured(tiny_pair: tuple[Path, Path], translated: Path, tmp_path: Path) -> None:
    outcome = run("test", ("paper/recovery.yaml", "data/benchmax.yaml"), tiny_pair, translated, tmp_path)
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
