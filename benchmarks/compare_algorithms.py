"""Eight algorithms from the same start on the same problems: held-out accuracy against tokens sampled, in one picture.

`python benchmarks/compare_algorithms.py` trains every recipe that is not finished (a run that was cut off goes on where
it stopped), prints a table, and draws recipes/comparison.png. `--draw` only draws what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
NAMES = ("ppo", "reinforce-pp", "rloo", "dapo", "gspo", "cispo", "raft", "rebel")
GOAL = 0.65


def train(name: str) -> None:
    recipe = ROOT / "recipes" / f"{name}-arithmetic.yaml"
    folder = ROOT / "runs" / f"{name}-arithmetic"
    if not (folder / "summary.json").is_file():
        command = [sys.executable, "-m", "posttrain", "train", str(recipe), "--quiet", f"run.folder={folder}"]
        subprocess.run(command, cwd=ROOT, check=True)


def curve(name: str) -> dict[str, Any] | None:
    """Tokens sampled up to each evaluation, avg@8 there with its interval, and the run's totals."""
    folder = ROOT / "runs" / f"{name}-arithmetic"
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return None
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    sampled = list(accumulate(line.get("rollout/tokens", 0.0) for line in lines))
    seen = [i for i, line in enumerate(lines) if "eval/accuracy" in line]
    reached = next((lines[i]["step"] for i in seen if lines[i]["eval/accuracy"] >= GOAL), None)
    return {
        "name": name,
        "tokens": [sampled[i] for i in seen],
        "accuracy": [lines[i]["eval/accuracy"] for i in seen],
        "low": [lines[i]["eval/accuracy_low"] for i in seen],
        "high": [lines[i]["eval/accuracy_high"] for i in seen],
        "steps": lines[-1]["step"],
        "reached": reached,
        "seconds": sum(line.get("step/seconds", 0.0) for line in lines),
    }


def draw(curves: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, found in enumerate(curves):
        style = {"color": f"C{i}", "marker": "osD^v<>P"[i % 8], "markersize": 4}
        axes.plot(found["tokens"], found["accuracy"], label=found["name"], **style)
        axes.fill_between(found["tokens"], found["low"], found["high"], color=f"C{i}", alpha=0.07, linewidth=0)
    axes.axhline(GOAL, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="tokens sampled for training", ylabel="held-out avg@8, temperature 1", ylim=(0, 1))
    axes.legend(ncols=2, fontsize=8)
    axes.set_title("SmolLM2-135M-Instruct on one-digit arithmetic, 100 held-out problems, 95 % intervals", fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--draw", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    for name in () if arguments.draw else arguments.names:
        train(name)
    curves = [found for name in arguments.names if (found := curve(name))]
    print("recipe         steps  before                  after  >= .65 at step   tokens  seconds")
    for c in curves:
        after = f"{c['accuracy'][-1]:.3f} [{c['low'][-1]:.3f}, {c['high'][-1]:.3f}]"
        reached = "-" if c["reached"] is None else str(c["reached"])
        print(
            f"{c['name']:14s} {c['steps']:5d} {c['accuracy'][0]:7.3f} {after:>22s} {reached:>14s} "
            f"{c['tokens'][-1]:8.0f} {c['seconds']:8.0f}"
        )
    draw(curves, ROOT / "recipes" / "comparison.png")


if __name__ == "__main__":
    main()
