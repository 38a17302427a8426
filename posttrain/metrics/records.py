"""The JSON form of one roll-out: every token, both sides' log-probabilities, and what it was worth.

Numbers keep full precision (the repr of the float64 that equals the float32), so that a step's loss can be computed
again from the records alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from posttrain.types import Group

PER_TOKEN = ("advantages", "learner_logprobs", "reference_logprobs", "previous_logprobs", "values", "returns")
"""What the learner adds: one number per token, prompt included (a list where there are several references), or None
where it was not computed.
"""


def record(
    step: int, index: int, group_index: int, group: Group, i: int, *, learnt: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Roll-out `i` of a group, number `index` among the step's roll-outs, as plain JSON values.

    `learnt` maps names of PER_TOKEN to `[T]` tensors or sequences, and `updates` to the log-probabilities `[T]` under
    which each optimiser step on this roll-out began; None when it was not trained on, and then all of them are None.
    Raises ValueError for an unknown name or a length other than T.
    """
    rollout, verdict = group.rollouts[i], group.verdicts[i]
    return {
        "step": step,
        "group": group_index,
        "index": index,
        "prompt_id": group.prompt.id,
        "source": group.prompt.source,
        "prompt": group.prompt.text,
        "completion": rollout.text,
        "tokens": list(rollout.tokens),
        "mask": [int(said) for said in rollout.mask],
        "engine_logprobs": _floats("engine_logprobs", rollout.logprobs, len(rollout.tokens)),
        "versions": None if rollout.versions is None else list(rollout.versions),
        "finish_reason": rollout.finish_reason,
        "author": rollout.author,
        "seed": rollout.seed,
        "sampling": None if rollout.sampling is None else asdict(rollout.sampling),
        "score": None if verdict.score is None else float(verdict.score),
        "offset": verdict.offset,
        "status": verdict.status,
        "steps": [list(step) for step in verdict.steps],
        "greedy_score": None if group.greedy is None else group.greedy.score,
        "parts": {name: None if part is None else float(part) for name, part in verdict.parts.items()},
        "reason": verdict.reason,
        **_learnt(learnt, len(rollout.tokens)),
    }


def _learnt(learnt: Mapping[str, Any] | None, length: int) -> dict[str, Any]:
    if learnt is None:
        return dict.fromkeys((*PER_TOKEN, "updates"))
    unknown = sorted(set(learnt) - {*PER_TOKEN, "updates"})
    if unknown:
        raise ValueError(f"a record has no place for {', '.join(unknown)}; it takes {', '.join(PER_TOKEN)}, updates")
    updates = [
        {"update": update["update"], "logprobs": _floats("updates.logprobs", update["logprobs"], length)}
        for update in learnt.get("updates", ())
    ]
    return {name: _floats(name, learnt.get(name), length) for name in PER_TOKEN} | {"updates": updates}


def _floats(name: str, values: Any, length: int) -> list[Any] | None:
    """A tensor or sequence as floats, or as lists of them; float32 to float64 is exact."""
    if values is None:
        return None
    plain: Iterable[Any] = values.tolist() if hasattr(values, "tolist") else values
    floats = [[float(v) for v in value] if isinstance(value, list) else float(value) for value in plain]
    if len(floats) != length:
        raise ValueError(f"{name} has {len(floats)} entries for {length} tokens")
    return floats
