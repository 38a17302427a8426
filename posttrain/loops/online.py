"""Generate, grade, credit, learn, publish, report: PPO's kin, GRPO and REINFORCE in one loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from posttrain.data.stream import PromptStream
from posttrain.evaluation import Benchmark, evaluate
from posttrain.hybrid import Hybrid
from posttrain.hybrid.parity import ParityGate
from posttrain.learner.checkpoint import restore, write_checkpoint
from posttrain.loops.learning import Learning, Learnt, learn
from posttrain.metrics import Report, RunFolder
from posttrain.metrics.records import record
from posttrain.metrics.sinks import Sink
from posttrain.recipe import Reference, Run
from posttrain.rewards import Grader
from posttrain.rollout.collect import Chosen, Collected, Draw, collect


@dataclass
class Online:
    """The wired parts of an online run."""

    learning: Learning
    engine: Hybrid
    stream: PromptStream
    grader: Grader
    draw: Draw
    gate: ParityGate
    benchmark: Benchmark | None
    folder: RunFolder
    sinks: Sequence[Sink]
    run: Run
    reference: Reference


def online(parts: Online) -> None:
    """Run, or continue, to the recipe's last step."""
    step = first = resume(parts)
    if step == 0:
        finish_step(parts, 0, Report(), Collected(), Learnt(), time.perf_counter())
    while step < parts.run.steps:
        started = time.perf_counter()
        step += 1
        with parts.engine.generating() as sampler:
            chosen = Chosen(parts.learning.algorithm, parts.learning.state)
            collected = collect(sampler, parts.stream, parts.grader, chosen, parts.draw, step)
        with parts.engine.training() as learner:
            gate = parts.gate if step == first + 1 or step % parts.run.parity_every == 0 else None
            learnt = learn(learner, parts.learning, collected.groups, gate, step)
            if parts.reference.refresh != "never" and step % parts.reference.every == 0:
                learner.refresh_reference(parts.reference.decay if parts.reference.refresh == "average" else 0.0)
        finish_step(parts, step, collected.report + learnt.report, collected, learnt, started)


def resume(parts: Online) -> int:
    """Restore the newest complete checkpoint and drop what was written after it; the step to go on from."""
    found = parts.folder.checkpoints()
    step = found[-1] if found else -1
    parts.folder.truncate_after(step)
    if step < 0:
        return 0
    state = restore(parts.folder.checkpoint_path(step), parts.engine.learner)
    parts.stream.restore(state["stream"])
    parts.learning.state.restore(state["row"])
    if parts.learning.auxiliary is not None:
        parts.learning.auxiliary.restore(state["auxiliary"])
    return step


def finish_step(parts: Online, step: int, report: Report, collected: Collected, learnt: Learnt, started: float) -> None:
    """Evaluate and save where due, and write the step down: roll-outs, then metrics, then the checkpoint."""
    run, last = parts.run, step == parts.run.steps
    if parts.benchmark and (step == 0 or last or (run.evaluate_every and step % run.evaluate_every == 0)):
        with parts.engine.generating() as sampler:
            at = time.perf_counter()
            result = evaluate(sampler, parts.benchmark)
            report += Report.of(result.metrics) + Report.sum("eval/seconds", time.perf_counter() - at)
        parts.folder.write_rollouts("eval", step, records(step, Collected(result.groups), Learnt()))
    if step:
        parts.folder.write_rollouts("step", step, records(step, collected, learnt))
    # Present in every line, also where nothing had to be published.
    report += parts.engine.take_report() + Report.sum("sync/seconds", 0.0)
    report += Report.sum("step/seconds", time.perf_counter() - started)
    values = report.values()
    parts.folder.append_metrics(step, values)
    for sink in parts.sinks:
        sink.write(step, values)
    if step and (last or (run.save_every and step % run.save_every == 0)):
        state = {"step": step, "stream": parts.stream.state(), "row": parts.learning.state.as_json()}
        if parts.learning.auxiliary is not None:
            state["auxiliary"] = parts.learning.auxiliary.state()
        write_checkpoint(parts.folder, step, parts.engine.learner, state, run.keep_checkpoints)


def records(step: int, collected: Collected, learnt: Learnt) -> list[dict[str, object]]:
    """Every roll-out of a step as the run folder keeps it, with what was learnt from it where anything was."""
    found = {id(sample.rollout): i for i, sample in enumerate(learnt.samples)}
    rows: list[dict[str, object]] = []
    for index, group in enumerate([*collected.groups, *collected.dropped]):
        for k, rollout in enumerate(group.rollouts):
            i = found.get(id(rollout))
            rows.append(record(step, len(rows), index, group, k, learnt=None if i is None else _learnt(learnt, i)))
    return rows


def _learnt(learnt: Learnt, i: int) -> dict[str, object]:
    sample = learnt.samples[i]
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
