"""How long a proven weight sync takes, and what a rank receives, against the engine's own reload and the plan's bound.

python benchmarks/sync.py [--recipe PATH] [--rounds 7]
torchrun --nproc-per-node 2 benchmarks/sync.py [--rounds 7]

One process: the engine in it, a vLLM server beside it, and the first engine's raw `reload_weights` from the same
tensors, in turn. Several ranks: a learner in FSDP2 rows on all of them and one engine over all of them, weights brought
by the resharding plan and gathered on every rank, in turn. Heads of SmolLM2-135M do not go round two ranks, so this
one has its shape, 8 query and 2 key heads, and random weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.build import wire
from posttrain.build.check import check
from posttrain.build.machine import resolved
from posttrain.hybrid.publishing import Gathered, Planned
from posttrain.models.checkpoint import load_policy, merged_weights
from posttrain.ranks import connected
from posttrain.recipe import load
from posttrain.world import ALONE, World

LENGTH = 256
Ways = Mapping[str, Callable[[int], object]]
"""What is timed, by name; each is given the version of its round."""


def timed(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, in turn; the round before the first is left out."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for version in range(1, rounds + 2):
        for number, (name, work) in enumerate(ways.items()):
            started = time.perf_counter()
            work(version * len(ways) + number)
            took[name].append(time.perf_counter() - started)
    return {name: each[1:] for name, each in took.items()}


def show(took: Mapping[str, list[float]], against: str) -> None:
    base = statistics.median(took[against])
    for name, each in took.items():
        median = statistics.median(each)
        print(f"{name:<28} {median:6.3f} s ({min(each):.3f}-{max(each):.3f})   {median / base:5.2f} x {against}")


def one_process(path: str, rounds: int) -> None:
    samplers: list[Any] = []
    for placement in ("colocated", "servers"):
        checked, _ = resolved(check(load(path, overrides=[f"hardware.sampler.placement={placement}"])), ALONE)
        checkpoint = wire.open_checkpoint(checked.recipe)
        samplers.append(wire.make_sampler(checked.recipe, checkpoint, LENGTH))
    model = load_policy(checkpoint.folder, checked.recipe.model, checkpoint.dtype, checkpoint.device)
    inside, apart = samplers

    def raw(_: int) -> None:
        weights = ((name, tensor) for name, tensor in model.state_dict().items())
        inside.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    ways: Ways = {
        "the engine's own reload": raw,
        "in process": lambda version: inside.load(merged_weights(model), version),
        "to a server": lambda version: apart.load(merged_weights(model), version),
    }
    try:
        show(timed(ways, rounds), "the engine's own reload")
    finally:
        apart.close()


def divisible(path: str, folder: Path) -> Path:
    """The recipe's model with heads that two ranks can share, and its tokenizer, in `folder`."""
    checkpoint = wire.open_checkpoint(check(load(path, overrides=["hardware.dtype=float32"])).recipe)
    config = AutoConfig.from_pretrained(checkpoint.folder)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 2, 64
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return folder


def several_ranks(path: str, rounds: int, world: World, folder: Path) -> None:
    place = Path(world.shared(lambda: str(divisible(path, folder))))
    settings = {
        "model.path": place,
        "hardware.dtype": "float32",
        "hardware.learner": f"{{strategy: fsdp2, processes: {world.size}}}",
        "hardware.sampler.tensor_parallel": world.size,
    }
    checked = check(load(path, overrides=[f"{key}={value}" for key, value in settings.items()]))
    checkpoint = wire.open_checkpoint(checked.recipe, world=world)
    sampler = wire.make_sampler(checked.recipe, checkpoint, LENGTH)
    learner = wire.make_learner(checked, checkpoint)
    planned, gathered = Planned(learner, sampler, world), Gathered()

    def brought(publishing: Planned | Gathered, version: int) -> None:
        learner.version = version
        publishing.publish(learner, sampler)
        world.wait()

    ways: Ways = {
        "planned": lambda version: brought(planned, version),
        "gathered": lambda version: brought(gathered, version),
    }
    took = timed(ways, rounds)
    found = world.gather((planned.sent, planned.transfer.bound, gathered.sent))
    if world.rank == 0:
        show(took, "gathered")
        for rank, (received, bound, whole) in enumerate(found):
            print(f"rank {rank}: {received:,} bytes received, {bound:,} at least; gathered {whole:,}")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--recipe", default="recipes/grpo-arithmetic.yaml")
    asked.add_argument("--rounds", type=int, default=7)
    given = asked.parse_args()
    if "WORLD_SIZE" not in os.environ:
        one_process(given.recipe, given.rounds)
        return
    with connected("cpu", 600.0) as world, tempfile.TemporaryDirectory() as folder:
        several_ranks(given.recipe, given.rounds, world, Path(folder))


if __name__ == "__main__":
    main()
