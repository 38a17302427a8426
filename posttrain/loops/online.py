"""Generate, grade, credit, learn, publish, report: PPO's kin, GRPO and REINFORCE in one loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from posttrain.data.stream import PromptStream
from posttrain.hybrid import Hybrid
from posttrain.hybrid.parity import ParityGate
from posttrain.learner import Learner
from posttrain.loops.ahead import Ahead
from posttrain.loops.learning import Learning, learn, refresh
from posttrain.loops.opponents import Opponents, joined
from posttrain.loops.progress import Progress
from posttrain.recipe import Reference
from posttrain.rollout import Sampler
from posttrain.rollout.collect import Chosen, Collected, Draw, Grades, collect
from posttrain.types import Group


@dataclass
class Online:
    """The wired parts of an online run."""

    learning: Learning
    engine: Hybrid
    stream: PromptStream
    grader: Grades
    draw: Draw
    gate: ParityGate
    progress: Progress
    reference: Reference
    given: Mapping[str, Group]
    """The data's own answers by their prompt, where they stand beside the sampled ones."""
    opponents: Opponents | None = None
    ahead: Ahead | None = None
    """Where groups may be drawn one step ahead."""


def online(parts: Online) -> None:
    """Run, or continue, to the recipe's last step."""
    run = parts.progress.run
    step = first = parts.progress.begin()
    while step < run.steps:
        started = time.perf_counter()
        step += 1
        compared = step == first + 1 or step % run.parity_every == 0
        collected = parts.ahead.take(step) if parts.ahead is not None else None
        late = collected is not None
        if collected is None:
            collected = _collected(parts, step)
        with _learning(parts, step) as learner:
            # Weights that drew and weights that learn are compared where they are the same.
            gate = parts.gate if compared and not late else None
            learnt = learn(learner, parts.learning, collected.groups, gate, step)
            refresh(learner, parts.reference, step)
            if parts.opponents is not None:
                parts.opponents.note(parts.reference, step)
        groups, report = [*collected.groups, *collected.dropped], collected.report + learnt.report
        if parts.ahead is not None:
            report += parts.ahead.take_report()
        parts.progress.finish(step, report, groups, learnt, started)


def _collected(parts: Online, step: int) -> Collected:
    """A step's groups, under the learner's present weights."""
    sampling = parts.engine.generating() if parts.opponents is None else parts.opponents.against(step)
    with sampling as sampler:
        return _drawn(parts, sampler, step)


def _drawn(parts: Online, sampler: Sampler, step: int) -> Collected:
    chosen = Chosen(parts.learning.algorithm, parts.learning.state)
    collected = collect(sampler, parts.stream, parts.grader, chosen, parts.draw, step)
    return joined(collected, parts.given) if parts.given else collected


@contextlib.contextmanager
def _learning(parts: Online, step: int) -> Iterator[Learner]:
    """The learner; beside it, where the recipe runs ahead, the next step's groups are drawn under the weights from
    before. Nothing is drawn ahead for a step that is compared.
    """
    run, after = parts.progress.run, step + 1
    if parts.ahead is None or after > run.steps or after % run.parity_every == 0:
        with parts.engine.training() as learner:
            yield learner
        return
    with parts.engine.both() as (sampler, learner), parts.ahead.meanwhile(after, partial(_drawn, parts, sampler)):
        yield learner
