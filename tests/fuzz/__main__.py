"""Fuzz every reader of foreign files: ``python -m tests.fuzz --seconds 3600``; CI does so for a minute.

    python -m tests.fuzz --seconds 60 --kinds headers cards --seed 7

What a reader raises beside ActError, or takes longer than ten seconds for, is shrunk by Hypothesis and printed; then
the other kinds go on, and the status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from time import monotonic

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from act_lightning.data import template_process
from act_lightning.errors import ActError
from tests.fuzz.kinds import KINDS, Kind, make_kinds

_EXAMPLES = 40  # of a kind in a round
_SLOWEST = 10.0  # seconds of processors for one file
_MODEST = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def main() -> int:
    """Fuzz in rounds until the time is over, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    template_process.SECONDS = 3.0
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        kinds = make_kinds(Path(folder), options.kinds)
        end, number, failed = monotonic() + options.seconds, options.seed, set[str]()
        while monotonic() < end and len(failed) < len(kinds):
            for name, kind in kinds.items():
                if monotonic() < end and name not in failed and not _fuzz(kind, number, name, counts):
                    failed.add(name)
            number += 1
    for name in kinds:
        print(f"{name}: {counts[name]:,} files, {counts[f'{name} refused']:,} of them refused")
    return int(bool(failed))


def _fuzz(kind: Kind, number: int, name: str, counts: Counter[str]) -> bool:
    """One round of a kind; return whether all went well."""

    @seed(number)
    @_MODEST
    @given(st.data())
    def check(data: st.DataObject) -> None:
        counts[name] += 1
        content = data.draw(kind.contents)
        start = sum(os.times()[:4])
        try:
            kind.read(content)
        except ActError as error:
            counts[f"{name} refused"] += 1
            if not error.issues or not all(issue.setting and issue.problem and issue.hint for issue in error.issues):
                raise TypeError("an error must name file, problem and hint") from error
        assert sum(os.times()[:4]) - start < _SLOWEST, f"{name} takes too long"

    try:
        check()
    except Exception:
        print(f"python -m tests.fuzz --kinds {name} --seed {number} fails:", file=sys.stderr)
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
