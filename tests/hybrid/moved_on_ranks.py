"""Plans carried out between two ranks, without an engine, against gather-then-slice: run on them, prints JSON."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import torch

from posttrain.hybrid.plan import Generation, Training, make_plan
from posttrain.hybrid.transfer import CAP, Transfer
from posttrain.ranks import connected
from posttrain.world import World
from tests.hybrid.made_plans import Made, sliced, stored

MODELS = {
    "tied": Made(tied=True, vocabulary=65),
    "biases": Made(family="qwen2", bias=True, kv_heads=1),
    "experts": Made(family="qwen3_moe", experts=3),
    "stacked": Made(family="qwen3_moe", experts=3, stacked=True),
}
LAYOUTS = (("rows", 2), ("rows", 1), ("whole", 2))


def case(name: str, shards: Any, tensor: int, cap: int, world: World) -> dict[str, Any]:
    made = MODELS[name]
    training, generation = Training(world.size, shards), Generation(tensor, world.size // tensor)
    plan = make_plan(made.tensors(), made.architecture, training, generation)
    transfer = Transfer(plan, world.rank, torch.float32, "cpu", cap)
    arrays = made.arrays()
    own = {n: torch.from_numpy(stored(a, n, training, world.rank).astype(np.float32)) for n, a in arrays.items()}
    filled = {n: torch.full(p.shape, -1.0) for n, p in plan.parameters.items()}
    times = {n: torch.zeros(p.shape) for n, p in plan.parameters.items()}
    for parameter, region, values in transfer.pieces(own.__getitem__):
        filled[parameter][region] = values
        times[parameter][region] += 1
    right = sliced(made, arrays, tensor, world.rank % tensor)
    wrong = [n for n, array in right.items() if not np.array_equal(filled[n].numpy(), array)]
    sizes = [m.nbytes for part in transfer.parts for m in (*part.sends, *part.receives)]
    told = world.gather((wrong, transfer.received, transfer.bound, max(sizes, default=0)))
    return {
        "name": f"{name} {shards} {tensor} {cap}",
        "wrong": [*told[0][0], *told[1][0], *sorted(set(right) ^ set(filled))],
        "twice": sum(int((count != 1).sum()) for count in times.values()),
        "elements": sum(count.numel() for count in times.values()),
        "received": [each[1] for each in told],
        "bound": [each[2] for each in told],
        "largest": max(each[3] for each in told),
        "rounds": len(transfer.parts),
        "cap": cap,
    }


def main() -> None:
    with connected("cpu", 600.0) as world:
        grid = itertools.product(MODELS, LAYOUTS, (400, CAP))
        found = [case(name, *layout, cap, world) for name, layout, cap in grid]
        if world.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
