"""What a run's roll-outs look like: an overview of its steps, the groups of a step, the tokens of one roll-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from posttrain.errors import PosttrainError
from posttrain.metrics.folder import RolloutKind, RunFolder

Record = Mapping[str, Any]
STATUS_STYLE = {"unavailable": "red", "ok": "green", "unparsable": "yellow", "timeout": "red", "error": "red"}
MISSING = "–"


@dataclass(frozen=True)
class View:
    """What to show of a step."""

    kind: RolloutKind = "step"
    """Roll-outs of training or of an evaluation."""
    count: int = 3
    """Groups at most; 0 shows all."""
    problem: str | None = None
    """Only groups whose prompt id or prompt text contains this."""
    rollout: str | None = None
    """G.I: group G's I-th roll-out, token by token, both counted from 0."""


def render(folder: RunFolder, step: int | None = None, view: View | None = None) -> RenderableType:
    """An overview without a step, the step's groups with one, or a roll-out's tokens where the view names it.

    Raises PosttrainError for a folder, step, problem or roll-out that is not there.
    """
    folder.recipe()
    view = view or View()
    if step is None:
        if view.rollout is not None or view.problem is not None:
            raise PosttrainError("a roll-out or problem is looked up within a step: name the step too")
        return overview(folder.read_metrics())
    groups = _grouped(folder.read_rollouts(view.kind, step))
    if view.rollout is not None:
        return tokens(*_chosen(groups, view.rollout))
    found = {g: members for g, members in groups.items() if view.problem is None or _about(members[0], view.problem)}
    if not groups:
        return Text(f"step {step}: no roll-outs were kept", style="dim")
    if not found:
        raise PosttrainError(f"step {step}: no prompt with {view.problem!r} in its id or text, among {len(groups)}")
    shown = list(found.items())[: view.count or None]
    panels: list[RenderableType] = [_group(number, members) for number, members in shown]
    if len(found) > len(shown):
        panels.append(Text(f"{len(found) - len(shown)} more groups of step {step}", style="dim"))
    return Group(*panels)


def overview(metrics: Sequence[Record]) -> Table:
    """One row per step, a dash where it did not measure something; given responses have figures of their own."""
    if not any("reward/mean" in line for line in metrics):
        return _given_overview(metrics)
    table = Table("step", "reward", "accuracy", "length", "truncated", "verdicts", "parity gap", title="steps")
    for column in table.columns:
        column.justify = "left" if column.header == "verdicts" else "right"
    for line in metrics:
        verdicts = ", ".join(f"{k.partition('/')[2]} {v:g}" for k, v in line.items() if k.startswith("verdict/"))
        table.add_row(
            str(line["step"]),
            _number(line.get("reward/mean"), ".3f"),
            _number(line.get("eval/accuracy"), ".3f"),
            _number(line.get("rollout/length_mean"), ".1f"),
            _number(line.get("rollout/truncated_fraction"), ".1%"),
            verdicts or MISSING,
            _number(line.get("parity/max_abs_gap"), ".2e"),
        )
    return table


GIVEN = (
    ("loss", "learn/loss", ".4f"),
    ("preferred", "learn/preferred", ".3f"),
    ("held-out preferred", "eval/preferred", ".3f"),
    ("held-out nats", "eval/nll", ".3f"),
    ("held-out accuracy", "eval/accuracy", ".3f"),
    ("length", "data/length_mean", ".1f"),
    ("epoch", "data/epoch", ".0f"),
)
"""Heading, metric and format of a step that sampled nothing."""


def _given_overview(metrics: Sequence[Record]) -> Table:
    table = Table("step", *(heading for heading, _, _ in GIVEN), title="steps")
    for column in table.columns:
        column.justify = "right"
    for line in metrics:
        table.add_row(str(line["step"]), *(_number(line.get(name), form) for _, name, form in GIVEN))
    return table


def tokens(name: str, rollout: Record) -> RenderableType:
    """Every token of one roll-out, the prompt's dim: ids (nothing here can decode them) and both log-probabilities.

    The gap is learner minus engine in nats, shown for tokens the policy said.
    """
    table = Table(
        "t", "token", "version", "engine", "learner", "gap", "reference", "advantage", title=f"roll-out {name}"
    )
    for column in table.columns:
        column.justify = "right"
    for t, (token, said) in enumerate(zip(rollout["tokens"], rollout["mask"], strict=True)):
        if not said:
            table.add_row(str(t), str(token), *[""] * 6, style="dim")
            continue
        engine, learner = _at(rollout, "engine_logprobs", t), _at(rollout, "learner_logprobs", t)
        gap = None if engine is None or learner is None else learner - engine
        table.add_row(
            str(t),
            str(token),
            _number(_at(rollout, "versions", t), "d"),
            _number(engine, ".4f"),
            _number(learner, ".4f"),
            _number(gap, "+.1e"),
            _number(_at(rollout, "reference_logprobs", t), ".4f"),
            _number(_at(rollout, "advantages", t), "+.3f"),
        )
    return Group(_heading(name, rollout), visible(rollout["completion"]), table)


def visible(text: str) -> Text:
    """Text as it is, except that control characters are shown instead of obeyed: a completion may say anything."""
    pictures = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    pictures |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}
    # Marks that reorder what a terminal shows, and lone surrogates, which it cannot encode.
    pictures |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], "\ufffd")
    return Text(text.translate(pictures))


def _group(number: int, members: Sequence[Record]) -> Panel:
    first = members[0]
    statuses = Counter(r["status"] for r in members)
    scores = [r["score"] for r in members if r["score"] is not None]
    mean = _number(sum(scores) / len(scores) if scores else None, ".3f")
    counted = ", ".join(f"{status} {n}" for status, n in sorted(statuses.items()))
    parts: list[RenderableType] = [visible(first["prompt"].strip())]
    for i, rollout in enumerate(members):
        parts += [Text(), _heading(f"{number}.{i}", rollout), visible(rollout["completion"])]
        if rollout["reason"]:
            parts.append(Text("reason: ", style="dim").append_text(visible(rollout["reason"])))
    title = Text(f"group {number}  ").append_text(visible(f"{first['source']} {first['prompt_id']}"))
    return Panel(Group(*parts), title=title, subtitle=f"mean score {mean}, {counted}", title_align="left")


def _heading(name: str, rollout: Record) -> Text:
    """Score, parts, status, finish reason, length and weight versions in one line."""
    style = STATUS_STYLE.get(rollout["status"], "red")
    line = Text(f"{name}  ", style="bold").append(f"score {_number(rollout['score'], 'g')}", style=style)
    if rollout["parts"]:
        named = ", ".join(f"{part} {_number(value, 'g')}" for part, value in rollout["parts"].items())
        line.append_text(visible(f" ({named})"))
    drawn = sorted({v for v, said in zip(rollout["versions"] or (), rollout["mask"], strict=False) if said})
    facts = [rollout["status"], rollout["finish_reason"], f"{sum(rollout['mask'])} tokens"]
    if drawn:
        span = str(drawn[0]) if len(drawn) == 1 else f"{drawn[0]}–{drawn[-1]}"
        facts.append(f"weights {span}")
    facts.append("not learnt" if rollout["updates"] is None else f"{len(rollout['updates'])} updates")
    return line.append("  " + ", ".join(facts), style="not bold")


def _grouped(records: Iterable[Record]) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for rollout in records:
        groups.setdefault(rollout["group"], []).append(rollout)
    return groups


def _chosen(groups: Mapping[int, Sequence[Record]], name: str) -> tuple[str, Record]:
    group, _, i = name.partition(".")
    if not (group.isdecimal() and i.isdecimal()):
        raise PosttrainError(f"roll-out {name!r}: written G.I, as in 0.2 for group 0's third")
    members = groups.get(int(group))
    if members is None:
        known = f"groups are {min(groups)} to {max(groups)}" if groups else "the step has none"
        raise PosttrainError(f"roll-out {name}: there is no group {group}; {known}")
    if int(i) >= len(members):
        raise PosttrainError(f"roll-out {name}: group {group} has {len(members)}, 0 to {len(members) - 1}")
    return f"{int(group)}.{int(i)}", members[int(i)]


def _about(rollout: Record, problem: str) -> bool:
    return problem in rollout["prompt_id"] or problem in rollout["prompt"]


def _at(rollout: Record, name: str, t: int) -> Any:
    values = rollout[name]
    return None if values is None else values[t]


def _number(value: Any, shape: str) -> str:
    return MISSING if value is None else format(value, shape)
