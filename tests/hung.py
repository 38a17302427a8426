"""Two ranks of which one waits, deep in its stack, for what the other never sends."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from posttrain.ranks import connected


def waiting_for_a_message(depth: int) -> None:
    if depth:
        waiting_for_a_message(depth - 1)
    else:
        dist.recv(torch.zeros(1), src=0)


def main(patience: str = "4", depth: str = "0") -> None:
    with connected("cpu", float(patience)) as world:
        print("connected", flush=True)
        if world.rank:
            waiting_for_a_message(int(depth))
        else:
            world.gather("here")


if __name__ == "__main__":
    main(*sys.argv[1:])
