"""What is known of a reward model, beside its weights: a reward model without a card is one that nobody has measured.

card.json           every number, and golden scores by which a loaded model is recognised
reliability.png     the same at a glance
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.metrics import durable
from posttrain.metrics.curves import GREEDY, HELD_OUT, INK, REWARD
from posttrain.metrics.reliability import (
    Row,
    ScoredPair,
    accuracy_by_margin,
    accuracy_by_subset,
    calibration,
    length_correlation,
    pair_accuracy,
    peak,
)

CARD, PICTURE = "card.json", "reliability.png"


@dataclass(frozen=True)
class RewardCard:
    """The numbers of `posttrain.metrics.reliability` for one reward model on held-out pairs, ready for JSON."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """The ends of its 95 % interval."""
    pairs: int
    """How many were measured."""
    ece: float
    """Expected calibration error."""
    by_margin: Sequence[Row]
    by_subset: Sequence[Row]
    reliability: Sequence[Row]
    """Rows of `calibration`."""
    length: Row
    best_of_n: Sequence[Row] | None = None
    consistency: Row | None = None
    invariance: Mapping[str, float] = field(default_factory=dict)
    """What must not change a score, to the largest change that it made."""
    golden: Sequence[Row] = ()
    """{tokens, scores}: what the model said of a few sequences when it was measured."""

    @classmethod
    def of(cls, pairs: Sequence[ScoredPair], slope: float = 1.0, **others: Any) -> RewardCard:
        """Measure held-out pairs, whose differences times `slope` are log-odds; `others` are the fields that do not
        follow from them. Raises PosttrainError for no pairs."""
        accuracy, low, high = pair_accuracy(pairs)
        ece, rows = calibration(pairs, slope=slope)
        return cls(
            accuracy=accuracy,
            accuracy_low=low,
            accuracy_high=high,
            pairs=len(pairs),
            ece=ece,
            by_margin=accuracy_by_margin(pairs),
            by_subset=accuracy_by_subset(pairs),
            reliability=rows,
            length=length_correlation(pairs),
            **others,
        )

    def as_json(self) -> dict[str, Any]:
        """Every field by name, as JSON reads it back. Raises PosttrainError naming a value that JSON cannot hold."""
        return json.loads(durable.to_json(dataclasses.asdict(self), "card"))

    def write(self, folder: str | Path) -> None:
        """card.json and its picture, in a folder that is made where there is none; the card comes last.

        Raises PosttrainError naming a value that JSON cannot hold, and then writes nothing.
        """
        lines = [f'  "{name}": {durable.to_json(value, name)}' for name, value in self.as_json().items()]
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        draw(self, target / PICTURE)
        durable.write_atomically(target / CARD, ["{\n", ",\n".join(lines), "\n}\n"])

    @classmethod
    def read(cls, folder: str | Path) -> RewardCard | None:
        """The card in a folder, None where there is none. Raises PosttrainError for one that is damaged."""
        path = Path(folder) / CARD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise _damaged(path, f"not JSON ({error})") from None
        fault = _fault(found)
        if fault:
            raise _damaged(path, fault)
        return cls(**found)


def _damaged(path: Path, fault: str) -> PosttrainError:
    return PosttrainError(f"{path}: {fault}; remove it and measure the reward model again")


def _fault(found: Any) -> str | None:
    """What makes a file's content no card."""
    if not isinstance(found, dict):
        return f"expected names and values, found {type(found).__name__}"
    names = {f.name for f in dataclasses.fields(RewardCard)}
    if names != found.keys():
        return f"lacks {sorted(names - found.keys())} and has unknown {sorted(found.keys() - names)}"
    for name, (holds, what) in _SHAPES.items():
        if not holds(found[name]):
            return f"{name} is not {what}"
    if not found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]:
        return "accuracy is not within its interval"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_row(value: Any) -> bool:
    return isinstance(value, dict)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_row, value))


def _is_golden(value: Any) -> bool:
    return _is_rows(value) and all(
        isinstance(row.get(key), list) and all(map(_is_number, row[key]))
        for row in value
        for key in ("tokens", "scores")
    )


_SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "ece"), (_is_share, "a share")),
    "pairs": (_is_count, "a count"),
    **dict.fromkeys(("by_margin", "by_subset", "reliability"), (_is_rows, "a list of rows")),
    **dict.fromkeys(("length", "invariance"), (_is_row, "names with values")),
    "best_of_n": (lambda value: value is None or _is_rows(value), "a list of rows"),
    "consistency": (lambda value: value is None or _is_row(value), "names with values"),
    "golden": (_is_golden, "a list of {tokens, scores}"),
}
"""What each field of a card that was read must be."""


def draw(card: RewardCard, path: Path) -> None:
    """Write a PNG: the reliability diagram, accuracy by margin, and the best-of-n curve where it was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    paints = [_reliability, _margins] + ([_best_of_n] if card.best_of_n else [])
    figure = Figure(figsize=(6 * len(paints), 5), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"Accuracy {card.accuracy:.1%} ({card.accuracy_low:.1%} to {card.accuracy_high:.1%}) on {card.pairs} pairs, "
        f"calibration error {card.ece:.3f}",
        fontsize=13,
        color=INK,
    )
    for panel, paint in zip(figure.subplots(1, len(paints)), paints, strict=True):
        paint(panel, card)
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_color(INK)
        panel.tick_params(colors=INK)
        panel.grid(axis="y", color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
    partial = path.with_name(f".{path.name}{durable.PARTIAL}")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _reliability(panel: Any, card: RewardCard) -> None:
    panel.set_title("How often right, by how sure (pairs at the foot)", loc="left")
    panel.plot([0.5, 1.0], [0.5, 1.0], color="#aaaaaa", linewidth=1, linestyle="--", label="calibrated")
    x, y = [row["predicted"] for row in card.reliability], [row["right"] for row in card.reliability]
    _bars(panel, x, y, [(row["right_low"], row["right_high"]) for row in card.reliability], REWARD)
    panel.plot(x, y, color=REWARD, linewidth=1.2)
    for row in card.reliability:
        panel.text(row["predicted"], 0.01, f"{row['count']}", ha="center", fontsize=8, color=INK)
    panel.set_xlim(0.48, 1.02)
    panel.set_ylim(0, 1.05)
    panel.set_xlabel("probability of the response that it prefers", color=INK)
    panel.set_ylabel("share in which the data prefers it too", color=INK)
    panel.legend(frameon=False, fontsize=10, loc="upper left")


def _margins(panel: Any, card: RewardCard) -> None:
    by = card.by_margin[0]["by"] if card.by_margin else "margin"
    panel.set_title(
        f"Accuracy by {'the margin of the data' if by == 'margin' else 'the difference of scores'}", loc="left"
    )
    places = list(range(len(card.by_margin)))
    y = [row["accuracy"] for row in card.by_margin]
    panel.bar(places, y, 0.7, color=REWARD, alpha=0.35)
    _bars(panel, places, y, [(row["accuracy_low"], row["accuracy_high"]) for row in card.by_margin], REWARD)
    panel.axhline(0.5, color="#aaaaaa", linewidth=1, linestyle="--")
    panel.set_xticks(
        places, [f"{row['low']:.3g} to\n{row['high']:.3g}\n{row['count']} pairs" for row in card.by_margin], fontsize=9
    )
    panel.set_ylim(0, 1.05)


def _best_of_n(panel: Any, card: RewardCard) -> None:
    rows = card.best_of_n or []
    x, gold = [row["kl"] for row in rows], [row["gold"] for row in rows]
    panel.set_title("Best of n by its score", loc="left")
    panel.plot(x, [row["proxy"] for row in rows], color=REWARD, marker="o", markersize=4, label="its own score")
    panel.plot(x, gold, color=HELD_OUT, marker="o", markersize=4, label="gold score, 95 % interval")
    low, high = [row["gold_low"] for row in rows], [row["gold_high"] for row in rows]
    panel.fill_between(x, low, high, color=HELD_OUT, alpha=0.2, linewidth=0)
    best = peak(rows)
    at = next(row["kl"] for row in rows if row["n"] == best)
    panel.axvline(at, color=GREEDY, linewidth=1, linestyle="--", label=f"highest gold score: n = {best}")
    panel.set_xlabel("KL(best of n || policy) at most (nats)", color=INK)
    panel.legend(frameon=False, fontsize=10)


def _bars(panel: Any, x: Sequence[float], y: Sequence[float], ends: Sequence[tuple[float, float]], colour: str) -> None:
    """Points with their intervals."""
    below = [max(0.0, at - low) for at, (low, _) in zip(y, ends, strict=True)]
    above = [max(0.0, high - at) for at, (_, high) in zip(y, ends, strict=True)]
    panel.errorbar(x, y, yerr=[below, above], fmt="o", color=colour, capsize=4, zorder=3)
