"""The lock file: every package with hashes, and the versions that the tests run with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_lock_is_complete_and_up_to_date() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(
        r"^([A-Za-z0-9._-]+)==(\S+)[^\n]*\\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^[A-Za-z0-9]", text, re.MULTILINE)), "each package has hashes"
    locked = {re.sub("[-_.]+", "-", name.lower()): version for name, version, _ in entries}
    constraints = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for name, version in constraints:
        assert locked.get(re.sub("[-_.]+", "-", name.lower()), version) == version, f"{name}: run scripts/lock.sh"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[\[><=]", requirement)[0]
        assert re.sub("[-_.]+", "-", name.lower()) in locked, f"{name}: run scripts/lock.sh"
