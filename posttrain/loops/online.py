"""Generate, grade, credit, learn, publish, report: PPO's kin, GRPO and REINFORCE in one loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.data.stream import PromptStream
from posttrain.hybrid import Hybrid
from posttrain.hybrid.parity import ParityGate
from posttrain.loops.learning import Learning, learn, refresh
from posttrain.loops.opponents import Opponents, joined
from posttrain.loops.progress import Progress
from posttrain.recipe import Reference
from posttrain.rollout.collect import Chosen, Draw, Grades, collect
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


def online(parts: Online) -> None:
    """Run, or continue, to the recipe's last step."""
    run = parts.progress.run
    step = first = parts.progress.begin()
    while step < run.steps:
        started = time.perf_counter()
        step += 1
        sampling = parts.engine.generating() if parts.opponents is None else parts.opponents.against(step)
        with sampling as sampler:
            chosen = Chosen(parts.learning.algorithm, parts.learning.state)
            collected = collect(sampler, parts.stream, parts.grader, chosen, parts.draw, step)
        if parts.given:
            collected = joined(collected, parts.given)
        with parts.engine.training() as learner:
            gate = parts.gate if step == first + 1 or step % run.parity_every == 0 else None
            learnt = learn(learner, parts.learning, collected.groups, gate, step)
            refresh(learner, parts.reference, step)
            if parts.opponents is not None:
                parts.opponents.note(parts.reference, step)
        groups = [*collected.groups, *collected.dropped]
        parts.progress.finish(step, collected.report + learnt.report, groups, learnt, started)
