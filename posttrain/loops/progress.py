"""What every loop does at the border of a step: measure, write down, keep a checkpoint, and go on from one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from posttrain.errors import StoppedError
from posttrain.learner import Learner
from posttrain.learner.checkpoint import restore, write_checkpoint
from posttrain.loops.learning import Learnt
from posttrain.metrics import Report, RunFolder
from posttrain.metrics.records import record
from posttrain.metrics.sinks import Sink
from posttrain.metrics.timing import handed_over
from posttrain.recipe import Run
from posttrain.types import Group
from posttrain.world import ALONE, World


class Keeper(Protocol):
    """Something that goes on from where it was."""

    def state(self) -> dict[str, Any]:
        """The position, ready for JSON."""

    def restore(self, state: dict[str, Any]) -> None: ...


Measure = Callable[[], tuple[Report, Sequence[Group]]]
"""A measurement of the present weights: figures, and the groups behind them (none where they are the data's own)."""


@dataclass
class Progress:
    """A run between its steps."""

    folder: RunFolder
    sinks: Sequence[Sink]
    run: Run
    learner: Learner
    keepers: Mapping[str, Keeper]
    measures: Sequence[Measure] = ()
    drain: Callable[[], Report] = field(default=Report)
    """What else happened since the last step, as publishing weights."""
    keep: Callable[[int, Sequence[Group]], None] = lambda step, groups: None
    """What becomes of the responses to held-out prompts beside the roll-outs: they are written down as results."""
    told_to_stop: Callable[[], bool] = lambda: False
    world: World = ALONE
    """Who takes part: all measure and save together, and the first rank writes."""
    between: Report = field(default_factory=Report, init=False)
    """What writing and saving took since the last step was written down."""
    waited: float = field(default=0.0, init=False)
    """How long this rank had waited for others when the last step ended."""

    def resume(self) -> int:
        """Restore the newest complete checkpoint and drop what was written after it; the step to go on from."""
        step = self.world.shared(self._rewound)
        if step < 0:
            return 0
        state = restore(self.folder.checkpoint_path(step), self.learner, self.world)
        self.between = sum((Report.sum(*each) for each in self.folder.read_after(step).items()), Report())
        for name, keeper in self.keepers.items():
            keeper.restore(state.get(name, {}))
        return step

    def _rewound(self) -> int:
        """The newest complete checkpoint's step, everything later forgotten; -1 where there is none."""
        found = self.folder.checkpoints()
        step = found[-1] if found else -1
        self.folder.truncate_after(step)
        return step

    def begin(self) -> int:
        """Resume, or measure and write down what there is before the first step; the step to go on from."""
        step = self.resume()
        if step == 0:
            self.finish(0, Report(), [], Learnt(), time.perf_counter())
        return step

    def finish(self, step: int, report: Report, groups: Sequence[Group], learnt: Learnt, started: float) -> None:
        """Measure and save where due, and write the step down: roll-outs, then metrics, then the checkpoint."""
        run, last = self.run, step == self.run.steps
        if step == 0 or last or (run.evaluate_every and step % run.evaluate_every == 0):
            report += self.drain()
            at = time.perf_counter()
            seen: list[Group] = []
            for measure in self.measures:
                about, measured = measure()
                report, seen = report + about, [*seen, *measured]
            inside = self.drain()
            if self.measures:
                report += Report.sum("eval/seconds", time.perf_counter() - at)
                report += Report.sum("eval/sync_seconds", handed_over(inside))
            report += inside
            if seen and self.world.rank == 0:
                self.folder.write_rollouts("eval", step, records(step, seen, Learnt()))
                self.keep(step, seen)
        ended = time.perf_counter()
        report += self.drain() + self.between + Report.sum("step/seconds", ended - started)
        report = self._of_slowest(report)
        if self.world.rank == 0:
            self._write(step, report, groups, learnt)
        written = time.perf_counter()
        self.between = Report.sum("write/seconds", written - ended)
        stop = self._stopping()
        if step and (last or stop or (run.save_every and step % run.save_every == 0)):
            state = {"step": step} | {name: keeper.state() for name, keeper in self.keepers.items()}
            write_checkpoint(self.folder, step, self.learner, state, run.keep_checkpoints, self.world)
            self.between += Report.sum("save/seconds", time.perf_counter() - written)
        if (last or stop) and self.world.rank == 0:
            self.folder.write_after(step, self.between.values())
        if stop and not last:
            saved = f"step {step} is saved" if step else "no step was made yet"
            raise StoppedError(f"told to stop: {saved}; the same command goes on from there")

    def _of_slowest(self, report: Report) -> Report:
        """Of several ranks, the seconds of the one that waited least for others in this step: they waited for it."""
        if self.world.size == 1:
            return report
        waited, self.waited = self.world.waited - self.waited, self.world.waited
        own = {name: entry for name, entry in report.entries.items() if name.endswith("seconds")}
        ranks = self.world.gather((waited, own))
        _, slowest = min(ranks, key=lambda each: each[0])
        mean = sum(each for each, _ in ranks) / len(ranks)
        return Report({**report.entries, **slowest}) + Report.sum("ranks/waited_seconds", mean)

    def _write(self, step: int, report: Report, groups: Sequence[Group], learnt: Learnt) -> None:
        if step and self.run.rollouts:
            self.folder.write_rollouts("step", step, records(step, groups, learnt))
        values = report.values()
        self.folder.append_metrics(step, values)
        for sink in self.sinks:
            sink.write(step, values)

    def _stopping(self) -> bool:
        """Whether any rank was told to stop."""
        return any(self.world.gather(self.told_to_stop()))


def records(step: int, groups: Sequence[Group], learnt: Learnt) -> list[dict[str, object]]:
    """Every response of a step as the run folder keeps it, with what was learnt from it where anything was."""
    found = {id(sample.rollout): i for i, sample in enumerate(learnt.samples)}
    rows: list[dict[str, object]] = []
    for index, group in enumerate(groups):
        for k, rollout in enumerate(group.rollouts):
            i = found.get(id(rollout))
            rows.append(record(step, len(rows), index, group, k, learnt=None if i is None else _learnt(learnt, i)))
    return rows


def _learnt(learnt: Learnt, i: int) -> dict[str, object]:
    sample = learnt.samples[i]
    if learnt.scores:
        return {"values": learnt.updates[i][0][1].tolist() if learnt.updates[i] else None}
    return {
        "advantages": sample.advantages.tolist(),
        "learner_logprobs": learnt.updates[i][0][1].tolist() if learnt.updates[i] else None,
        "previous_logprobs": None if sample.previous is None else sample.previous.tolist(),
        "reference_logprobs": None if sample.reference is None else _by_reference(sample.reference),
        "values": None if sample.values is None else sample.values.tolist(),
        "returns": None if sample.returns is None else sample.returns.tolist(),
        "updates": [{"update": n, "logprobs": values.tolist()} for n, values in learnt.updates[i]],
    }


def _by_reference(logprobs: Tensor) -> list[float] | list[list[float]]:
    """`[T, R]` to one number per token, or a list of them where there are several references."""
    return logprobs[:, 0].tolist() if logprobs.shape[1] == 1 else logprobs.tolist()
