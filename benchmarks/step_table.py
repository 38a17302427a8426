"""What `step.py` prints, writes and draws of the rounds that it measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Round = dict[str, dict[str, float]]
"""One step of each side, by the side's name."""

SIDES = ("ours", "trl")
PHASES = ("generate", "learn", "publish", "rest")
HEADING = (
    f"{'case':<14}{'side':<6}{'steps':>6}{'generate':>10}{'learn':>8}{'publish':>9}{'rest':>7}{'step [min-max] s':>24}"
    f"{'cpu s':>8}"
    f"{'tokens/s':>10}{'useful/rate':>12}{'peak GB':>9}  ours/TRL [min-max]"
)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(rounds: Sequence[Round], learnt: int, flops: float, rate: float) -> dict[str, Any]:
    """Medians over the rounds. `learnt` tokens and `flops` are those of a step, the same for both sides; `rate` is the
    machine's, in FLOP/s.

    The ratio is tokens a second, ours over TRL's, within each round: above 1 ours is the faster one. So is that of
    processor seconds, which other processes of a busy machine disturb less.
    """
    found: dict[str, Any] = {"steps": len(rounds)}
    for side in SIDES:
        steps = [r[side] for r in rounds]
        phases = {phase: statistics.median(s[phase] for s in steps) for phase in PHASES}
        seconds = spread([s["seconds"] for s in steps])
        found[side] = {
            **phases,
            "step": seconds,
            "processor": statistics.median(s["processor"] for s in steps),
            "tokens_per_second": learnt / seconds["median"],
            "useful_of_rate": flops / phases["learn"] / rate,
            "useful_of_rate_step": flops / seconds["median"] / rate,
            "peak": max(s["peak"] for s in steps),
        }
    found["ratio"] = spread([r["trl"]["seconds"] / r["ours"]["seconds"] for r in rounds])
    found["ratio_learn"] = spread([r["trl"]["learn"] / r["ours"]["learn"] for r in rounds])
    found["ratio_processor"] = spread([r["trl"]["processor"] / r["ours"]["processor"] for r in rounds])
    return found


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """A case as two lines of the table."""
    out = []
    for side in SIDES:
        of, step = found[side], found[side]["step"]
        seconds = f"{step['median']:.2f} [{step['min']:.2f}-{step['max']:.2f}]"
        line = f"{name if side == 'ours' else '':<14}{side:<6}{found['steps']:>6}{of['generate']:>10.2f}"
        line += f"{of['learn']:>8.2f}{of['publish']:>9.2f}{of['rest']:>7.2f}{seconds:>24}{of['processor']:>8.1f}"
        line += f"{of['tokens_per_second']:>10.1f}{of['useful_of_rate']:>12.2f}{of['peak'] / 1e9:>9.2f}"
        if side == "ours":
            line += "  {median:.2f} [{min:.2f}-{max:.2f}]".format(**found["ratio"])
        else:
            line += "  learning alone {:.2f}, by cpu s {:.2f}".format(
                *(found[f"ratio_{of}"]["median"] for of in ("learn", "processor"))
            )
        out.append(line)
    return out


def draw(cases: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """A bar of phases for each side of each case, in seconds of that case's TRL step, with the spread of the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(max(6.0, 1.6 + 1.3 * len(cases)), 4.5), layout="constrained")
    colours = dict(zip(PHASES, ("C0", "C1", "C2", "0.7"), strict=True))
    for place, case in enumerate(cases):
        found, unit = case["summary"], case["summary"]["trl"]["step"]["median"]
        for at, side in ((place - 0.2, "ours"), (place + 0.2, "trl")):
            of, bottom = found[side], 0.0
            for phase in PHASES:
                axes.bar(at, of[phase] / unit, 0.36, bottom=bottom, color=colours[phase])
                bottom += of[phase] / unit
            low, high = (abs(of["step"][end] / unit - bottom) for end in ("min", "max"))
            axes.errorbar(at, bottom, yerr=[[low], [high]], color="black", capsize=3, linewidth=1)
            axes.annotate(f"{of['step']['median']:.1f} s", (at, bottom + high), ha="center", va="bottom", fontsize=8)
    names = [f"{c['name']}\n(of {c['summary']['steps']})\nours | TRL" for c in cases]
    axes.set_xticks(range(len(cases)), names, fontsize=8)
    axes.set(ylabel="seconds of a step, TRL's median is 1")
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=c) for c in colours.values()], list(colours), fontsize=8, ncols=4)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Software": None})
