"""The Sampler on vLLM servers: a response is the same whichever server draws it, and however often it is asked for."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from posttrain.errors import ModelError, SyncError
from posttrain.metrics import Report
from posttrain.models.checkpoint import expected_weights, stop_tokens
from posttrain.rollout import Request
from posttrain.rollout.intake import refusal
from posttrain.rollout.server import EngineLostError, ServerOptions
from posttrain.rollout.server.answer import Reader, body
from posttrain.rollout.server.background import Background
from posttrain.rollout.server.bucket import sweep
from posttrain.rollout.server.dispatch import Dispatch, NobodyError
from posttrain.rollout.server.handshake import Wanted, meet
from posttrain.rollout.server.kept import Kept
from posttrain.rollout.server.launch import Server
from posttrain.rollout.server.publication import Publication
from posttrain.rollout.server.replica import Address, GoneError, Replica
from posttrain.rollout.vllm import EngineOptions
from posttrain.types import Rollout, Sampling


class ServerSampler:
    """Implements `Sampler` over one or many servers of one set of weights.

    A server that dies is started again, at most `restarts` times in a run, and takes no request before a full sync.
    Weights come to it from the copy that is kept (`keep`), or from `republish`, which is asked for a version's weights;
    with neither EngineLostError says which responses had arrived.
    """

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, engine: EngineOptions, options: ServerOptions
    ) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.version: int | None = None
        self.republish: Callable[[int], Iterator[tuple[str, Tensor]]] | None = None
        self._kept: Kept | None = None
        self.restarts = 0
        # A server by address may have served another run, whose versions have the same numbers.
        self.name = secrets.token_hex(8)
        self.expected = expected_weights(folder, engine.trust_remote_code)
        self.stops = tuple(sorted({*stop_tokens(folder, tokenizer), *engine.stops}))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=engine.trust_remote_code).get_text_config()
        self.wanted = Wanted(self.expected, config.vocab_size, engine.dtype, engine.max_length)
        self.asleep = False
        self._report = Report()
        self._owner = os.getpid()
        self.replicas = [Replica(Address(url, options.token)) for url in options.urls] or [
            Replica(Address(server.url), server)
            for server in (Server(folder, engine, f"server-{i}", options) for i in range(options.replicas))
        ]
        self.background = Background()
        atexit.register(self.close)
        sweep()
        try:
            for replica in self.replicas:
                if replica.server is not None:
                    replica.server.start()
            self.background.run(self._meet(self.replicas))
        except BaseException:
            self.close()
            raise

    async def _meet(self, replicas: Sequence[Replica]) -> None:
        """Wait until all are up, and refuse those that are not what they should be."""

        async def one(replica: Replica) -> None:
            if replica.server is not None:
                await replica.ready(self.options.start_timeout)
            await meet(replica, self.wanted, self.options.reach_timeout)
            replica.lost = None

        tasks = [asyncio.create_task(one(replica)) for replica in replicas]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Raises EngineLostError where no server is left and `republish` is not set."""
        refusal(self.version)
        assert self.version is not None
        reader = Reader(self.tokenizer, sampling, self.version)
        finished: dict[int, Rollout] = {}
        while len(finished) < len(requests):
            missing = [i for i in range(len(requests)) if i not in finished]
            try:
                self.background.run(self._draw(requests, missing, reader, finished))
            except NobodyError:
                self._recover(reader.version, finished)
        return [finished[i] for i in range(len(requests))]

    async def _draw(
        self, requests: Sequence[Request], missing: Sequence[int], reader: Reader, finished: dict[int, Rollout]
    ) -> None:
        """Fill `finished`. A request whose server is lost goes to another; raises NobodyError when none is left."""
        able = [r for r in self.replicas if r.lost is None and r.version == reader.version]
        dispatch = Dispatch(able)

        async def one(i: int) -> None:
            asked = body(requests[i], reader.sampling, self.stops, f"{self.name}/{reader.version}")
            while True:
                replica = await dispatch.take()
                try:
                    answer = await replica.generate(asked, self.options.answer_timeout)
                    finished[i] = reader.rollout(requests[i], answer)
                    return
                except GoneError as gone:
                    await dispatch.close(replica)
                    self._lose(replica, str(gone))
                finally:
                    await dispatch.give(replica)

        tasks = [asyncio.create_task(one(i)) for i in missing]
        try:
            done = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
        # An error of substance before the news that nobody is left.
        for outcome in sorted((o for o in done if o is not None), key=lambda o: isinstance(o, NobodyError)):
            raise outcome

    def _lose(self, replica: Replica, why: str) -> None:
        """A server is lost: it holds no weights, and one of ours starts again at once, beside those that go on."""
        if replica.lost is not None:
            return
        replica.lost, replica.version = why, None
        self._report += Report.sum("engine/lost", 1)
        if replica.server is None:
            return
        # A connection breaks a moment before the process can be seen to have ended.
        replica.lost = replica.server.ended(patience=0.5) or why
        if self.restarts < self.options.restarts:
            self.restarts += 1
            self._report += Report.sum("engine/restarts", 1)
            replica.server.start()
        else:
            replica.server.kill()

    def _revive(self, finished: dict[int, Rollout] | None = None) -> list[Replica]:
        """The servers there are, those that were lost met again. Raises EngineLostError when there is none."""
        lost = [r for r in self.replicas if r.lost is not None]
        gone = []
        for replica in lost:
            while replica.lost is not None:
                try:
                    if replica.server is not None and replica.server.process is None:
                        raise ModelError(f"{replica.lost} (restarts: {self.options.restarts} were used)")
                    self.background.run(self._meet([replica]))
                except ModelError as error:
                    if not self._killed_again(replica):
                        gone.append(str(error))
                        break
        present = [r for r in self.replicas if r.lost is None]
        if not present:
            self.version = None
            raise EngineLostError("servers: every engine is lost:\n" + "\n".join(gone), finished)
        return present

    def _killed_again(self, replica: Replica) -> bool:
        """Whether a server of ours was killed while it started, and starts once more: one that fails by itself would
        fail again.
        """
        if replica.server is None or not replica.server.killed(patience=0.5):
            return False
        replica.lost = None
        self._lose(replica, "killed while it started")
        return replica.server.process is not None

    def _recover(self, version: int, finished: dict[int, Rollout]) -> None:
        """Bring the weights that were published back to servers that can be had."""
        self.version = None
        # Whether anybody has them is known before a new engine is waited for.
        given = [self._again(version, finished)]
        self._publish(lambda: given.pop() if given else self._again(version, finished), version, finished)

    def _again(self, version: int, finished: dict[int, Rollout]) -> Iterator[tuple[str, Tensor]]:
        """The weights of a version that were given before. Raises EngineLostError where nobody has them."""
        if self._kept is not None:
            return iter(self._kept)
        if self.republish is not None:
            return self.republish(version)
        lost = "; ".join(f"{r.url}: {r.lost}" for r in self.replicas if r.lost)
        raise EngineLostError(
            f"servers: engines were lost ({lost or 'and started again'}), none holds weights {version}; load them "
            "again and draw the rest",
            finished,
        )

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = Kept(weights) if self.options.keep else None
        given = [weights if self._kept is None else iter(self._kept)]
        self._publish(lambda: given.pop() if given else self._again(version, {}), version, {})

    def _publish(
        self, source: Callable[[], Iterator[tuple[str, Tensor]]], version: int, finished: dict[int, Rollout]
    ) -> None:
        """To every server there is; once more from the start where one is lost on the way."""
        self.version = None
        if self.asleep:
            raise SyncError("the engines are asleep; wake them before weights are published")
        # Each round loses a server; one that is not ours and comes back each time must not make this last for ever.
        for _ in range(self.options.restarts + len(self.replicas) + 1):
            present = self._revive(finished)
            try:
                Publication(present, self.background, version).publish(source(), self.expected, self.options.bucket)
            except GoneError:
                for replica in present:
                    if replica.lost is not None:
                        why, replica.lost = replica.lost, None
                        self._lose(replica, why)
            else:
                self.version = version
                return
        raise EngineLostError(f"servers: an engine was lost at every attempt to publish weights {version}", finished)

    def sleep(self) -> None:
        """Free weights and cache of servers that share a GPU with training; others have nothing to give back."""
        if self.options.sleeps and not self.asleep:
            self.version, self.asleep = None, True
            self._ask_all("/sleep?level=2")

    def wake(self) -> None:
        if self.asleep:
            self._ask_all("/wake_up")
            self.asleep = False

    def _ask_all(self, path: str) -> None:
        """One that is lost is not asked, and starts again awake."""
        present = [r for r in self.replicas if r.lost is None]

        async def ask() -> list[Any]:
            asked = (r.ask("POST", path, {}, self.options.start_timeout) for r in present)
            return await asyncio.gather(*asked, return_exceptions=True)

        for replica, answer in zip(present, self.background.run(ask()), strict=True):
            if isinstance(answer, GoneError):
                self._lose(replica, str(answer))
            elif isinstance(answer, BaseException):
                raise answer

    def take_report(self) -> Report:
        """Servers lost and started again since this was last asked."""
        report, self._report = self._report, Report()
        return report

    def close(self) -> None:
        """End what was started. Safe to call twice, and in a forked child, where it does nothing."""
        if os.getpid() != self._owner:
            return
        self._owner = -1
        atexit.unregister(self.close)
        self.version = None
        if self._kept is not None:
            self._kept.close()

        async def leave() -> None:
            for replica in self.replicas:
                await replica.close()

        self.background.run(leave())
        self.background.close()
        for replica in self.replicas:
            if replica.server is not None:
                replica.server.close()
