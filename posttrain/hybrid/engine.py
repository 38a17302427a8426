"""One pool of devices, two phases. The only place that knows both the learner and the sampler."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from torch import Tensor

from posttrain.errors import SyncError
from posttrain.hybrid.publishing import Gathered, Publishing
from posttrain.learner import Learner
from posttrain.metrics import Report
from posttrain.metrics.timing import handed_over
from posttrain.rollout import Sampler
from posttrain.world import note_phase


class Hybrid:
    """Publishing weights, sleeping and waking happen at the border between the phases, never inside a loop."""

    def __init__(self, learner: Learner, sampler: Sampler, publishing: Publishing | None = None) -> None:
        self.learner, self.sampler = learner, sampler
        self.publishing = publishing or Gathered()
        self._report = Report()
        self._leaving = False
        if hasattr(sampler, "republish"):
            # Engines apart may be lost and start again: they are given the same weights once more.
            sampler.republish = self._again

    def _again(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """The weights of a version that was published. Raises SyncError for one that is no longer there."""
        if self._leaving or version != self.learner.version:
            raise SyncError(
                f"an engine was lost that held weights {version}, but the learner has {self.learner.version}, or is "
                "leaving them; run the same command again to go on from the newest checkpoint"
            )
        return self.learner.weights()

    @contextlib.contextmanager
    def generating(self) -> Iterator[Sampler]:
        """A sampler that holds the learner's present weights, all of them."""
        note_phase("publishing weights")
        self._switch(self.sampler.wake)
        if self.sampler.version != self.learner.version:
            self._report += self.publishing.publish(self.learner, self.sampler)
        note_phase("generating and grading")
        yield self.sampler

    @contextlib.contextmanager
    def playing(self, weights: Iterator[tuple[str, Tensor]], version: int) -> Iterator[Sampler]:
        """A sampler that holds another policy's weights, named by a version that no policy of the learner has; the next
        `generating` publishes the learner's again.
        """
        self._switch(self.sampler.wake)
        if self.sampler.version != version:
            started = time.perf_counter()
            self.sampler.load(weights, version)
            self._report += Report.sum("sync/seconds", time.perf_counter() - started)
        yield self.sampler

    @contextlib.contextmanager
    def training(self) -> Iterator[Learner]:
        """The learner, with what the sampler can spare given back to it."""
        self._switch(self.sampler.sleep)
        note_phase("learning")
        yield self.learner

    @contextlib.contextmanager
    def both(self) -> Iterator[tuple[Sampler, Learner]]:
        """A sampler that holds the learner's present weights and keeps them, and the learner, which may leave them."""
        with self.generating() as sampler:
            self._leaving = True
            try:
                yield sampler, self.learner
            finally:
                self._leaving = False

    def _switch(self, change: Callable[[], None]) -> None:
        started = time.perf_counter()
        change()
        self._report += Report.sum("sync/switch_seconds", time.perf_counter() - started)

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """What publishing, waking and sleeping take in here is also noted as `phase/sync_seconds`: it is counted in the
        seconds of that phase, and would count twice.
        """
        before = handed_over(self._report)
        yield
        self._report += Report.sum(f"{phase}/sync_seconds", handed_over(self._report) - before)

    def take_report(self) -> Report:
        """What publishing cost since this was last asked."""
        report, self._report = self._report, Report()
        if hasattr(self.sampler, "take_report"):
            report += self.sampler.take_report()
        return report
