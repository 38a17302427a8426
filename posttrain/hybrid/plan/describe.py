"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.hybrid.plan.plan import Plan
from posttrain.hybrid.plan.rounds import schedule

CAP = 256 * 2**20
"""Bytes of a bucket unless said otherwise."""
SHOWN = 16
"""Ranks that have a line of their own; of more, the least, the mean and the most are told."""


def describe(plan: Plan, cap: int = CAP) -> str:
    """Layouts, bytes per rank beside the lower bound, messages, rounds and memory, for buckets of `cap` bytes."""
    engine = [(t.holds, t.local, t.received, t.bound) for t in plan.traffic()]
    times = schedule(plan, cap)
    lines = [
        f"{_bytes(plan.nbytes)} in {len(plan.shipments)} tensors, {len(plan.parameters)} parameters: {plan.training} "
        f"to {plan.generation}",
        *_table("engine rank", ("holds", "local", "received", "lower bound"), engine),
        *_table("training rank", ("sends",), [(n,) for n in plan.sent()]),
        f"{times.messages} messages in {len(times.rounds)} rounds of at most {_bytes(cap)} a rank and direction; to a "
        f"rank {times.busiest} at most; buffers {_bytes(times.peak)} at the peak",
        *(f"{alias} is {name} in the engine: not sent" for alias, name in plan.aliases.items()),
    ]
    return "\n".join(lines)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[int]]) -> list[str]:
    named: list[tuple[str, Sequence[int]]] = [(str(rank), row) for rank, row in enumerate(rows)]
    if len(rows) > SHOWN:
        columns = list(zip(*rows, strict=True))
        means = [sum(column) // len(column) for column in columns]
        named = [("least", [min(c) for c in columns]), ("mean", means), ("most", [max(c) for c in columns])]
    return [
        f"{title:>15}" + "".join(f"{head:>14}" for head in heads),
        *(f"{name:>15}" + "".join(f"{_bytes(n):>14}" for n in row) for name, row in named),
    ]


def _bytes(count: int) -> str:
    """With a decimal prefix: 269.0 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
        size /= 1000
    return f"{size:.1f} GB"
