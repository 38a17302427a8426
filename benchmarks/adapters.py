"""An adapter merged into the weights that are published, and apart: seconds and bytes of a sync, tokens a second.

python benchmarks/adapters.py [RECIPE] [ROUNDS]

One engine after the other in one process, with the same learner, whose adapter is noise; the responses are compared.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from posttrain.build import wire
from posttrain.build.check import check
from posttrain.build.machine import resolved
from posttrain.hybrid.adapting import Apart
from posttrain.hybrid.publishing import Gathered, Publishing
from posttrain.recipe import load
from posttrain.rollout import Request, Sampler
from posttrain.types import Prompt, Rollout, Sampling
from posttrain.world import ALONE

RESPONSES, TOKENS = 16, 16


def drawn(sampler: Sampler, version: int) -> tuple[float, list[Rollout]]:
    """Tokens a second, and the responses."""
    asked = [Prompt(str(i), tuple(range(100 + i // 8, 130 + i // 8)), "") for i in range(RESPONSES)]
    requests = [Request(prompt, seed, f"round-{version}") for seed, prompt in enumerate(asked)]
    started = time.perf_counter()
    said = sampler.generate(requests, Sampling(temperature=1.0, max_tokens=TOKENS))
    return sum(r.length for r in said) / (time.perf_counter() - started), said


def main(path: str = "recipes/grpo-arithmetic.yaml", rounds: str = "3") -> None:
    """Medians over the rounds after the first."""
    learner, responses = None, {}
    for way in ("merged", "apart"):
        asked = load(path, overrides=["model.lora={rank: 8}", f"hardware.sampler.adapters={way}"])
        checked, _ = resolved(check(asked), ALONE)
        recipe = checked.recipe
        checkpoint = wire.open_checkpoint(recipe)
        sampler = wire.make_sampler(recipe, checkpoint, 256)
        if learner is None:
            learner = wire.make_learner(checked, checkpoint)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for name, parameter in learner.model.named_parameters():
                    if "lora_B" in name:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
        publishing: Publishing = Gathered() if way == "merged" else Apart(learner, sampler)
        took, speeds = [], []
        for _ in range(int(rounds) + 1):
            learner.version += 1
            started = time.perf_counter()
            publishing.publish(learner, sampler)
            took.append(time.perf_counter() - started)
            speed, responses[way] = drawn(sampler, learner.version)
            speeds.append(speed)
        print(
            f"{way} ({checkpoint.dtype}): sync {statistics.median(took[1:]):.3f} s, {publishing.sent:,} bytes; "
            f"{statistics.median(speeds[1:]):.0f} tokens/s ({min(speeds[1:]):.0f}-{max(speeds[1:]):.0f})",
            flush=True,
        )
    pairs = list(zip(*responses.values(), strict=True))
    print(f"equal responses: {sum(a.tokens == b.tokens for a, b in pairs)} of {len(pairs)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
