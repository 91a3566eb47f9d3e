"""What is locked: packages with hashes, at the versions that the tests run with; actions of workflows; the version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import act_lightning

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


def test_workflows_use_actions_by_commit_and_may_write_only_where_a_job_says_so() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        workflow = yaml.safe_load(text)
        assert set(workflow["permissions"].values()) <= {"read"}, path
        for action in re.findall(r"uses: (.+)", text):
            assert action.startswith("./.github/") or re.match(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action), (
                action
            )


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == act_lightning.__version__
