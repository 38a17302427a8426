"""Answers to the toy task that come with the data, and runs that learn from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import RowState, Terms
from posttrain.data.stream import GroupStream
from posttrain.hybrid import Hybrid
from posttrain.loops.learning import Learning, Updates, learn
from posttrain.loops.sampled_kl import SampledKl
from posttrain.rollout.collect import Draw
from posttrain.types import Group, Prompt, Rollout, Sampling, Verdict
from tests.algorithms.toy_runs import Run
from tests.toy import LENGTH, PROMPTS, VOCABULARY, ToyLearner, ToySampler, hits

EVENLY = 1 / VOCABULARY
"""How often a token hits that is drawn like any other."""
ONE = Updates(minibatches=1, epochs=1)


def answer(prompt: Prompt, draw: random.Random, chance: float, mask: Sequence[bool] = (True,) * LENGTH) -> Rollout:
    """Each token hits with `chance`; the others are drawn evenly."""
    target = prompt.columns["target"]
    wrong = [token for token in range(VOCABULARY) if token != target]
    said = [target if draw.random() < chance else draw.choice(wrong) for _ in range(LENGTH)]
    return Rollout((*prompt.tokens, *said), (False, *mask), " ".join(map(str, said)), "given", author="data")


def worth(prompt: Prompt, rollout: Rollout) -> float:
    """The share of three tokens that are said, and hit."""
    return sum(h for h, said in zip(hits(prompt, rollout), rollout.mask[1:], strict=True) if said) / LENGTH


def drawn(seed: int, count: int, size: int, chance: float = EVENLY, ragged: bool = False) -> list[Group]:
    """`count` groups of `size` answers to each prompt, worth what they hit. Of ragged ones half lack a third token."""
    draw, out = random.Random(f"{seed}/{count}/{size}"), []
    for prompt in PROMPTS:
        for n in range(count):
            masks = [(True, True, not (ragged and draw.random() < 0.5)) for _ in range(size)]
            rollouts = tuple(answer(prompt, draw, chance, mask) for mask in masks)
            verdicts = tuple(Verdict(worth(prompt, r)) for r in rollouts)
            out.append(Group(replace(prompt, id=f"{prompt.id}/{n}"), rollouts, verdicts))
    return out


def best_and_worst(group: Group) -> tuple[int, int]:
    scores = [verdict.score or 0.0 for verdict in group.verdicts]
    return scores.index(max(scores)), scores.index(min(scores))


def graded_pairs(seed: int) -> list[Group]:
    """Of eight answers of an untrained policy the best and the worst, each with what it is worth."""
    out = []
    for group in drawn(seed, 20, 8, ragged=True):
        pair = best_and_worst(group)
        best, worst = (group.verdicts[i] for i in pair)
        if best.score != worst.score:
            out.append(Group(group.prompt, tuple(group.rollouts[i] for i in pair), (best, worst)))
    return out


def pairs(seed: int) -> list[Group]:
    """The same, worth 1 and 0."""
    return [replace(group, verdicts=(Verdict(1.0), Verdict(0.0))) for group in graded_pairs(seed)]


def continued_pairs(seed: int) -> list[Group]:
    """Pairs whose answers begin with the better one's first token, which is not learnt."""
    out = []
    for group in pairs(seed):
        best, worst = (list(r.tokens) for r in group.rollouts)
        worst[1] = best[1]
        mask = (False, False, True, True)
        made = tuple(replace(r, tokens=tuple(t), mask=mask) for r, t in zip(group.rollouts, (best, worst), strict=True))
        if worth(group.prompt, made[0]) > worth(group.prompt, made[1]):
            out.append(replace(group, rollouts=made))
    return out


def lists(seed: int) -> list[Group]:
    """Four answers each, worth what they hit."""
    return drawn(seed, 24, 4)


def single(groups: Sequence[Group], verdict: Callable[[Group, int], Verdict]) -> list[Group]:
    """Every answer as a group of its own."""
    return [
        Group(replace(group.prompt, id=f"{group.prompt.id}/{i}"), (rollout,), (verdict(group, i),))
        for group in groups
        for i, rollout in enumerate(group.rollouts)
    ]


def thumbs(seed: int) -> list[Group]:
    """Single answers of which half the tokens hit, up where most do."""
    return single(drawn(seed, 24, 2, 0.5), lambda group, i: Verdict(float((group.verdicts[i].score or 0.0) > 0.5)))


def scored(seed: int) -> list[Group]:
    """Single answers of which half the tokens hit, worth what they hit."""
    return single(drawn(seed, 24, 2, 0.5), lambda group, i: group.verdicts[i])


def stepped(seed: int) -> list[Group]:
    """The same answers in two steps, of one token and of two, each with its share of what the answer is worth."""

    def verdict(group: Group, i: int) -> Verdict:
        first, *others = hits(group.prompt, group.rollouts[i])
        return replace(group.verdicts[i], steps=((0, first / LENGTH), (2, sum(others) / LENGTH)))

    return single(drawn(seed, 24, 2, 0.5), verdict)


def texts(seed: int) -> list[Group]:
    """Two answers each, of which half the tokens hit."""
    return drawn(seed, 24, 2, 0.5)


def told(seed: int) -> list[Group]:
    """Single answers to a question that says whether most of their tokens hit; bad ones are asked for another way."""
    out = []
    for group in thumbs(seed):
        (rollout,), (verdict,) = group.rollouts, group.verdicts
        asked = rollout.tokens[0] + (0 if verdict.score else len(PROMPTS))
        prompt = replace(group.prompt, tokens=(asked,))
        out.append(Group(prompt, (replace(rollout, tokens=(asked, *rollout.tokens[1:])),), (verdict,)))
    return out


def squares(seed: int) -> list[Group]:
    """Groups of twelve answers that together say every token once at each place, worth what they hit."""
    draw, out = random.Random(seed), []
    for prompt in PROMPTS:
        for n in range(4):
            said = zip(*(draw.sample(range(VOCABULARY), VOCABULARY) for _ in range(LENGTH)), strict=True)
            mask = (False, *(True,) * LENGTH)
            rollouts = tuple(Rollout((*prompt.tokens, *s), mask, "", "given", author="data") for s in said)
            verdicts = tuple(Verdict(worth(prompt, r)) for r in rollouts)
            out.append(Group(replace(prompt, id=f"{prompt.id}/{n}"), rollouts, verdicts))
    return out


def flipped(groups: Sequence[Group]) -> list[Group]:
    """The same pairs, in every other of which the worse answer counts as the better one."""
    return [replace(g, verdicts=g.verdicts[::-1]) if i % 2 else g for i, g in enumerate(groups)]


@dataclass(frozen=True)
class Given:
    """How a row learns from given answers, and what it must come to. `why` it does not do so like all of its kind."""

    data: Callable[[int], list[Group]]
    why: str = ""
    goal: float = 0.7
    """The exact expected reward, a mean over the last steps, at which a run ends early."""
    preferred: float = 0.0
    """The share of held-out pairs whose better answer has the larger log-ratio."""
    rate: float = 0.03
    steps: int = 40
    groups: int = 32
    """A step's."""
    overrides: dict[str, Any] = field(default_factory=dict)
    ways: int = 1
    """Ways to ask each question."""


def new_learner(algorithm: Algorithm, given: Given, seed: int, groups: Sequence[Group]) -> ToyLearner:
    learner = ToyLearner(seed, given.rate, ways=given.ways)
    if algorithm.critic.kind == "frozen_probability":
        read_steps(learner, groups)
        learner.frozen = True
    return learner


def read_steps(learner: ToyLearner, groups: Sequence[Group]) -> None:
    """Make the critic a process reward model: at every state of the answers the logit of what they are worth."""
    tokens = torch.tensor([r.tokens for g in groups for r in g.rollouts])
    scores = torch.tensor([v.score for g in groups for v in g.verdicts])
    for _ in range(100):
        logits = learner.critic(tokens[:, 0], tokens[:, 1:])[..., 0]
        binary_cross_entropy_with_logits(logits, scores[:, None].expand_as(logits)).backward()
        learner.step(policy=False)


def learn_given(algorithm: Algorithm, given: Given, seed: int, groups: Sequence[Group]) -> Run:
    """Learn from the groups, in the order of the project's own stream, until the goal is reached or the steps are used
    up.
    """
    learner, state = new_learner(algorithm, given, seed, groups), RowState.of(algorithm)
    stream, beside = GroupStream(groups, seed), []
    if algorithm.kl.kind == "online":
        draw = Draw(given.groups, algorithm.kl["kl_responses"], Sampling(max_tokens=LENGTH + 1), seed)
        beside.append(SampledKl(Hybrid(learner, ToySampler()), draw, algorithm.kl["kl_coefficient"], (1.0,)))
    learning = Learning(algorithm, ONE, Terms(LENGTH + 1), state, beside)
    run = Run(learner, state, [learner.reward()])
    for step in range(1, given.steps + 1):
        taken = stream.take(given.groups)
        for term in beside:
            term.draw(taken, step)
        run.reports.append(learn(learner, learning, taken, None, step).report.values())
        run.rewards.append(learner.reward())
        if run.reached >= given.goal:
            break
    return run


def preferred(learner: ToyLearner, algorithm: Algorithm, groups: Sequence[Group]) -> float:
    """The share of pairs whose better answer has the larger log-ratio, at the row's own level."""
    right = 0
    for group in groups:
        own = learner.logprobs(group.rollouts)
        found = [logprobs[torch.tensor(r.mask)] for logprobs, r in zip(own, group.rollouts, strict=True)]
        if algorithm.needs.reference:
            other = learner.logprobs(group.rollouts, "reference")
            found = [p - q[torch.tensor(r.mask), 0] for p, q, r in zip(found, other, group.rollouts, strict=True)]
        shortest = min(len(each) for each in found)
        levelled = [level(algorithm, each.tolist(), shortest) for each in found]
        best, worst = best_and_worst(group)
        right += levelled[best] > levelled[worst]
    return right / len(groups)


def level(algorithm: Algorithm, log_ratios: Sequence[float], shortest: int) -> float:
    """Of one answer, by the row's ratio cell; `shortest` is the length of the shorter of two."""
    ratio = algorithm.ratio
    if ratio.kind == "sequence":
        return sum(log_ratios) / len(log_ratios)
    if ratio.kind == "desensitised":
        return sum(log_ratios[:shortest]) + ratio["ld_alpha"] * sum(log_ratios[shortest:])
    if ratio.kind == "discounted_sum":
        return sum(ratio["discount"] ** t * each for t, each in enumerate(log_ratios))
    assert ratio.kind == "sequence_sum"
    return sum(log_ratios)
