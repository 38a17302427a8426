"""A training step of posttrain against one of TRL's: both sides in turn (A B A B), each in a process of its own.

python benchmarks/step.py [--shapes short,long,dpo,sft] [--only full|adapter] [--minutes 30] [--out FILE]

Same for both: model (without its end token, so that every response has its full length), rows, group size, token
limits, temperature, dtype, learning rate, AdamW on fp32 masters, clipping, a trivial reward, cores. Not in the time of
either: loading, tokenising given answers, checkpoints.

ours    a whole step of `posttrain train`, vLLM in the learner's process: taking prompts, publishing all weights to the
        engine, sampling with log-probabilities and a seed for each response, grading in worker processes, learning with
        each prompt computed once for its group, engine held against trainer, every token of every response and all
        metrics written to disk. For pairs the reference is computed in the step.
TRL     a whole step of its GRPOTrainer, DPOTrainer or SFTTrainer: taking and tokenising prompts, transformers' generate
        on all of a step's prompts at once (its vLLM needs CUDA, or a server on NCCL), the reward in its own process,
        learning in micro-batches of --row-tokens, all of it in memory. It publishes nothing: the model that learns is
        the one that generates. Checkpointing of gradients, logging and saving are off. For pairs the reference is
        computed in the step. Without a reference and with one update a batch GRPO computes no log-probabilities twice.

All sequences of a shape are equally long, so TRL pads nothing here, which unlike lengths would make it do.

generate, learn, publish: seconds of those phases by each side's own clock; rest: what is left of the step. tokens/s:
learnt tokens over the whole step. useful/rate: `step_cases.useful_flops` over the learning phase, as a share of the
rate at which square matrices are multiplied in the same dtype, measured beside each case (the first line also says that
of the products the model's layers consist of, which are narrower). peak: of each process, the engine's
cache included. ours/TRL: tokens a second of one over the other, in each round; above 1 ours is faster. cpu s: the
process's own seconds on all cores; where other programs compete for them, that ratio moves less than the clock's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.step_cases import MODEL, SHAPES, Job, Shape, Size, endless, rows_of, size_of, useful_flops, write_rows  # noqa: E402
from benchmarks.step_rates import layers_rate, matrix_rate  # noqa: E402
from benchmarks.step_table import HEADING, SIDES, Round, draw, lines, summary  # noqa: E402
from benchmarks.step_turns import compare  # noqa: E402

START = 60.0
"""Seconds that starting both sides is expected to take."""
ROUNDS_WANTED = 3
"""One to warm up and two to measure: where a share of the time is not enough for them, a step gets fewer prompts."""


@dataclass(frozen=True)
class Case:
    """A shape, with all weights or with adapters."""

    shape: Shape
    adapter: bool

    @property
    def name(self) -> str:
        return f"{self.shape.name} {'adapter' if self.adapter else 'full'}"


def chosen_dtype(asked: str, device: str) -> str:
    """As `hardware.dtype: auto` decides it."""
    if asked != "auto":
        return asked
    from posttrain.build.machine import bfloat16_rate

    return "bfloat16" if bfloat16_rate(device) >= 1 else "float32"


def expected_seconds(shape: Shape, size: Size, adapter: bool, rate: float) -> float:
    """A guess of one round of both sides, to see what fits before anything was measured: TRL's rows at half the matrix
    rate, as much again for its generating, a third of that for ours.
    """
    rows = replace(shape, prompt=0, answer=shape.prompt + shape.answer)
    learning = 2 * useful_flops(rows, size, adapter) / rate
    return learning * (2 if shape.kind == "online" else 1) * 4 / 3


def fitting(shape: Shape, seconds: float, share: float) -> Shape:
    """The shape with its prompts halved until `ROUNDS_WANTED` rounds fit into the share, or only one prompt is left.
    `seconds` are one round's with all prompts.
    """
    prompts = shape.prompts
    while prompts > 1 and ROUNDS_WANTED * seconds * prompts / shape.prompts > share:
        prompts = math.ceil(prompts / 2)
    return replace(shape, prompts=prompts)


def agree(case: Case, rounds: Sequence[Round]) -> None:
    """Both sides must have done the same work. TRL also sees the line end that templates write behind a turn's end."""
    for found in rounds:
        a, b = (found[side]["tokens"] for side in SIDES)
        behind = 0 if case.shape.kind == "online" else 2 * case.shape.sequences
        if not 0 <= b - a <= behind:
            raise SystemExit(f"{case.name}: the sides' steps had {a:.0f} and {b:.0f} tokens")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)} (all)")
    add("--only", choices=("full", "adapter"), help="all weights, or adapters (both)")
    add("--prompts", type=int, help="prompts of a step; by default a shape's own, halved until the time is enough")
    add("--steps", type=int, default=5, help="steps that count, at most (5)")
    add("--warmup", type=int, default=1, help="steps before them that don't (1)")
    add("--minutes", type=float, default=30.0, help="the whole table's time (30)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--model", default=MODEL, help="a hub id, a folder, a .gguf file, or pkg://package/file")
    add("--learning-rate", type=float, default=1e-6)
    add("--row-tokens", type=int, default=2048, help="tokens of TRL's micro-batches, at most (2048)")
    add("--hardware", type=Path, help="posttrain's block of the machine (configs/hardware/cpu.yaml or cuda.yaml)")
    add("--out", type=Path, help="write everything measured there, as JSON")
    add("--picture", type=Path, help="draw it there")
    found = parser.parse_args(arguments)
    found.shapes = found.shapes.split(",")
    if unknown := [name for name in found.shapes if name not in SHAPES]:
        parser.error(f"--shapes: {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    return found


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    ways = {"full": [False], "adapter": [True], None: [False, True]}[arguments.only]
    return [Case(SHAPES[name], adapter) for name in arguments.shapes for adapter in ways]


def machine(device: str) -> dict[str, Any]:
    """Versions and hardware."""
    from posttrain.metrics.environment import environment

    found = environment(device, 0)
    model = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {**found, "processor": model[0] if model else platform.processor(), "cores": usable}


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []


def measured(case: Case, share: float, base: Job, size: Size, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case: its rounds and their summary."""
    from posttrain.models.checkpoint import load_tokenizer

    rate = matrix_rate(base.dtype, base.device)
    shape = case.shape
    if arguments.prompts:
        shape = replace(shape, prompts=arguments.prompts)
    else:
        shape = fitting(shape, expected_seconds(shape, size, case.adapter, rate), share - START)
    if shape != case.shape:
        print(f"{case.name}: {shape.prompts} prompts a step instead of {case.shape.prompts}", flush=True)
    work = base.work / case.name.replace(" ", "-")
    work.mkdir()
    rows = write_rows(work / "rows.jsonl", rows_of(shape, load_tokenizer(base.model)))
    jobs = {side: replace(base, shape=shape, adapter=case.adapter, rows=rows, work=work / side) for side in SIDES}
    warmed, rounds = compare(jobs, share, arguments.warmup, arguments.steps)
    agree(replace(case, shape=shape), [*warmed, *rounds])
    flops = useful_flops(shape, size, case.adapter)
    about = {"name": case.name, "shape": asdict(shape), "adapter": case.adapter, "micro_batch": jobs["trl"].micro_batch}
    found = summary(rounds, shape.learnt, flops, rate)
    return {**about, "rate": rate, "flops": flops, "summary": found, "warmed_up": warmed, "rounds": rounds}


def main(arguments: argparse.Namespace) -> None:
    """Measure every case within the time, print it, and write down what was found after each."""
    import torch

    started = time.perf_counter()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    for file in filter(None, (arguments.out, arguments.picture)):
        file.parent.mkdir(parents=True, exist_ok=True)
    dtype = chosen_dtype(arguments.dtype, device)
    hardware = (arguments.hardware or ROOT / "configs" / "hardware" / f"{device}.yaml").resolve()
    named = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    out: dict[str, Any] = {"machine": machine(device), "dtype": dtype, "arguments": named, "cases": []}
    with tempfile.TemporaryDirectory(prefix="posttrain-step-") as folder:
        model = endless(arguments.model, Path(folder) / "model")
        size = size_of(model, rank=16)
        rates = {"square": matrix_rate(dtype, device), "layers": layers_rate(model, dtype, device)}
        out["rates"] = rates
        said = (
            f"{rates['square'] / 1e9:.1f} GFLOP/s, {rates['layers'] / 1e9:.1f} in the products of this model's layers"
        )
        print(f"{out['machine']['processor']}, {out['machine']['cores']} cores, {dtype}: {said}")
        print(f"weights: {size.body:,} in layers, {size.head:,} in the head, {size.adapters:,} in adapters")
        print(HEADING, flush=True)
        cases = cases_of(arguments)
        for number, case in enumerate(cases):
            left = 60 * arguments.minutes - (time.perf_counter() - started)
            if left < START:
                print(f"{case.name}: left out, no time is left")
                continue
            base = Job(
                case.shape,
                case.adapter,
                model,
                model,
                Path(folder),
                dtype,
                device,
                arguments.learning_rate,
                arguments.row_tokens,
                hardware,
            )
            found = measured(case, left / (len(cases) - number), base, size, arguments)
            out["cases"].append(found)
            print("\n".join(lines(case.name, found["summary"])), flush=True)
            out["seconds"] = time.perf_counter() - started
            if arguments.out:
                arguments.out.write_text(json.dumps(out, indent=1) + "\n")
    if arguments.picture and out["cases"]:
        draw(out["cases"], f"{Path(arguments.model).name}, {dtype}, {out['machine']['processor']}", arguments.picture)


if __name__ == "__main__":
    from posttrain.build.process import terminable

    with terminable():
        main(parsed())
