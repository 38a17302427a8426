"""A run at a glance: reward, length, time and parity on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.metrics.durable import PARTIAL

PHASES = (
    ("generate", "rollout/seconds", "#4477aa"),
    ("grade", "grade/seconds", "#ccbb44"),
    ("learn", "learn/seconds", "#ee6677"),
    ("sync", "sync/seconds", "#228833"),
)
"""Label, metric and colour, bottom up (Paul Tol's bright scheme, told apart by colour-blind readers)."""
REWARD, HELD_OUT, GREEDY, INK = "#4477aa", "#aa3377", "#228833", "#333333"

Metrics = Sequence[Mapping[str, Any]]


def draw(metrics: Metrics, path: str | Path, title: str) -> None:
    """Write a 1200 x 800 PNG of a run's metrics.jsonl; steps without a metric are left out of its curve."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 8), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=15, color=INK)
    panels = figure.subplots(2, 2, sharex=True)
    sampled = any("reward/mean" in line for line in metrics)
    painters = (_reward, _length, _seconds, _parity) if sampled else (_loss, _given_length, _seconds, _preferred)
    for panel, paint in zip(panels.flat, painters, strict=True):
        paint(panel, metrics)
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_color(INK)
        panel.tick_params(colors=INK, labelbottom=True)
        panel.grid(axis="y", color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if not panel.has_data():
            panel.yaxis.set_visible(False)
            panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color="#888888")
        elif panel.get_legend_handles_labels()[0] and panel.get_legend() is None:
            panel.legend(frameon=False, fontsize=10)
    last = max(2, *(line["step"] for line in metrics), 0)
    for panel in panels[1]:
        panel.set_xlim(-0.03 * last - 0.6, 1.03 * last + 0.6)
        panel.set_xlabel("step", color=INK)
    target = Path(path)
    partial = target.with_name(f".{target.name}{PARTIAL}")
    figure.savefig(partial, format="png")
    partial.replace(target)


def series(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was measured."""
    lines = [line for line in metrics if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def _reward(panel: Any, metrics: Metrics) -> None:
    panel.set_title("Reward and held-out accuracy", loc="left")
    steps, values = series(metrics, "reward/mean")
    if steps:
        panel.plot(
            steps, values, color=REWARD, linewidth=1.6, markersize=4, marker=_dot(steps), label="training reward (mean)"
        )
    held = [line for line in metrics if "eval/accuracy" in line]
    if held:
        x, y = series(held, "eval/accuracy")
        low = [line["eval/accuracy"] - line.get("eval/accuracy_low", line["eval/accuracy"]) for line in held]
        high = [line.get("eval/accuracy_high", line["eval/accuracy"]) - line["eval/accuracy"] for line in held]
        bars = [[max(0.0, v) for v in low], [max(0.0, v) for v in high]]
        panel.errorbar(
            x, y, yerr=bars, fmt="o", color=HELD_OUT, capsize=4, zorder=3, label="held-out accuracy, 95 % interval"
        )
    x, y = series(metrics, "eval/greedy")
    if x:
        panel.plot(x, y, "D", color=GREEDY, markerfacecolor="white", zorder=3, label="held-out accuracy, greedy")


def _loss(panel: Any, metrics: Metrics) -> None:
    panel.set_title("Training loss, and held-out nats a token", loc="left")
    for name, style, colour, label in (
        ("learn/loss", "", REWARD, "training loss"),
        ("eval/nll", "D", HELD_OUT, "held-out answers (the better ones), nats a token"),
    ):
        steps, values = series(metrics, name)
        if steps:
            line = "none" if style else "-"
            marker = style or _dot(steps)
            panel.plot(steps, values, color=colour, linewidth=1.6, markersize=4, marker=marker, ls=line, label=label)


def _preferred(panel: Any, metrics: Metrics) -> None:
    panel.set_title("Pairs whose better answer is preferred", loc="left")
    steps, values = series(metrics, "learn/preferred")
    if steps:
        panel.plot(steps, values, color=REWARD, linewidth=1.2, marker=_dot(steps), markersize=4, label="training")
    held = [line for line in metrics if "eval/preferred" in line]
    if held:
        x, y = series(held, "eval/preferred")
        bars = [[line["eval/preferred"] - line["eval/preferred_low"] for line in held]]
        bars.append([line["eval/preferred_high"] - line["eval/preferred"] for line in held])
        panel.errorbar(x, y, yerr=bars, fmt="o", color=HELD_OUT, capsize=4, zorder=3, label="held out, 95 % interval")
    x, y = series(metrics, "eval/accuracy")
    if x:
        panel.plot(x, y, "D", color=GREEDY, markerfacecolor="white", zorder=3, label="held-out accuracy, sampled")


def _given_length(panel: Any, metrics: Metrics) -> None:
    panel.set_title("Answer length (tokens, mean)", loc="left")
    steps, values = series(metrics, "data/length_mean")
    if steps:
        panel.plot(steps, values, color=REWARD, linewidth=1.6, markersize=4, marker=_dot(steps))
        panel.set_ylim(0, 1.1 * max(values) or 1)


def _length(panel: Any, metrics: Metrics) -> None:
    panel.set_title("Completion length (tokens, mean)", loc="left")
    steps, values = series(metrics, "rollout/length_mean")
    if steps:
        panel.plot(steps, values, color=REWARD, linewidth=1.6, markersize=4, marker=_dot(steps))
        panel.set_ylim(0, 1.1 * max(values) or 1)


def _seconds(panel: Any, metrics: Metrics) -> None:
    panel.set_title("Seconds per step, by phase", loc="left")
    present = [phase for phase in PHASES if any(phase[1] in line for line in metrics)]
    lines = [line for line in metrics if any(name in line for _, name, _ in present) and line["step"] > 0]
    bottom = [0.0] * len(lines)
    for label, name, colour in present:
        heights = [float(line.get(name, 0.0)) for line in lines]
        panel.bar([line["step"] for line in lines], heights, 0.8, bottom=bottom, color=colour, label=label)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    if lines:
        panel.set_ylim(0, 1.2 * max(bottom) or 1)
        panel.legend(frameon=False, fontsize=10, ncols=len(present), loc="upper left")


def _parity(panel: Any, metrics: Metrics) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    panel.set_title("Engine and trainer: largest log-prob gap (nats)", loc="left")
    steps, values = series(metrics, "parity/max_abs_gap")
    drawn = [(s, v) for s, v in zip(steps, values, strict=True) if v > 0]
    if drawn:
        x, y = zip(*drawn, strict=True)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.plot(x, y, color=REWARD, linewidth=1.6, markersize=4, marker=_dot(steps))


def _dot(steps: Sequence[int]) -> str:
    """Few points are shown as points; many as a line alone."""
    return "o" if len(steps) <= 40 else ""
