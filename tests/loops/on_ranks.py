"""Recipes one after the other, each on all ranks: `python -m tests.loops.on_ranks RECIPE...` as several ranks."""

from __future__ import annotations

import os
import sys

from posttrain.cli import app


def main(recipes: list[str]) -> None:
    for port, recipe in zip(os.environ["PORTS"].split(), recipes, strict=True):
        # A rank that is ahead must not meet the store of the run before.
        os.environ["MASTER_PORT"] = port
        app(["train", recipe, "--quiet"], standalone_mode=False)


if __name__ == "__main__":
    main(sys.argv[1:])
