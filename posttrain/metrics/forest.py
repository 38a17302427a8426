"""A forest plot of systems: their means, and their differences, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.metrics.curves import GREEDY, HELD_OUT, INK, REWARD
from posttrain.metrics.durable import PARTIAL

PALE = "#bbbbbb"
SURE = 0.05
"""Differences whose adjusted p-value is below it are drawn full."""

Line = tuple[str, float, float | None, float | None, str, bool]
"""Label, value, the interval's ends, colour, and whether the point is full."""


def draw(found: Mapping[str, Any], path: str | Path) -> None:
    """Write a PNG of what `comparison.compare` found, 1200 wide and as high as its rows need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    means, differences = _means(found), _differences(found)
    height = 1.9 + 0.42 * max(len(means), len(differences))
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04)
    figure = Figure(figsize=(12, height), dpi=100, layout=layout)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _paint(left, means, f"{found['metric']}, 95 % over problems")
    _paint(right, differences, "Differences, 95 %")
    _runs(left, found)
    right.axvline(0, color=INK, linewidth=0.9, zorder=1)
    right.set_xlabel("second less first; filled: Holm's p < .05, or decided", color=INK)
    target = Path(path)
    partial = target.with_name(f".{target.name}{PARTIAL}")
    figure.savefig(partial, format="png")
    partial.replace(target)


def _means(found: Mapping[str, Any]) -> list[Line]:
    several = len({row["benchmark"] for row in found["systems"]}) > 1
    return [
        (_label(row["name"], row["benchmark"] if several else ""), row["mean"], row["low"], row["high"], REWARD, True)
        for row in found["systems"]
    ]


def _differences(found: Mapping[str, Any]) -> list[Line]:
    several = len({row["benchmark"] for row in found["pairs"]}) > 1
    lines: list[Line] = []
    for row in found["pairs"]:
        label = _label(f"{row['second']} - {row['first']}", row["benchmark"] if several else "")
        lines.append((label, row["difference"], row["low"], row["high"], HELD_OUT, row["p_holm"] < SURE))
    for row in found["seeds"]:
        label = _label(f"{row['second']} - {row['first']}", "over seeds")
        sure = row["decision"].endswith(" is better")
        lines.append((label, *row["difference"].values(), GREEDY, sure))
    return lines


def _label(name: str, under: str) -> str:
    return f"{name}\n{under}" if under else name


def _paint(panel: Any, lines: Sequence[Line], title: str) -> None:
    for row, (_, value, low, high, colour, full) in enumerate(lines):
        if low is not None and high is not None:
            ends = [[max(0.0, value - low)], [max(0.0, high - value)]]
            panel.errorbar(value, row, xerr=ends, fmt="none", ecolor=colour, capsize=4, zorder=2)
        panel.plot(value, row, "o", color=colour, markerfacecolor=colour if full else "white", zorder=3)
    panel.set_title(title, loc="left", color=INK)
    panel.set_yticks(range(len(lines)), [line[0] for line in lines], color=INK)
    panel.set_ylim(len(lines) - 0.4, -0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=INK)
    panel.grid(axis="x", color="#dddddd", linewidth=0.7)
    panel.set_axisbelow(True)


def _runs(panel: Any, found: Mapping[str, Any]) -> None:
    """Each run's own mean, where a system has several."""
    if any(len(system["runs"]) > 1 for system in found["systems"]):
        panel.set_xlabel("strokes: the means of single runs", color=INK)
    for row, system in enumerate(found["systems"]):
        if len(system["runs"]) > 1:
            panel.plot(system["runs"], [row + 0.22] * len(system["runs"]), "|", color=INK, markersize=8, zorder=2)
