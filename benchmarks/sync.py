"""How long a weight sync takes, against the engine's own reload of the same tensors, in one run.

python benchmarks/sync.py [RECIPE] [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from posttrain.build import wire
from posttrain.build.check import check
from posttrain.build.machine import resolved
from posttrain.models.checkpoint import load_policy, merged_weights
from posttrain.recipe import load
from posttrain.world import ALONE


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(recipe_path: str = "recipes/grpo-arithmetic.yaml", rounds: str = "7") -> None:
    """Alternate our proven sync and the engine's raw reload; print medians and their ratio."""
    checked, _ = resolved(check(load(recipe_path)), ALONE)
    recipe = checked.recipe
    checkpoint = wire.open_checkpoint(recipe)
    sampler = wire.make_sampler(recipe, checkpoint, max_length=256)
    model = load_policy(checkpoint.folder, recipe.model, checkpoint.dtype, checkpoint.device)

    def raw() -> None:
        weights = ((name, tensor) for name, tensor in model.state_dict().items())
        sampler.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    ours, theirs = [], []
    for version in range(int(rounds) + 1):
        ours.append(seconds(lambda version=version: sampler.load(merged_weights(model), version)))
        theirs.append(seconds(raw))
    a, b = statistics.median(ours[1:]), statistics.median(theirs[1:])
    print(f"sync {a:.3f} s (spread {min(ours[1:]):.3f}-{max(ours[1:]):.3f})")
    print(f"engine's own reload {b:.3f} s (spread {min(theirs[1:]):.3f}-{max(theirs[1:]):.3f}); ratio {a / b:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
