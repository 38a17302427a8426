"""What a trained reward model is worth: read as it will be served, on held-out answers, and written on its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.scorer_loss import read_scores
from posttrain.build.check import Checked
from posttrain.build.companions import Checkpoint
from posttrain.build.reading import Read
from posttrain.data.chat import Chat
from posttrain.data.rows import read_rows, track
from posttrain.errors import DataError
from posttrain.metrics.card import RewardCard
from posttrain.metrics.reliability import ScoredPair, best_of_n, consistency
from posttrain.models.checkpoint import stop_tokens
from posttrain.models.scoring import load_reward_model, score_tokens, states
from posttrain.types import Group, Rollout

GOLDEN = 8
"""Sequences by which a loaded model is recognised."""
PROBED = 16
"""Groups whose scores are read again in other company."""
CHUNK = 32


class Measured:
    """A reward model in a folder, as it is served."""

    def __init__(self, algorithm: Algorithm, checkpoint: Checkpoint) -> None:
        self.algorithm, self.dtype = algorithm, checkpoint.dtype
        self.model = load_reward_model(checkpoint.folder, checkpoint.dtype, checkpoint.device)

    def outputs(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """`[S, B]`."""
        return score_tokens(self.model, sequences)

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The ensemble's mean of every sequence."""
        # Of like length together, so that little is padding.
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        found: dict[int, float] = {}
        for start in track(range(0, len(order), CHUNK), "reward model"):
            part = order[start : start + CHUNK]
            outputs = self.outputs([sequences[i] for i in part])
            found |= dict(zip(part, read_scores(self.algorithm, outputs).double().mean(-1).tolist(), strict=True))
        return [found[i] for i in range(len(sequences))]


def measure(checked: Checked, checkpoint: Checkpoint, data: Read, folders: Sequence[Path]) -> RewardCard:
    """Measure the reward model in `checkpoint` on `data.held`, and write its card into `folders`.

    Raises DataError where no two held-out answers differ in worth.
    """
    model = Measured(checked.algorithm, checkpoint)
    if checked.algorithm.needs.steps:
        said, pairs = None, _of_steps(model, data.held)
    else:
        flat = iter(model.scores([_ids(r) for group in data.held for r in group.rollouts]))
        said = [[next(flat) for _ in group.rollouts] for group in data.held]
        pairs = [pair for group, scores in zip(data.held, said, strict=True) for pair in _pairs(group, scores)]
        pairs = pairs or _neighbours(data.held, said)
    if not pairs:
        raise DataError("data.eval: no two answers, or steps of one, differ in worth: nothing can be measured on it")
    probed = [_ids(r) for group in data.held[:PROBED] for r in group.rollouts]
    golden = probed[:GOLDEN]
    card = RewardCard.of(
        pairs,
        # Each answer's output says by itself that it is the better one: between two, both are asked.
        slope=0.5 if checked.algorithm.needs.in_context else 1.0,
        best_of_n=None if said is None else _best_of_n(data.held, said),
        consistency=_consistency(checked, checkpoint, model),
        invariance=_invariance(model, probed),
        golden=[
            {"tokens": list(ids), "scores": scores, "dtype": str(checkpoint.dtype).removeprefix("torch.")}
            for ids, scores in zip(golden, model.outputs(golden).double().tolist(), strict=True)
        ],
    )
    for folder in folders:
        card.write(folder)
    return card


def figures(card: RewardCard) -> dict[str, Any]:
    """A card's numbers by name, without its golden sequences."""
    found = asdict(card)
    found.pop("golden")
    return {name: value for name, value in found.items() if value is not None}


def _ids(rollout: Rollout) -> tuple[int, ...]:
    """A roll-out up to the last token that was said, where it is scored."""
    return rollout.tokens[: len(rollout.mask) - rollout.mask[::-1].index(True)]


def _pairs(group: Group, said: Sequence[float]) -> list[ScoredPair]:
    """Every two answers of different worth, the better one first."""
    worth = [v.score for v in group.verdicts]
    # Chosen and rejected are worth 1 and 0 where the data does not say more: that is no margin.
    thumbs = {score for score in worth if score is not None} <= {0.0, 1.0}
    offsets = [v.offset for v in group.verdicts]
    subset = str(group.prompt.columns.get("subset", ""))
    found = []
    for i, a in enumerate(worth):
        for j, b in enumerate(worth):
            if a is not None and b is not None and a > b:
                lengths = group.rollouts[i].length, group.rollouts[j].length
                margin = None if thumbs else a - b
                first, second = offsets[i], offsets[j]
                margin = margin if first is None or second is None else first - second
                found.append(ScoredPair(said[i], said[j], *lengths, margin=margin, subset=subset))
    return found


def _neighbours(groups: Sequence[Group], said: Sequence[Sequence[float]]) -> list[ScoredPair]:
    """Where every prompt has one answer: each against the next one of another worth, the better one first."""
    worth = [group.verdicts[0].score or 0.0 for group in groups]
    found = []
    for i in range(len(groups)):
        j = next((j for j in range(i + 1, len(groups)) if worth[j] != worth[i]), None)
        if j is not None:
            a, b = (i, j) if worth[i] > worth[j] else (j, i)
            lengths = groups[a].rollouts[0].length, groups[b].rollouts[0].length
            found.append(ScoredPair(said[a][0], said[b][0], *lengths, margin=worth[a] - worth[b]))
    return found


def _of_steps(model: Measured, groups: Sequence[Group]) -> list[ScoredPair]:
    """Of a process reward model: each right step of an answer against each wrong one of it."""
    found = []
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            at = [i for i, said in enumerate(rollout.mask) if said]
            ends = [at[index] for index, _ in verdict.steps]
            hidden = states(model.model, [rollout.tokens], [ends])[0]
            scores = torch.nn.functional.linear(hidden.float(), model.model.score.weight.float()).mean(-1).tolist()
            sizes = [b - a for a, b in pairwise([-1, *(index for index, _ in verdict.steps)])]
            for i, (_, a) in enumerate(verdict.steps):
                for j, (_, b) in enumerate(verdict.steps):
                    if a > b:
                        found.append(ScoredPair(scores[i], scores[j], sizes[i], sizes[j], margin=a - b))
    return found


def _best_of_n(groups: Sequence[Group], said: Sequence[Sequence[float]]) -> list[dict[str, Any]] | None:
    """The gold score of the best of n by this model, where rows bring four graded answers or more."""
    long = [i for i, group in enumerate(groups) if len(group.rollouts) >= 4]
    if not long:
        return None
    size = min(len(groups[i].rollouts) for i in long)
    gold = [[v.score or 0.0 for v in groups[i].verdicts][:size] for i in long]
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= size]
    return best_of_n([list(said[i])[:size] for i in long], gold, ns)


def _consistency(checked: Checked, checkpoint: Checkpoint, model: Measured) -> dict[str, Any] | None:
    """Contrast instructions of `data.contrast`, each response under each question."""
    source = checked.recipe.data.contrast
    if source is None:
        return None
    chat = Chat(checkpoint.tokenizer, stop_tokens(checkpoint.folder, checkpoint.tokenizer))
    needed = ("question", "response", "other_question", "other_response")
    sequences = []
    for row in read_rows(source, "data.contrast"):
        lacking = [name for name in needed if not isinstance(row.get(name), str)]
        if lacking:
            raise DataError(f"data.contrast: a row has no text in {', '.join(lacking)}; needs {', '.join(needed)}")
        for question in (row["question"], row["other_question"]):
            for response in (row["response"], row["other_response"]):
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
                sequences.append(chat.conversation(messages)[0])
    scores = iter(model.scores(sequences))
    blocks = [[[next(scores), next(scores)], [next(scores), next(scores)]] for _ in range(len(sequences) // 4)]
    return consistency(blocks)


def _invariance(model: Measured, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """The largest change of a score when its sequence is read alone, in another order, or beside a longer one."""
    plain = model.outputs(sequences)
    alone = torch.cat([model.outputs([s]) for s in sequences])
    swapped = model.outputs(list(reversed(sequences))).flip(0)
    longest = max(sequences, key=len)
    beside = torch.cat([model.outputs([s, longest])[:1] for s in sequences])
    found = {"alone": alone, "swapped": swapped, "padded": beside}
    return {name: float((other - plain).abs().max()) for name, other in found.items()}
