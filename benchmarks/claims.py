"""The paper's findings on scores (§3), measured on the laboratory: means over seeds, with the least and the most.

python -m benchmarks.claims --seeds 3
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from act_lightning.cli import main as act

ABILITIES = ("arithmetic", "words-en", "words-de", "words-fr", "words-es")
SOURCES = ("generalist", "base")
SAMPLES = 480


def main() -> None:
    """Score both pairs of every seed, draw their reports, and print what their tables say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(parser.parse_args().seeds):
            for name, value in findings(report(seed, Path(folder, str(seed)))):
                measured.setdefault(name, []).append(value)
    print("| at p = 1 % | mean | least to most |\n|---|---|---|")
    for name, values in measured.items():
        print(f"| {name} | {statistics.mean(values):.3f} | {min(values):.3f} to {max(values):.3f} |")


def report(seed: int, root: Path) -> Path:
    """The tables of a report on one seed's pairs: the specialist with the generalist, and with their base."""
    abilities = {name: {"path": f"lab:{name}", "limit": SAMPLES} for name in ABILITIES}
    sources = [{"model": f"lab:{name}@{seed}", "name": name, "abilities": [*ABILITIES]} for name in SOURCES]
    config = {
        "model": {"target": f"lab:specialist@{seed}"},
        "data": {"abilities": abilities},
        "profile": {"sources": sources},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(root / "run")},
    }
    root.mkdir()
    (root / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for command in (["profile", "--config", str(root / "config.yaml")], ["report", str(root / "run")]):
        if status := act(command):
            raise SystemExit(status)
    return root / "run" / "report" / "tables"


def findings(tables: Path) -> Iterator[tuple[str, float]]:
    """Each quantity with its name, one for every ability or pair of abilities."""
    for pair in range(1, len(SOURCES) + 1):
        for row in rows(tables / f"concentration-{pair}.csv"):
            yield "Finding 1: share of the sum of all scores that the top 1 % holds", float(row["held by top p"])
            yield "Finding 1: largest score over the median", float(row["max"]) / float(row["median"])
        for row in rows(tables / f"head-and-embedding-{pair}.csv"):
            yield "Finding 2: share of lm_head in the mask", float(row["lm_head share"])
        for row in rows(tables / f"overlap-by-group-{pair}.csv"):
            group = next(iter(row.values()))
            yield f"Finding 3: overlap, {group}", float(row["overlap"])
            without = float(row["overlap without lm_head and embedding"])
            yield f"Finding 3: the same without lm_head and embedding, {group}", without
        for row in rows(tables / f"weight-overlap-{pair}.csv"):
            yield "Finding 5: overlap with the mask by ℓ2 norm of the weight change", float(row["overlap"])
    for row in rows(tables / "consistency.csv"):
        yield "Finding 4: overlap of one ability's masks from two pairs", float(row["overlap"])


def rows(path: Path) -> list[dict[str, str]]:
    """A table as dicts."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
