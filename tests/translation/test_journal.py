"""Replies on disk: what a killed run leaves, and who may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from act_lightning.errors import ActError
from act_lightning.translation.runner import Entry, Journal


def entry(number: int) -> Entry:
    return Entry(
        key=f"k{number % 2}", model="m", text=f"szöveg\n{number}", finish="stop", input_tokens=1, output_tokens=2
    )


def test_keeps_replies_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "ledger.jsonl") as journal:
        for number in range(4):
            journal.add(entry(number))
        assert journal.replies("k0") == [entry(0), entry(2)]
    with Journal(tmp_path / "new" / "ledger.jsonl") as journal:
        assert journal.replies("k1") == [entry(1), entry(3)]
        assert journal.replies("other") == []


def test_a_torn_last_line_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Journal(path) as journal:
        for number in range(3):
            journal.add(entry(number))
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 2, 7):
        path.write_bytes(whole[:-cut])
        with Journal(path) as journal:
            assert journal.replies("k0") == [entry(0)]
            journal.add(entry(2))
        assert path.read_bytes() == whole


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Journal(path) as journal:
        journal.add(entry(0))
    path.write_bytes(path.read_bytes() + b'{"key": "k"}\n')
    with pytest.raises(ActError, match=r"ledger\.jsonl:2 = .*is no entry of a journal"), Journal(path):
        pass
    path.write_bytes(path.read_bytes().splitlines()[0] + b"\n")
    with Journal(path) as journal:  # the failure let go of the lock
        assert journal.replies("k0") == [entry(0)]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with (
        Journal(path),
        pytest.raises(ActError, match=r"must not be in use, and process .* `data translate`"),
        Journal(path),
    ):
        pass
