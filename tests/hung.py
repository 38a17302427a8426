"""Two ranks of which one waits for what the other never sends."""

from __future__ import annotations

import torch
import torch.distributed as dist

from posttrain.ranks import connected


def waiting_for_a_message() -> None:
    dist.recv(torch.zeros(1), src=0)


def main() -> None:
    with connected("cpu", 4.0) as world:
        if world.rank:
            waiting_for_a_message()
        else:
            world.gather("here")


if __name__ == "__main__":
    main()
