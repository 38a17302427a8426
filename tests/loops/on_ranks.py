"""Recipes one after the other, each on all ranks: `python -m tests.loops.on_ranks RECIPE...` as several ranks."""

from __future__ import annotations

import os
import sys

from posttrain.cli import app


def main(recipes: list[str]) -> None:
    port = int(os.environ["MASTER_PORT"])
    for number, recipe in enumerate(recipes):
        # A rank that is ahead must not meet the store of the run before.
        os.environ["MASTER_PORT"] = str(port + number)
        app(["train", recipe, "--quiet"], standalone_mode=False)


if __name__ == "__main__":
    main(sys.argv[1:])
