"""An OpenAI-compatible chat endpoint: asked within a deadline, a rate and a budget, and never twice for the same."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain_verifiers.judges.ledger import Answer, Budget, Ledger, Usage

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE = 0.5
"""Seconds before the second try, doubled before each further one; what the server asks for where it does."""
PASSING = (408, 409, 425, 429)
"""Refusals that are not the request's fault, beside all from 500 on."""
OVERHEAD = 64
"""Tokens a chat template may add to a message: what is set aside must be enough."""

Messages = Sequence[Mapping[str, str]]


class UnavailableError(Exception):
    """No answer, for a reason that has nothing to do with what was asked."""


class RefusedError(Exception):
    """No answer, because of what was asked, or by whom."""


@dataclass(frozen=True)
class Limits:
    """What an endpoint is asked at most."""

    timeout: float
    """Seconds until a verdict must be there, pauses and tries included."""
    retries: int
    concurrency: int
    """Requests in flight at one time, in one process."""
    per_minute: int | None
    budget: Budget


class Session:
    """A connection for the questions of one call."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self._endpoint, self._client = endpoint, client
        self.room = asyncio.Semaphore(endpoint.limits.concurrency)
        """Who asks holds it, for as long as it asks."""

    async def ask(self, messages: Messages, deadline: float) -> Answer:
        """The answer, from the ledger where it was given before; `deadline` is one of the monotonic clock. Raises
        UnavailableError or RefusedError.
        """
        body = {"model": self._endpoint.model, "messages": list(messages), **self._endpoint.sampling}
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        kept = self._endpoint.ledger.find(key)
        return kept or self._endpoint.ledger.keep(key, await self._persist(body, deadline))

    async def _persist(self, body: Mapping[str, Any], deadline: float) -> Answer:
        """Ask until there is an answer, the tries are spent, or the deadline would pass."""
        retries = self._endpoint.limits.retries
        for attempt in range(1 + retries):
            try:
                return await self._once(body, deadline)
            except _LaterError as later:
                pause = FIRST_PAUSE * 2**attempt if later.pause is None else later.pause
                if attempt == retries:
                    raise UnavailableError(f"{later} ({attempt + 1} tries)") from None
                if time.monotonic() + pause >= deadline:
                    raise UnavailableError(f"{later}; another try in {pause:.3g} s would be too late") from None
                await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _once(self, body: Mapping[str, Any], deadline: float) -> Answer:
        """One request: its slot, what it may take set aside, and what it took put down."""
        ledger, account, limits = self._endpoint.ledger, self._endpoint.account, self._endpoint.limits
        read = sum(OVERHEAD + len(m["content"].encode("utf-8", "surrogatepass")) for m in body["messages"])
        most = Usage(1, read, self._endpoint.max_tokens)
        if against := ledger.reserve(account, most, limits.budget):
            raise UnavailableError(against)
        taken = Usage()
        try:
            await self._slot(deadline)
            # From here on the server may have worked for it, whatever comes back.
            taken = most
            answer, taken = await self._post(body, deadline, most)
            return answer
        except _LaterError as later:
            taken = most if later.charged else Usage()
            raise
        except RefusedError:
            taken = Usage()
            raise
        finally:
            ledger.settle(account, most, taken)

    async def _slot(self, deadline: float) -> None:
        limits = self._endpoint.limits
        if limits.per_minute is None:
            return
        now, left = time.time(), deadline - time.monotonic()
        at = self._endpoint.ledger.slot(self._endpoint.account, limits.per_minute, now, now + left)
        if at is None:
            raise UnavailableError(f"requests_per_minute: none of {limits.per_minute} is free within {left:.3g} s")
        await asyncio.sleep(at - now)

    async def _post(self, body: Mapping[str, Any], deadline: float, most: Usage) -> tuple[Answer, Usage]:
        import httpx

        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                response = await self._client.post(self._endpoint.url, content=json.dumps(body))
        except TimeoutError:
            raise UnavailableError(f"no answer within {self._endpoint.limits.timeout:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _LaterError(f"no connection: {error or type(error).__name__}", charged=False) from None
        except httpx.TransportError as error:
            raise _LaterError(f"the connection broke: {type(error).__name__}: {error}") from None
        if response.status_code >= 500 or response.status_code in PASSING:
            pause = _retry_after(response.headers.get("retry-after"))
            raise _LaterError(f"status {response.status_code}", pause, charged=False)
        if response.status_code != 200:
            raise RefusedError(f"status {response.status_code}: {response.text[:200]}")
        try:
            return _read(response.json(), most)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise _LaterError(f"an answer that is no chat completion ({type(error).__name__}: {error!s:.80})") from None


class Endpoint:
    """Where a model answers, under which limits. Opens its ledger when it is first asked."""

    def __init__(self, url: str, model: str, sampling: Mapping[str, Any], limits: Limits, ledger: Ledger) -> None:
        self.url, self.model, self.sampling = f"{url.rstrip('/')}/chat/completions", model, sampling
        self.limits, self.ledger = limits, ledger
        self.account = f"{url.rstrip('/')} {model}"
        self.max_tokens = int(sampling.get("max_tokens") or sampling.get("max_completion_tokens") or 0)

    @asynccontextmanager
    async def session(self, api_key: str | None) -> AsyncIterator[Session]:
        import httpx

        # A redirect would carry the key elsewhere. Time is limited as a whole, not for each read.
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        limits = httpx.Limits(max_connections=self.limits.concurrency)
        async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits, follow_redirects=False) as client:
            yield Session(self, client)


class _LaterError(Exception):
    """Not now: another try may do. `pause`: seconds the server asked for; `charged`: it may have worked for nothing."""

    def __init__(self, reason: str, pause: float | None = None, charged: bool = True) -> None:
        super().__init__(reason)
        self.pause, self.charged = pause, charged


def api_key(variable: str | None) -> str | None:
    """What an environment variable holds. Raises ValueError where it is not set."""
    if variable is None:
        return None
    if not (value := os.environ.get(variable)):
        raise ValueError(f"api_key_env: the environment has no {variable}; set it where the run is started")
    return value


def _read(reply: Any, most: Usage) -> tuple[Answer, Usage]:
    """The first choice, and what it took; all that was set aside where the server does not say."""
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise TypeError("its content is no text")
    prompt, said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    taken = Usage(1, most.prompt if prompt is None else int(prompt), most.answer if said is None else int(said))
    # Half a surrogate pair can be said in JSON, and kept nowhere.
    text = text.encode("utf-8", "replace").decode()
    return Answer(text, str(choice.get("finish_reason") or "")), taken


def _retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where it does not."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
