"""Speaking with one server over HTTP: its address, its routes, and what counts as its loss."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from posttrain.errors import ModelError, PosttrainError
from posttrain.rollout.server.bucket import Bucket
from posttrain.rollout.server.launch import Server

IDLE = 2.0
"""Seconds an idle connection is kept: less than the five after which the server closes it, under a request perhaps."""

BUCKETS = "/posttrain/buckets"
"""A route of our proxy alone: buckets for servers on other machines."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class GoneError(Exception):
    """The server did not answer, or its engine is dead: another one may be asked the same."""


class SilentError(GoneError):
    """The server had all the time it was given. What hangs once would hang again."""


class RefusedError(PosttrainError):
    """The server answered with an error of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Address:
    """Where a server is, and the token its proxy asks for."""

    url: str
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if not (parts.scheme in ("http", "https") and parts.hostname) and not (parts.scheme == "unix" and parts.path):
            raise PosttrainError(f"servers: {self.url!r} is no address; write http://HOST:PORT or unix:/PATH")

    @property
    def local(self) -> bool:
        parts = urlsplit(self.url)
        return parts.scheme == "unix" or parts.hostname in LOOPBACK

    def connector(self) -> aiohttp.BaseConnector:
        if self.url.startswith("unix:"):
            return aiohttp.UnixConnector(urlsplit(self.url).path, limit=0, keepalive_timeout=IDLE)
        return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE)

    @property
    def base(self) -> str:
        return "http://engine" if self.url.startswith("unix:") else self.url.rstrip("/")


class Replica:
    """One server as the sampler sees it. Its methods are coroutines of one event loop.

    `version` names the weights it holds; None before a full sync, and after any failure.
    """

    def __init__(self, address: Address, server: Server | None = None) -> None:
        self.address, self.server = address, server
        self.version: int | None = None
        self.capacity = 1
        self.native = True
        """Whether it runs our worker extension."""
        self.shares = True
        """Whether it sees this machine's shared memory."""
        self.lost: str | None = None
        """Why it counts as lost."""
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        return self.address.url

    async def ask(self, method: str, path: str, body: Any = None, seconds: float | None = None) -> Any:
        """The JSON of an answer. Raises GoneError where none came, RefusedError where the status is an error."""
        status, text = await self.status(method, path, body, seconds)
        if status >= 400:
            raise RefusedError(f"{self.url}{path} answered {status}: {_message(text)}", status)
        return json.loads(text) if text.strip() else None

    async def status(self, method: str, path: str, body: Any = None, seconds: float | None = None) -> tuple[int, str]:
        """Status and text of an answer, whatever it is. A file goes as it is, anything else as JSON. Raises GoneError
        where no answer came.
        """
        if self._session is None:
            headers = {"Authorization": f"Bearer {self.address.token}"} if self.address.token else {}
            # Weights pass by shared memory, but a list of their names may be longer than the default of 8 KiB a line.
            self._session = aiohttp.ClientSession(
                connector=self.address.connector(), headers=headers, timeout=aiohttp.ClientTimeout(total=None)
            )
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=10)
        try:
            content = {"data" if isinstance(body, io.IOBase) else "json": body}
            async with self._session.request(
                method, self.address.base + path, timeout=limit, allow_redirects=False, **content
            ) as response:
                return response.status, await response.text()
        except TimeoutError:
            raise SilentError(f"{self.url}{path} did not answer within {seconds or 10:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise GoneError(f"{self.url}{path}: {error or type(error).__name__}") from None

    async def lend(self, bucket: Bucket, work: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Do something with a bucket's index, as this server sees it: a server on another machine is sent a copy, which
        its proxy puts into shared memory there and takes away afterwards.
        """
        index = bucket.index()
        if self.shares:
            return await work(index)
        with bucket.path.open("rb") as file:
            path = (await self.ask("POST", BUCKETS, file))["path"]
        try:
            await work({**index, "path": path})
        finally:
            with contextlib.suppress(GoneError, RefusedError):
                await self.ask("DELETE", f"{BUCKETS}/{Path(path).name}", seconds=60)

    async def healthy(self, seconds: float = 10.0) -> bool:
        """Whether process and engine are there and answer."""
        if self.server is not None and self.server.ended():
            return False
        with contextlib.suppress(GoneError):
            return (await self.status("GET", "/health", seconds=seconds))[0] == 200
        return False

    async def generate(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one request of ids. Raises GoneError for a lost server or engine, RefusedError otherwise."""
        for attempt in range(3):
            try:
                said = await self.ask("POST", "/inference/v1/generate", body, seconds)
            except RefusedError as error:
                # A dead engine answers, too.
                if error.status < 500 or await self.healthy():
                    raise
                raise GoneError(str(error)) from None
            except SilentError:
                raise
            except GoneError:
                # A connection that was closed while it idled says nothing of the server.
                if attempt == 2 or not await self.healthy():
                    raise
                continue
            if said["choices"][0]["finish_reason"] != "abort":
                return said
            # A server that is being ended gives up what it was doing.
            if not await self.healthy():
                break
        raise GoneError(f"{self.url} gave a response up")

    async def ready(self, seconds: float) -> None:
        """Wait for a server started here. Raises ModelError with the end of its log where it dies or takes too long."""
        assert self.server is not None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if ended := self.server.ended():
                raise ModelError(f"the engine did not start: {ended}")
            if self.server.socket.exists() and await self.healthy(5.0):
                return
            await asyncio.sleep(0.2)
        error = self.server.too_late(seconds)
        self.server.kill()
        raise error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _message(text: str) -> str:
    """What an error says, in one line that fits a screen."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(text)
        found = found.get("error", found.get("detail", found))
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    text = " ".join(text.split())
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"
