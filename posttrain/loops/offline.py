"""Take groups from the data, credit, learn, measure: supervised fine-tuning, preferences, scores, reward models."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

from posttrain.data.stream import GroupStream
from posttrain.hybrid import Hybrid
from posttrain.loops.learning import Learning, learn, refresh
from posttrain.loops.progress import Progress
from posttrain.loops.sampled_kl import SampledKl
from posttrain.metrics import Report
from posttrain.recipe import Reference


@dataclass
class Offline:
    """The wired parts of a run on given responses."""

    learning: Learning
    stream: GroupStream
    progress: Progress
    reference: Reference
    groups_per_step: int
    sampled_kl: SampledKl | None = None
    engine: Hybrid | None = None
    """Where anything is sampled: its sampler sleeps while the policy learns."""


def offline(parts: Offline) -> None:
    """Run, or continue, to the recipe's last step."""
    run = parts.progress.run
    step = parts.progress.begin()
    while step < run.steps:
        started = time.perf_counter()
        step += 1
        epoch = parts.stream.epoch
        groups = parts.stream.take(parts.groups_per_step)
        report = Report.value("data/epoch", float(epoch))
        for group in groups:
            for rollout in group.rollouts:
                report += Report.sum("data/tokens", len(rollout.tokens)) + Report.mean(
                    "data/length_mean", rollout.length, 1
                )
        if parts.sampled_kl is not None:
            report += parts.sampled_kl.draw(groups, step)
        training = nullcontext(parts.progress.learner) if parts.engine is None else parts.engine.training()
        with training as learner:
            learnt = learn(learner, parts.learning, groups, None, step)
            refresh(learner, parts.reference, step)
        parts.progress.finish(step, report + learnt.report, groups, learnt, started)
