"""Whether a folder's run may go on under a recipe: only differences that leave its numbers as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HARMLESS = frozenset({"run.sinks", "run.keep_checkpoints", "run.folder", "grading.early"})
"""Keys that change no number of a run. The folder is here because a run that was moved is still the same run."""
LAYOUT = frozenset(
    {
        "hardware.patience",
        "hardware.learner.strategy",
        "hardware.learner.processes",
        "hardware.learner.offload",
        "hardware.sampler.tensor_parallel",
    }
)
"""Keys that change the order of a sum and nothing else: a run may go on with other ranks."""
DECIDED = frozenset({"hardware.dtype"})
"""Keys that a run decides at its start where the recipe says auto; it goes on with what it decided then."""
ABSENT = "(absent)"


def refusals(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every difference between two resolved recipes under which a run may not go on, as "key: old -> new"."""
    before, after = _flat(old), _flat(new)
    found = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key, ABSENT), after.get(key, ABSENT)
        if was == now or key in HARMLESS | LAYOUT or (key in DECIDED and now == "auto"):
            continue
        line = f"{key}: {_show(was)} -> {_show(now)}"
        if key == "run.steps" and isinstance(was, int) and isinstance(now, int) and now > was:
            schedule = after.get("optimizer.schedule", "constant")
            fades = after.get("data.auxiliary.final_coefficient") is not None
            if schedule == "constant" and not fades:
                continue
            ends = "data.auxiliary.final_coefficient is reached" if fades else f"the {schedule} schedule ends"
            line += f" ({ends} at run.steps: the steps already made would have been others)"
        found.append(line)
    return found


def _flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Leaves by dotted path; lists of blocks are opened by position, other lists are leaves."""
    if isinstance(tree, Mapping):
        items = [(str(name), item) for name, item in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        items = [(str(i), item) for i, item in enumerate(tree)]
    else:
        return {key: tree}
    return {k: v for name, item in items for k, v in _flat(item, f"{key}.{name}" if key else name).items()}


def _show(value: Any) -> str:
    return ABSENT if value is ABSENT else repr(value)
