"""Without its token nothing passes the proxy, whatever the route; with it everything does, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from posttrain.errors import PosttrainError
from posttrain.rollout.server.bucket import MEMORY, PREFIX
from posttrain.rollout.server.proxy import listen, require_token
from posttrain.rollout.server.replica import BUCKETS, Address

TOKEN = "a-token-of-nobodys"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class Upstream:
    """Writes down what reaches it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.next, self.left = asyncio.Event(), asyncio.Event()

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/slow", self._slow)
        app.router.add_post("/echo", self._echo)
        app.router.add_route("*", "/{path:.*}", self._any)
        return app

    async def _any(self, request: web.Request) -> web.Response:
        self.seen.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return web.json_response({"ok": True}, headers={"X-Own": "yes"})

    async def _slow(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        try:
            await self.next.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        await response.write(b"second")
        return response

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece.upper())
        return response


Scene = Callable[[Upstream, aiohttp.ClientSession, str], Awaitable[None]]


def through_the_proxy(folder: Path, scene: Scene) -> None:
    """Play a scene with an upstream on a socket file, a proxy before it on a port, and a client."""

    async def play() -> None:
        upstream = Upstream()
        runner = web.AppRunner(upstream.application(), handler_cancellation=True)
        await runner.setup()
        await web.UnixSite(runner, str(folder / "up.sock")).start()
        door = await listen(Address(f"unix:{folder / 'up.sock'}"), TOKEN, "127.0.0.1", 0)
        port = door.addresses[0][1]
        try:
            async with aiohttp.ClientSession() as client:
                await scene(upstream, client, f"http://127.0.0.1:{port}")
        finally:
            await door.cleanup()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(play(), 60))


def vllm_routes() -> list[tuple[str, str]]:
    """(method, path) of every route of vLLM's own application, development mode and documentation included."""
    import vllm.envs
    from fastapi.routing import APIRoute
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    assert vllm.envs.VLLM_SERVER_DEV_MODE
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--enable-scale-out"])
    found = set()
    for route in build_app(args, ("generate",)).routes:
        path = getattr(route, "path", "")
        for method in getattr(route, "methods", None) or ["GET", "POST"]:
            found.add((method, path.replace("{", "").replace("}", "").replace(":path", "")))
        assert path or isinstance(route, APIRoute)
    return sorted(found)


@pytest.mark.vllm
def test_every_route_of_vllm_answers_401_without_the_token_and_passes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    routes = vllm_routes()
    paths = {path for _, path in routes}
    assert {"/inference/v1/generate", "/collective_rpc", "/update_weights", "/pause", "/sleep", "/metrics"} <= paths
    assert {"/health", "/openapi.json", "/server_info", "/v1/models", "/reset_prefix_cache", "/abort_requests"} <= paths
    assert len(routes) > 50

    async def scene(upstream: Upstream, client: aiohttp.ClientSession, url: str) -> None:
        for method, path in routes:
            async with client.request(method, url + path, json={"method": "exit"}) as answer:
                assert answer.status == 401, (method, path)
        assert upstream.seen == []
        for method, path in routes:
            async with client.request(method, url + path, headers=HEADERS) as answer:
                assert answer.status == 200, (method, path)
        assert [(method, path) for method, path, _, _ in upstream.seen] == routes

    through_the_proxy(tmp_path, scene)


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"],
)
def test_whatever_is_not_the_token_is_refused_on_any_method(tmp_path: Path, given: str | None) -> None:
    async def scene(upstream: Upstream, client: aiohttp.ClientSession, url: str) -> None:
        headers = {} if given is None else {"Authorization": given}
        for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
            for path in ("/", "/health", "/v1/models", "//health", "/%2e%2e/pause", BUCKETS, f"{BUCKETS}/x"):
                async with client.request(method, url + path, headers=headers, data=b"x" * 100) as answer:
                    assert answer.status == 401
        ask = client.ws_connect(f"{url}/v1/realtime", headers=headers)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await ask
        assert upstream.seen == []

    before = set(MEMORY.glob(f"{PREFIX}*"))
    through_the_proxy(tmp_path, scene)
    assert set(MEMORY.glob(f"{PREFIX}*")) <= before


def test_path_query_body_and_headers_pass_unchanged_and_the_token_does_not(tmp_path: Path) -> None:
    async def scene(upstream: Upstream, client: aiohttp.ClientSession, url: str) -> None:
        from yarl import URL

        path = "/a%2Fb//c;d/%C3%A9?q=1%202&q=%26"
        body = bytes(range(256)) * 1000
        headers = {**HEADERS, "X-Mine": "1", "authorization-info": "kept"}
        async with client.put(URL(url + path, encoded=True), headers=headers, data=body) as answer:
            assert answer.status == 200
            assert answer.headers["X-Own"] == "yes"
            assert await answer.json() == {"ok": True}
        ((method, raw, seen, content),) = upstream.seen
        assert (method, raw, content) == ("PUT", path, body)
        assert seen["X-Mine"] == "1"
        assert seen["authorization-info"] == "kept"
        assert "Authorization" not in seen

    through_the_proxy(tmp_path, scene)


def test_bodies_stream_in_both_directions_before_their_ends(tmp_path: Path) -> None:
    async def scene(upstream: Upstream, client: aiohttp.ClientSession, url: str) -> None:
        async with client.get(f"{url}/slow", headers=HEADERS) as answer:
            assert await answer.content.readany() == b"first"
            upstream.next.set()
            assert await answer.content.read() == b"second"
        heard = asyncio.Event()

        async def words():  # type: ignore[no-untyped-def]
            yield b"one"
            await heard.wait()
            yield b"two"

        async with client.post(f"{url}/echo", headers=HEADERS, data=words()) as answer:
            assert await answer.content.readany() == b"ONE"
            heard.set()
            assert await answer.content.read() == b"TWO"

    through_the_proxy(tmp_path, scene)


def test_a_client_who_leaves_ends_his_request_at_the_server(tmp_path: Path) -> None:
    async def scene(upstream: Upstream, client: aiohttp.ClientSession, url: str) -> None:
        async with client.get(f"{url}/slow", headers=HEADERS) as answer:
            assert await answer.content.readany() == b"first"
        answer.close()
        await client.close()
        await asyncio.wait_for(upstream.left.wait(), 10)

    through_the_proxy(tmp_path, scene)


def test_buckets_of_weights_are_kept_for_a_trainer_elsewhere_and_forgotten_at_the_end(tmp_path: Path) -> None:
    kept: list[Path] = []

    async def scene(upstream: Upstream, client: aiohttp.ClientSession, url: str) -> None:
        body = bytes(range(256)) * 20_000
        for _ in range(2):
            async with client.post(url + BUCKETS, headers=HEADERS, data=body) as answer:
                kept.append(Path((await answer.json())["path"]))
        assert [file.read_bytes() for file in kept] == [body, body]
        for status in (200, 404):
            async with client.delete(f"{url}{BUCKETS}/{kept[0].name}", headers=HEADERS) as answer:
                assert answer.status == status
        assert [file.exists() for file in kept] == [False, True]
        assert upstream.seen == []

    through_the_proxy(tmp_path, scene)
    assert not kept[1].exists()


def test_a_server_that_is_gone_is_a_502(tmp_path: Path) -> None:
    async def play() -> None:
        door = await listen(Address(f"unix:{tmp_path / 'nothing.sock'}"), TOKEN, "127.0.0.1", 0)
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{door.addresses[0][1]}/health", headers=HEADERS) as answer,
        ):
            assert answer.status == 502
        port = door.addresses[0][1]
        with pytest.raises(PosttrainError, match=f"127.0.0.1:{port} cannot be bound"):
            await listen(Address("http://127.0.0.1:1"), TOKEN, "127.0.0.1", port)
        await door.cleanup()

    asyncio.run(play())


@pytest.mark.parametrize("token", [None, "", "short", "has spaces in it, many", "tab\tand fifteen more"])
def test_no_door_is_opened_without_a_token_worth_the_name(token: str | None) -> None:
    with pytest.raises(PosttrainError, match=r"0\.0\.0\.0 .* open to other machines; set POSTTRAIN_TOKEN"):
        asyncio.run(listen(Address("http://127.0.0.1:1"), token, "0.0.0.0", 0))
    with pytest.raises(PosttrainError, match="POSTTRAIN_TOKEN"):
        require_token("127.0.0.1", token)
    assert require_token("0.0.0.0", TOKEN) == TOKEN
