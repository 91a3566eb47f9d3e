"""A loopback server that speaks as much of OpenAI's protocol as a translation needs, and misbehaves on demand."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MARK = re.compile(r"<k\d+/>")
Texts = dict[str, str]
WORDS = {
    "Modern Standard Arabic": "كلمة",
    "Bengali": "শব্দ",
    "Japanese": "ことば",
    "Korean": "낱말",
    "Telugu": "పదం",
    "Thai": "คำ",
    "Simplified Chinese": "词",
}
"""A word of each language whose script is looked at."""


@dataclass
class Answer:
    """What the server sends.

    Attributes:
        body: A whole body, or the text of a completion.
        status: The HTTP status.
        headers: More headers.
        finish: Why the completion ends.
        after: Seconds before the body.
        whole: Whether ``body`` is the whole body.
    """

    body: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = "stop"
    after: float = 0.0
    whole: bool = False

    def to_bytes(self) -> bytes:
        """The body: 100 tokens in, 10 tokens out."""
        if self.whole:
            return self.body.encode()
        choice = {"index": 0, "message": {"role": "assistant", "content": self.body}, "finish_reason": self.finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


@dataclass
class Server:
    """A running server.

    Attributes:
        url: Its address.
        asked: What it was sent, as JSON, oldest first.
        keys: The authorizations that it was sent.
        answer: Decides what it sends, from the messages and how often the same question came before.
    """

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    answer: Callable[[list[Texts], int], Answer] = lambda messages, before: translated(messages)

    @property
    def questions(self) -> list[Texts]:
        """The texts that it was asked to translate, oldest first."""
        return [json.loads(body["messages"][1]["content"]) for body in self.asked]


def reworded(text: str, word: str) -> str:
    """Every word becomes ``word``; marks, numbers and punctuation stay."""
    pieces = re.split(r"(<k\d+/>)", text)
    return "".join(piece if MARK.fullmatch(piece) else re.sub(r"[A-Za-z]+", word, piece) for piece in pieces)


def translated(messages: list[Texts]) -> Answer:
    """A good translation of what the messages hold."""
    texts, told = json.loads(messages[1]["content"]), messages[0]["content"]
    word = next((word for language, word in WORDS.items() if f"into {language}" in told), "neno")
    return Answer(json.dumps({name: reworded(text, word) for name, text in texts.items()}))


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine, which goes when the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                before = sum(one["messages"][:2] == body["messages"][:2] for one in server.asked)
                server.asked.append(body)
                server.keys.add(self.headers["authorization"])
            answer = server.answer(body["messages"], before)
            content = answer.to_bytes()
            time.sleep(answer.after)
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Stay silent."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                pass  # the client has given up

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
