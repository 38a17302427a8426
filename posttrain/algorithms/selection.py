"""Which groups, and which responses of a group, are learnt from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from posttrain.algorithms.rewards import Marked
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.set_loss import shared_out
from posttrain.algorithms.state import RowState
from posttrain.metrics import Report
from posttrain.types import Annotation, Group, Verdict

Item = TypeVar("Item")


def informative(algorithm: Algorithm, group: Group, state: RowState | None = None) -> bool:
    """Whether a group can teach: enough graded responses, and the contrast that the row's selection asks for."""
    scores = [v.score for v in group.verdicts if v.score is not None]
    if len(scores) < algorithm.needs.min_group:
        return False
    if algorithm.selection.kind in ("mixed", "dynamic"):
        return len(set(scores)) > 1
    if algorithm.selection.kind == "steady_spread" and state is not None and state.spread is not None:
        late = state.spread_steps >= algorithm.selection["spread_warmup"]
        return not late or _std(scores) >= algorithm.selection["spread_factor"] * state.spread
    return True


def asks_for(algorithm: Algorithm, greedy: Verdict) -> bool:
    """Whether a prompt is sampled at all, given what its greedy response was worth. Ungraded ones are not."""
    if algorithm.selection.kind != "greedy_wrong":
        return True
    return greedy.score is not None and greedy.score < algorithm.selection["right_score"]


def rounds(algorithm: Algorithm) -> int:
    """How often prompts may be drawn anew to fill a step."""
    return int(algorithm.selection.settings.get("max_rounds", 1))


def widest_margins(
    algorithm: Algorithm, groups: Sequence[Group], annotations: Sequence[Annotation], references: Sequence[float]
) -> tuple[list[int], Report]:
    """The groups, in their order, whose best and worst response are furthest apart in log-ratio to the reference: the
    cell's fraction of them, one at least (SeRA's implicit reward margin, 2410.09362).
    """
    margins = []
    for group, annotation in zip(groups, annotations, strict=True):
        assert annotation.previous is not None
        assert annotation.reference is not None
        scores = [v.score for v in group.verdicts]
        graded = [i for i, score in enumerate(scores) if score is not None]
        if not graded:
            margins.append(-math.inf)
            continue
        best, worst = (choose(graded, key=lambda i: scores[i] or 0.0) for choose in (max, min))
        apart = []
        for i in (best, worst):
            said = torch.tensor(group.rollouts[i].mask)
            log_ratio = annotation.previous[i].double() - shared_out(annotation.reference[i].double(), references)
            apart.append(float(log_ratio[said].sum()))
        margins.append(apart[0] - apart[1])
    count = max(1, round(algorithm.selection["keep_fraction"] * len(groups)))
    kept = sorted(sorted(range(len(groups)), key=lambda i: -margins[i])[:count])
    known = [margin for margin in margins if math.isfinite(margin)]
    report = Report.mean("learn/implicit_margin", sum(known), len(known)) if known else Report()
    return kept, report + Report.mean("learn/kept_groups", count, len(groups))


def note_spread(algorithm: Algorithm, groups: Sequence[Group], state: RowState) -> None:
    """Move the running mean of groups' standard deviations by one step (RLPR, 2506.18254)."""
    if algorithm.selection.kind != "steady_spread":
        return
    graded = [[v.score for v in g.verdicts if v.score is not None] for g in groups]
    spreads = [_std(scores) for scores in graded if scores]
    if not spreads:
        return
    mean, decay = sum(spreads) / len(spreads), algorithm.selection["spread_decay"]
    state.spread = mean if state.spread is None else decay * state.spread + (1 - decay) * mean
    state.spread_steps += 1


def _std(scores: Sequence[float]) -> float:
    if not scores:
        return 0.0
    mean = math.fsum(scores) / len(scores)
    return math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))


def kept(algorithm: Algorithm, members: Sequence[Item], marked: Callable[[Item], Marked]) -> list[Item]:
    """The responses of one group that are learnt from, in their order. Of equal scores the first counts as best."""
    kind, cell = algorithm.keep.kind, algorithm.keep
    if kind == "all":
        return list(members)
    scores = [float(marked(m).score) for m in members]
    order = sorted(range(len(members)), key=lambda i: -scores[i])
    best, others = order[0], order[1:]
    if kind == "best":
        return [members[best]]
    if kind == "best_worst":
        return [members[i] for i in sorted({best, order[-1]})]
    if kind == "best_random":
        # A text seeds through SHA-512: the same response in every process, and after a resume.
        draw = random.Random(f"{marked(members[0]).rollout.seed}/{len(members)}")
        return [members[i] for i in sorted({best, draw.choice(others)} if others else {best})]
    good = [i for i in range(len(members)) if scores[i] >= cell["right_score"]]
    if kind == "right":
        seen: set[str] = set()
        out = []
        for i in good:
            text = marked(members[i]).rollout.text
            if cell["dedupe"] == "never" or text not in seen:
                out.append(members[i])
            seen.add(text)
        return out
    bad = [i for i in range(len(members)) if scores[i] < cell["right_score"]]
    return [members[i] for i in sorted((good[0], bad[0]))] if good and bad else []
