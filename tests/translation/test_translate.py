"""Translation from rows to Parquet, against a server on this machine that stumbles, lies and hangs."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from rich.console import Console

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import Conversation, iter_conversations
from act_lightning.errors import ActError
from act_lightning.translation.endpoint import _retry_after
from act_lightning.translation.translate import print_report, translate
from act_lightning.translation.translation_settings import Price, TranslationSettings
from tests.front_door import write_yaml
from tests.tiny import write_jsonl
from tests.translation.server import Answer, Server, Texts, serving, translated

SECRET = "sk-never-to-be-seen"
FAST: dict[str, Any] = {"requests_per_minute": 10**7, "tokens_per_minute": 10**9}


def read_rows(settings: AbilityData) -> list[Conversation]:
    return [messages for _, messages in iter_conversations(settings, "")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setattr("act_lightning.translation.endpoint._LONGEST_PAUSE", 0.001)
    with serving() as running:
        yield running


@pytest.fixture
def math(tmp_path: Path) -> dict[str, AbilityData]:
    """Twelve rows, two of them with one prompt."""
    rows = [
        {
            "query": f"Anna has {i % 11} bags for $5 each. What is $x^{i % 11}$?",
            "response": f"It is {i}.\nThe answer is: {i}",
        }
        for i in range(12)
    ]
    columns = {"prompt": "query", "answer": "response"}
    return {"math": AbilityData(str(write_jsonl(tmp_path / "m.jsonl", rows)), columns=columns, limit=3)}


def settings(server: Server, tmp_path: Path, **changes: Any) -> TranslationSettings:
    basic = TranslationSettings(
        ["sw"], out=str(tmp_path / "out"), model="small", base_url=server.url, timeout=20, **FAST
    )
    return replace(basic, **changes)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def test_rows_come_back_in_order_with_what_must_be_kept(
    server: Server, math: dict[str, AbilityData], tmp_path: Path
) -> None:
    report = translate(math, settings(server, tmp_path, prices={"small": Price(1.0, 10.0)}))
    found = rows_of(tmp_path / "out" / "math-sw.parquet")
    originals = read_rows(math["math"])
    assert [row["original_prompt"] for row in found] == [turns[0]["content"] for turns in originals]
    assert found[1]["prompt"] == "neno neno 1 neno neno $5 neno. neno neno $x^1$?"
    assert found[1]["answer"] == "neno neno 1.\nThe answer is: 1"
    assert found[1]["place"].endswith("m.jsonl:2")
    as_ability = AbilityData(str(tmp_path / "out" / "math-sw.parquet"))
    assert [turns[1]["content"] for turns in read_rows(as_ability)] == [row["answer"] for row in found]
    one = report.sets["math-sw"]
    assert (one.rows, one.translated, one.attempts, one.input_tokens, one.output_tokens) == (3, 3, 3, 300, 30)
    assert one.cost == report.cost == pytest.approx((300 * 1.0 + 30 * 10.0) / 1e6)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["sets"]["math-sw"]["translated"] == 3


def test_nothing_is_paid_for_twice(server: Server, math: dict[str, AbilityData], tmp_path: Path) -> None:
    translate(math, settings(server, tmp_path))
    first = (tmp_path / "out" / "math-sw.parquet").read_bytes()
    ledger = tmp_path / "out" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-5])  # a killed run tears its last line
    report = translate(math, settings(server, tmp_path))
    assert (len(server.asked), report.requests) == (4, 1)
    assert (tmp_path / "out" / "math-sw.parquet").read_bytes() == first
    translate(math, settings(server, tmp_path, model="other"))
    assert len(server.asked) == 7


STUMBLES = {
    "429": Answer('{"error": {"message": "slow down"}}', 429, {"retry-after": "0.01"}, whole=True),
    "500": Answer("<html>", 500, whole=True),
    "no JSON": Answer("{oops", whole=True),
    "a list": Answer("[]", whole=True),
    "no choices": Answer('{"choices": []}', whole=True),
    "no text": Answer('{"choices": [{"message": {"content": null}}]}', whole=True),
    "hangs": Answer("late", after=1.5),
}


@pytest.mark.parametrize("kind", STUMBLES)
def test_asks_again_after_a_stumble(server: Server, math: dict[str, AbilityData], tmp_path: Path, kind: str) -> None:
    server.answer = lambda messages, before: translated(messages) if before else STUMBLES[kind]
    report = translate(math, settings(server, tmp_path, timeout=0.5 if kind == "hangs" else 20.0, retries=20))
    assert report.sets["math-sw"].translated == 3
    assert report.retries >= 3
    assert report.requests == report.retries + 3


def test_a_server_that_never_recovers_stops_the_run(
    server: Server, math: dict[str, AbilityData], tmp_path: Path
) -> None:
    good = 1

    def answer(messages: list[Texts], before: int) -> Answer:
        return translated(messages) if len(server.asked) <= good else STUMBLES["500"]

    server.answer = answer
    wanted = settings(server, tmp_path, retries=1, concurrency=1)
    with pytest.raises(ActError, match=r"has not answered the last 2 questions: status 500"):
        translate(math, wanted)
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (figures["sets"]["math-sw"]["translated"], figures["unanswered"]) == (1, 2)
    assert not (tmp_path / "out" / "math-sw.parquet").exists()  # not a part of it that looks like the whole
    good = 100
    assert translate(math, wanted).requests == 2


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, json.dumps({"error": {"message": f"wrong key {SECRET}"}}), r"refuses the key.*wrong key \*\*\*"),
        (404, '{"error": {"message": "no model"}}', "knows no such model or address.*small"),
        (429, '{"error": {"message": "pay", "code": "insufficient_quota"}}', "has no money left"),
    ],
)
def test_what_no_retry_mends_stops_at_once(
    server: Server, math: dict[str, AbilityData], tmp_path: Path, status: int, body: str, message: str
) -> None:
    server.answer = lambda messages, before: Answer(body, status, whole=True)
    with pytest.raises(ActError, match=message):
        translate(math, settings(server, tmp_path, concurrency=1))
    assert len(server.asked) == 1


def test_a_faulty_reply_is_corrected_by_the_model(server: Server, math: dict[str, AbilityData], tmp_path: Path) -> None:
    def answer(messages: list[Texts], before: int) -> Answer:
        if len(messages) == 2:
            return Answer(translated(messages).body.replace("<k1/>", "x"))
        assert messages[2]["role"] == "assistant"
        assert "- prompt: mark <k1/> is missing" in messages[3]["content"]
        return translated(messages)

    server.answer = answer
    one = translate(math, settings(server, tmp_path)).sets["math-sw"]
    assert (one.translated, one.attempts, one.corrected, one.input_tokens) == (3, 6, 3, 600)


def test_what_stays_faulty_is_set_aside_with_the_reason(
    server: Server, math: dict[str, AbilityData], tmp_path: Path
) -> None:
    bad = {
        "Anna has 0": Answer('{"prompt": "?"}'),
        "Anna has 1": Answer("{}", finish="length"),
        "Anna has 2": Answer('{"error": {"message": "filtered"}}', 400, whole=True),
    }

    def answer(messages: list[Texts], before: int) -> Answer:
        return next((bad[start] for start in bad if start in messages[1]["content"]), translated(messages))

    server.answer = answer
    math["math"].limit = 4
    report = translate(math, settings(server, tmp_path, attempts=2))
    assert (report.sets["math-sw"].translated, report.sets["math-sw"].set_aside, len(server.asked)) == (1, 3, 6)
    lines = (tmp_path / "out" / "set_aside.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reasons"] for line in lines]
    assert reasons[0] == ['it is not an object whose "prompt" and "answer" are text']
    assert reasons[1] == ["it was cut at the model's longest output"]
    assert reasons[2][0].startswith("status 400")
    assert len(rows_of(tmp_path / "out" / "math-sw.parquet")) == 1
    assert translate(math, settings(server, tmp_path, attempts=2)).requests == 1  # the refused one cost nothing
    with pytest.raises(ActError, match="must keep a row, but all are set aside"):
        translate({"math": replace(math["math"], limit=3)}, settings(server, tmp_path, attempts=2))


def test_every_language_gets_rows_of_its_own(server: Server, math: dict[str, AbilityData], tmp_path: Path) -> None:
    wanted = settings(server, tmp_path, languages=["sw", "hu"], distinct=["math"], models={"math-hu": "large"})
    translate(math, wanted)
    prompts = {
        code: [row["original_prompt"] for row in rows_of(tmp_path / "out" / f"math-{code}.parquet")]
        for code in ("sw", "hu")
    }
    own = [turns[0]["content"] for turns in read_rows(math["math"])]
    together = own + prompts["sw"] + prompts["hu"]
    assert len(set(together)) == len(together) == 9
    assert {body["model"] for body in server.asked if "Hungarian" in body["messages"][0]["content"]} == {"large"}
    translate(math, replace(wanted, only=["hu"]))
    assert len(server.asked) == 6  # the same rows as before
    with pytest.raises(ActError, match="must have 15 different prompts for 3 to each language, but has 11"):
        translate(math, replace(wanted, languages=["sw", "hu", "th", "vi"]))


def test_other_abilities_share_their_rows(server: Server, math: dict[str, AbilityData], tmp_path: Path) -> None:
    translate(math, settings(server, tmp_path, languages=["sw", "hu"]))
    found = [
        [row["original_prompt"] for row in rows_of(tmp_path / "out" / f"math-{code}.parquet")] for code in ("sw", "hu")
    ]
    assert found[0] == found[1]


def test_the_key_is_sent_and_nowhere_written(
    server: Server, math: dict[str, AbilityData], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = settings(server, tmp_path, key="sk-in-config", json_mode=False, temperature=None)
    report = translate(math, wanted)
    print_report(report, wanted, Console(file=(printed := io.StringIO()), width=100))
    assert server.keys == {"Bearer sk-in-config"}
    assert not server.asked[0].keys() & {"response_format", "temperature"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    shown = "".join(capfd.readouterr()) + printed.getvalue() + repr(wanted)
    assert b"sk-in-config" not in written
    assert "sk-in-config" not in shown
    assert re.search(r"math-sw .*\n *small", printed.getvalue())
    assert "no price" in printed.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": []}, "translate.languages = []: must name a language"),
        ({"languages": ["sw", "sw"]}, "must name each language once"),
        ({"languages": ["../sw"]}, "that matches"),
        ({"only": ["th"]}, "translate.only = ['th']: must be among translate.languages"),
        ({"abilities": ["code"]}, "translate.abilities = 'code': must be one of data.abilities: math"),
        ({"model": None}, "translate.model = None: must name a model"),
        ({"key_variable": "NO_SUCH_KEY"}, "translate.key_variable = 'NO_SUCH_KEY': must name an environment variable"),
        ({"concurrency": 0}, "translate.concurrency = 0: must be at least 1"),
        ({"timeout": 0.0}, "translate.timeout = 0.0: must be positive"),
        ({"retries": -1}, "translate.retries = -1: must not be negative"),
        ({"prices": {"small": Price(-1, 0)}}, "must not be negative"),
    ],
)
def test_wrong_settings(
    server: Server, math: dict[str, AbilityData], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ActError) as caught:
        translate(math, settings(server, tmp_path, **changes))
    assert message in str(caught.value)
    assert not server.asked
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_translated(server: Server, tmp_path: Path) -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    for row, message in (
        ({"messages": turns}, "one question and one answer"),
        ({"prompt": "a", "answer": " "}, "must hold text"),
    ):
        data = {"a": AbilityData(str(write_jsonl(tmp_path / "rows.jsonl", [row])))}
        with pytest.raises(ActError, match=rf"rows\.jsonl:1 = .*{message}"):
            translate(data, settings(server, tmp_path))
    unlimited = {"a": AbilityData(str(tmp_path / "rows.jsonl"))}
    with pytest.raises(ActError, match=r"data\.abilities\.a\.limit = None: must say how many"):
        translate(unlimited, settings(server, tmp_path, distinct=["a"]))


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 0), ("3", 3), ("0.5", 0.5), ("-1", 0), ("soon", 0), ("9e9", 600)]
)
def test_pauses_that_an_endpoint_asks_for(header: str | None, seconds: float) -> None:
    assert _retry_after(header) == seconds


@pytest.mark.slow
def test_a_killed_run_goes_on(server: Server, math: dict[str, AbilityData], tmp_path: Path) -> None:
    server.answer = lambda messages, before: replace(translated(messages), after=0.1)
    wanted: dict[str, Any] = {"languages": ["sw"], "out": str(tmp_path / "out"), "model": "small", "concurrency": 2}
    wanted |= {"base_url": server.url, **FAST}
    sums = {"path": math["math"].path, "columns": math["math"].columns}
    file = write_yaml(tmp_path / "c.yaml", {"data": {"abilities": {"math": sums}}, "translate": wanted})
    command = [sys.executable, "-m", "act_lightning", "data", "translate", "--config", str(file)]
    ledger = tmp_path / "out" / "ledger.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and not (ledger.exists() and ledger.read_bytes().count(b"\n") > 2):
            time.sleep(0.01)
        killed.kill()
    assert not (tmp_path / "out" / "math-sw.parquet").exists()
    paid = ledger.read_bytes().count(b"\n")
    math["math"].limit = None
    report = translate(math, TranslationSettings(**wanted))
    questions = 12  # of 12 rows: every answer differs
    assert 2 < paid < questions
    assert (report.requests, report.sets["math-sw"].attempts) == (questions - paid, questions)
    assert len(server.asked) <= questions + 2  # two were under way
    assert len(rows_of(tmp_path / "out" / "math-sw.parquet")) == 12
