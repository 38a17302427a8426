"""The only door to other machines: a reverse proxy that answers 401 to whatever comes without its token.

vLLM's own key guards four prefixes of its routes; those that pause, run code in workers or replace weights are not
among them. Here nothing of a request without the token reaches the server, not even its body. The token travels in
clear: put TLS before it where the network is not trusted.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web
from yarl import URL

from posttrain.errors import PosttrainError
from posttrain.rollout.server.bucket import Bucket
from posttrain.rollout.server.replica import BUCKETS, Address

LEAST = 16
"""Characters of a token."""

HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
    ]
)
"""Headers that belong to one connection and are not passed on."""

KEPT: web.AppKey[dict[str, Bucket]] = web.AppKey("kept", dict)
SESSION: web.AppKey[aiohttp.ClientSession] = web.AppKey("session", aiohttp.ClientSession)


def require_token(host: str, token: str | None) -> str:
    """The token. Raises PosttrainError where there is none worth the name: an open server runs whatever it is sent."""
    if token and len(token) >= LEAST and token.isascii() and token.isprintable() and " " not in token:
        return token
    what = "has no token" if not token else f"has a token of {len(token)} characters"
    if not _loopback(host):
        what += " and would be open to other machines"
    raise PosttrainError(
        f"server: {host} {what}; set POSTTRAIN_TOKEN to at least {LEAST} printable characters without spaces"
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def application(upstream: Address, token: str) -> web.Application:
    """A proxy before `upstream` for whoever shows `token`."""
    known = hashlib.sha256(token.encode()).digest()

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # Of hashes, so that neither content nor length tells anything by the time it takes.
        same = hmac.compare_digest(hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest(), known)
        if scheme.lower() != "bearer" or not same:
            return web.json_response(
                {"error": "a bearer token is needed"}, status=401, headers={"WWW-Authenticate": "Bearer"}
            )
        return await handler(request)

    async def forward(request: web.Request) -> web.StreamResponse:
        return await _forward(request, upstream)

    async def session(app: web.Application):  # type: ignore[no-untyped-def]
        async with aiohttp.ClientSession(
            connector=upstream.connector(), auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        ) as app[SESSION]:
            yield

    app = web.Application(middlewares=[guard])
    app.cleanup_ctx.append(session)
    app[KEPT] = {}
    app.on_cleanup.append(_forget)
    app.router.add_post(BUCKETS, _keep)
    app.router.add_delete(f"{BUCKETS}/{{name}}", _drop)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


async def _forward(request: web.Request, upstream: Address) -> web.StreamResponse:
    """Pass request and answer through as they come, bodies included, in both directions as they arrive."""
    if request.headers.get("Upgrade"):
        return web.json_response({"error": "no upgrades through this proxy"}, status=501)
    # The path as it was sent: decoding and encoding it again could name another route than the one that is asked for.
    if not request.raw_path.startswith("/"):
        return web.json_response({"error": "a path is needed"}, status=400)
    own = [name.strip().lower() for name in request.headers.get("Connection", "").split(",")]
    headers = [
        (name, value)
        for name, value in request.headers.items()
        if name.lower() not in HOP and name.lower() != "authorization" and name.lower() not in own
    ]
    if upstream.token:
        headers.append(("Authorization", f"Bearer {upstream.token}"))
    try:
        answer = await request.app[SESSION].request(
            request.method,
            URL(upstream.base + request.raw_path, encoded=True),
            headers=headers,
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
        )
    except (aiohttp.ClientError, OSError) as error:
        return web.json_response({"error": f"the server does not answer: {type(error).__name__}"}, status=502)
    async with answer:
        passed = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP]
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=passed)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


async def _keep(request: web.Request) -> web.Response:
    """Put a bucket into this machine's shared memory, for a trainer on another one."""
    bucket = Bucket(0)
    try:
        async for piece in request.content.iter_chunked(2**20):
            bucket.write(piece)
    except BaseException as error:
        bucket.close()
        if isinstance(error, PosttrainError):
            return web.json_response({"error": str(error)}, status=507)
        raise
    request.app[KEPT][bucket.path.name] = bucket
    return web.json_response({"path": str(bucket.path)})


async def _drop(request: web.Request) -> web.Response:
    bucket = request.app[KEPT].pop(request.match_info["name"], None)
    if bucket is None:
        return web.json_response({"error": "there is no such bucket"}, status=404)
    bucket.close()
    return web.json_response({})


async def _forget(app: web.Application) -> None:
    while app[KEPT]:
        app[KEPT].popitem()[1].close()


async def listen(upstream: Address, token: str | None, host: str, port: int) -> web.AppRunner:
    """Serve until the runner is cleaned up. A caller who leaves ends his request at the server, too.

    Raises PosttrainError without a token, and for a port that cannot be had.
    """
    app = application(upstream, require_token(host, token))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise PosttrainError(
            f"server: {host}:{port} cannot be bound ({error.strerror}); choose another --port"
        ) from None
    return runner
