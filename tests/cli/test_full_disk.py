"""A disk that is full ends a verb with a message that names file, rule and remedy, and costs nothing that was there."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.test_export import largest_file
from tests.front_door import basic, changed, left, run
from tests.tiny import write_jsonl


def test_profile_and_sweep(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> None:
    items = write_jsonl(tmp_path / "w.jsonl", [{"prompt": f"Say {number}", "answer": "one"} for number in range(4)])
    sets = {role: {"path": str(items), "role": role, "max_new_tokens": 2} for role in ("keep", "recover")}
    config = changed(basic(tmp_path, target_folder, source_folder, ability_file), "data.evaluations", sets)
    root, grid = tmp_path / "run", ("--sweep.scales", "0.4", "--sweep.ratios", "0.1,0.2", "--sweep.methods", "act")
    with largest_file(2000):
        outcome = run("profile", config)
    assert outcome.status == 1
    assert "TMPDIR = " in outcome.err
    config["transfer"]["selection"] = "weight_rms"  # reads no samples
    with largest_file(2000):  # scores are larger
        outcome = run("profile", config)
    assert outcome.status == 1
    assert f"output = '{root / 'scores.weight_rms' / 's' / 'd.safetensors'}': must be writable (" in outcome.err
    assert "File too large" in outcome.err
    assert "Free some space" in outcome.err
    assert [name for name in left(root) if (root / name).is_file()] == []

    assert run("profile", config).status == 0
    for options in ((), ("--sweep.storage", tmp_path / "points.db")):
        with largest_file(12_000):  # scores are smaller, but not what a sweep stores of all points
            outcome = run("sweep", config, *grid, *options)
        assert outcome.status == 1
        assert "Traceback" not in outcome.err
        assert "sweep.storage = " in outcome.err or "must be writable (" in outcome.err
        assert str(tmp_path) in outcome.err
        assert run("sweep", config, *grid, *options).status == 0  # goes on
