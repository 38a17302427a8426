"""A chat endpoint on the loopback interface that answers, fails and stalls as told, and remembers its requests."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from posttrain_verifiers.judge import Judge

HOLE = re.compile(r"^<<<([0-9a-f]{12})\n(.*?)\n\1>>>$", re.DOTALL | re.MULTILINE)


@dataclass
class Reply:
    """What the server sends."""

    text: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 10)
    raw: bytes | None = None
    wait: float = 0.0
    """Seconds before it is sent."""


@dataclass
class Server:
    """A running one: `answer` gives the reply to a request's body, the how manieth it is."""

    url: str
    answer: Callable[[dict[str, Any], int], Reply | str]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    """The most requests that were in flight at one time."""
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def asked(self) -> int:
        return len(self.bodies)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply | str]) -> Iterator[Server]:
    """A server for a test; its port is free again afterwards."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.bodies.append(body)
                server.keys.append(self.headers.get("Authorization"))
                count, server.now = len(server.bodies), server.now + 1
                server.at_once = max(server.at_once, server.now)
            try:
                reply = server.answer(body, count)
                reply = Reply(reply) if isinstance(reply, str) else reply
                time.sleep(reply.wait)
            finally:
                with server.lock:
                    server.now -= 1
            self.reply(reply)

        def reply(self, reply: Reply) -> None:
            message = {"role": "assistant", "content": reply.text}
            said: dict[str, Any] = {"choices": [{"message": message, "finish_reason": reply.finish}]}
            if reply.usage is not None:
                said["usage"] = {"prompt_tokens": reply.usage[0], "completion_tokens": reply.usage[1]}
            data = json.dumps(said).encode() if reply.raw is None else reply.raw
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server = Server(f"http://127.0.0.1:{listening.server_port}/v1", answer)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def question(body: Mapping[str, Any]) -> str:
    """What the server was asked first."""
    return body["messages"][0]["content"]


def nonce(body: Mapping[str, Any]) -> str:
    found = HOLE.search(question(body))
    assert found is not None
    return found[1]


def judged(body: Mapping[str, Any]) -> list[str]:
    """The texts between the fences."""
    return [text for _, text in HOLE.findall(question(body))]


def by_length(body: dict[str, Any], _: int) -> str:
    """An honest judge: as many points as the response has characters, 10 at most."""
    return f"It has {len(judged(body)[0])} characters.\nScore {nonce(body)}: {max(1, min(10, len(judged(body)[0])))}"


def judge(server: Server, cache: Path, **settings: Any) -> Judge:
    return Judge(endpoint=server.url, model="m", cache=str(cache), **{"timeout": 10.0, **settings})
