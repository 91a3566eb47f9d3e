"""A pair of tiny models, and questions that a transfer changes the answers of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.front_door import Config, basic, changed, run
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

ANY_LETTER = r"(?s)\s*(\w)"
ROWS = 14


def make_config(root: Path, folders: Mapping[str, Path] | None = None) -> Config:
    """A config of two sets: one that the target answers to, and one that its source does.

    ``folders`` are those of ``target`` and ``source``; by default new ones are made.
    """
    if folders is None:
        target = tiny_model("qwen2")
        folders = {
            "target": save_model(target, tiny_tokenizer(), root / "target"),
            "source": save_model(sibling_of(target, 1, 0.15), tiny_tokenizer(), root / "source"),
        }
    samples = [{"prompt": f"Say {i}", "answer": "one " * (1 + 7 * i % 23)} for i in range(24)]
    write_jsonl(root / "ability.jsonl", samples)
    config = basic(root, folders["target"], folders["source"], root / "ability.jsonl")
    more = [{"prompt": f"Ask {i}", "answer": "two three " * (1 + i % 5)} for i in range(12)]
    config["data"]["abilities"]["e"] = {"path": str(write_jsonl(root / "more.jsonl", more))}
    config["profile"]["sources"][0]["abilities"] = ["d", "e"]
    sets: dict[str, Any] = {}
    for name, role, model in (("kept", "keep", "target"), ("lost", "recover", "source")):
        questions = [{"prompt": f"What is {name} {i}?", "answer": "a"} for i in range(ROWS)]
        path = write_jsonl(root / f"{name}.jsonl", questions)
        sets[name] = {"path": str(path), "role": role, "kind": "number", "pattern": ANY_LETTER, "max_new_tokens": 8}
        sets[name]["metric"] = "exact_match"
        asked = changed(config, "data.evaluations", {name: sets[name]})
        asked["trainer"]["default_root_dir"] = str(root / f"asked-{name}")
        assert run("predict", asked, "--model.target", folders[model]).status == 0
        lines = (root / f"asked-{name}" / "evaluations/predictions" / f"{name}.jsonl").read_text().splitlines()
        answers = [first_letter(json.loads(line)["prediction"]) for line in lines]
        write_jsonl(path, [row | {"answer": answer} for row, answer in zip(questions, answers, strict=True)])
    return changed(config, "data.evaluations", sets)


def first_letter(text: str) -> str:
    """What the sets take for an answer, or a letter that no output has."""
    return next((letter for letter in text if letter.isalnum() or letter == "_"), "q")
