"""Handing a complete set of weights to servers, bucket by bucket, by vLLM's own protocol: start, update, finish."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain.errors import SyncError
from posttrain.rollout.intake import Intake
from posttrain.rollout.server.background import Background
from posttrain.rollout.server.bucket import Bucket
from posttrain.rollout.server.replica import GoneError, RefusedError, Replica

STEP = 600.0
"""Seconds a server may take for one bucket."""


class Publication:
    """One version on its way to some servers. What fails leaves every one of them without a version."""

    def __init__(self, replicas: Sequence[Replica], background: Background, version: int) -> None:
        self.replicas, self.background, self.version = list(replicas), background, version
        self.native = [r for r in self.replicas if r.native]
        for replica in self.replicas:
            replica.version = None

    def publish(
        self, weights: Iterator[tuple[str, Tensor]], expected: Mapping[str, tuple[int, ...]], size: int
    ) -> None:
        """Buckets of `size` bytes, at most two at a time. Raises SyncError for an incomplete set, GoneError for a lost
        server; whatever is raised, servers that remain are told to forget what they have received.
        """
        stream = Intake(expected)(weights)
        try:
            if len(self.native) < len(self.replicas):
                stream = self._by_folder(stream)
            if self.native:
                self._by_memory(stream, size)
            else:
                for _ in stream:
                    pass
            self.background.run(self._settle())
        except BaseException as error:
            why = repr(error)
            with contextlib.suppress(Exception):
                self.background.run(self._each(lambda r: self._abandon(r, why), self.native))
            raise
        for replica in self.replicas:
            replica.version = self.version

    def _by_memory(self, stream: Iterator[tuple[str, Tensor]], size: int) -> None:
        self.background.run(self._each(self._begin, self.native))
        sending: concurrent.futures.Future[None] | None = None
        filled: Bucket | None = None
        bucket = Bucket(size)
        try:
            for name, tensor in stream:
                if not bucket.takes(tensor):
                    if sending is not None and filled is not None:
                        sending.result()
                        filled.close()
                    filled, sending = bucket, self._send(bucket, last=False)
                    bucket = Bucket(size)
                bucket.put(name, tensor)
            if sending is not None:
                sending.result()
            self._send(bucket, last=True).result()
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
            for rest in (filled, bucket):
                if rest is not None:
                    rest.close()

    def _send(self, bucket: Bucket, last: bool) -> concurrent.futures.Future[None]:
        """Servers load it while the next one is filled."""

        async def one(replica: Replica) -> None:
            async def update(index: dict[str, Any]) -> None:
                await replica.ask("POST", "/update_weights", {"update_info": {**index, "last": last}}, STEP)

            await replica.lend(bucket, update)

        return self.background.submit(self._each(one, self.native))

    def _by_folder(self, stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass on, and write down for servers that only read checkpoints."""
        from safetensors.torch import save_file

        kept: dict[str, Tensor] = {}
        for name, tensor in stream:
            # A tied head is the embedding under a second name, and each name needs memory of its own in the file.
            kept[name] = tensor.detach().cpu().clone()
            yield name, tensor
        folder = Path(tempfile.mkdtemp(prefix="posttrain-weights-"))
        try:
            save_file(kept, folder / "model.safetensors")
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            plain = [r for r in self.replicas if not r.native]
            self.background.run(self._each(lambda r: r.ask("POST", "/collective_rpc", body, STEP), plain))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _begin(self, replica: Replica) -> None:
        try:
            await replica.ask("POST", "/start_weight_update", {}, STEP)
        except RefusedError as error:
            # An update that was never ended, by us or another run.
            if "already active" not in str(error):
                raise
            await self._abandon(replica, "a new update begins")
            await replica.ask("POST", "/start_weight_update", {}, STEP)

    async def _abandon(self, replica: Replica, why: str) -> None:
        with contextlib.suppress(GoneError, RefusedError):
            await replica.ask("POST", "/update_weights", {"update_info": {"abandon": why[:500]}}, STEP)

    async def _settle(self) -> None:
        """Give the version to every server, and ask whether it has it."""
        name = str(self.version)

        async def one(replica: Replica) -> None:
            if replica.native:
                await replica.ask("POST", "/finish_weight_update", {"weight_version": name}, STEP)
            else:
                await replica.ask("POST", "/update_weight_version", {"new_version": name}, STEP)
            has = (await replica.ask("GET", "/weight_info", seconds=STEP))["weight_version"]
            if has != name:
                raise SyncError(f"{replica.url} says it holds weights {has!r} after {name!r} were published to it")

        await self._each(one, self.replicas)

    async def _each(self, work: Any, replicas: Sequence[Replica]) -> None:
        """On all at the same time, each to its end. A lost server is remembered; the first failure is raised."""

        async def guarded(replica: Replica) -> None:
            try:
                await work(replica)
            except GoneError as gone:
                replica.lost = str(gone)
                raise
            except RefusedError as refused:
                # A dead engine answers, too.
                if refused.status >= 500 and not await replica.healthy():
                    replica.lost = str(refused)
                    raise GoneError(str(refused)) from None
                raise SyncError(f"weights were refused: {refused}") from None

        done = await asyncio.gather(*(guarded(r) for r in replicas), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
