"""Groups and learners of reward models, small enough for a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.scorer_loss import label
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import Packing, pack
from posttrain.learner.computation import Computation
from posttrain.learner.layout import Layout
from posttrain.learner.scorer import ScorerLearner
from posttrain.models.checkpoint import load_scorer, load_tokenizer, with_adapters
from posttrain.recipe import Lora, Optimizer
from posttrain.types import Group, Rollout, Verdict
from tests.reward_models.scorers import scorer_folder
from tests.tiny import prompt, samples

LAYOUTS: tuple[Layout, ...] = ("rows", "tree", "packed")
BUDGETS = (1, 24, 10**9)
WORTH = ((1.0, 0.0), (0.25, 1.0, 0.0), (0.5, None, 0.75, 0.5), (0.5, 0.5), (1.0,))
"""A pair, a list, one with a tie and an answer that nobody graded, a tie alone, and a single answer."""


def rolled() -> list[Group]:
    """Groups of unequal sizes and lengths, a tool span inside one response, each response with labelled steps."""
    found: dict[int, list[Rollout]] = {}
    for sample in samples(groups=3):
        found.setdefault(sample.group, []).append(sample.rollout)
    found |= {3: found[1][:2], 4: found[2][:1]}
    out = []
    for name, rollouts in found.items():
        verdicts = [Verdict(s) if s is not None else Verdict(None, "error") for s in WORTH[name]]
        for i, rollout in enumerate(rollouts):
            cuts = sorted({(3 * i + name) % rollout.length, rollout.length - 1})
            steps = tuple((at, (at + i) % 3 / 2) for at in cuts)
            verdicts[i] = replace(verdicts[i], steps=steps if verdicts[i].score is not None else ())
        asked = rollouts[0].tokens[: rollouts[0].mask.index(True)]
        out.append(Group(prompt(asked), tuple(rollouts), tuple(verdicts)))
    return out


GROUPS = rolled()
ROLLOUTS = [r for group in GROUPS for r in group.rollouts]


def outputs_of(algorithm: Algorithm) -> int:
    settings = algorithm.objective.settings
    return int(settings.get("value_bins", settings.get("heads", 1)))


def learner_over(
    folder: Path, layout: Layout = "tree", outputs: int = 1, lora: bool = False, budget: int = 60
) -> ScorerLearner:
    """The real learner on a tiny scorer with a random head, in double precision."""
    if not folder.exists():
        scorer_folder(folder, outputs)
    torch.manual_seed(1)
    model = load_scorer(folder, outputs, torch.float64, "cpu")
    if lora:
        model = with_adapters(model, Lora(rank=3, alpha=6.0), scorer=True)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                # An adapter starts from nothing.
                torch.nn.init.normal_(parameter, std=0.1)
    settings = Computation(layout, budget, logit_chunk=7, temperature=1.0)
    return ScorerLearner(model, load_tokenizer(folder), Optimizer(learning_rate=1e-2), settings, total_updates=10)


def flat(learner: ScorerLearner) -> Tensor:
    parameters = learner.stepper.masters.parameters
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def gradient(
    learner: ScorerLearner, algorithm: Algorithm, budget: int = 10**9, groups: Sequence[Group] = GROUPS
) -> tuple[dict[str, float], Tensor]:
    """What one optimiser step over the groups reports, and its gradient."""
    learner.discard()
    labelled, _ = label(algorithm, groups)
    packing = Packing(budget, learner.packing.share_prompts, learner.packing.dtype)
    report, _ = learner.accumulate(list(pack(labelled, packing)), algorithm, Coefficients(1))
    return report.values(), flat(learner)
