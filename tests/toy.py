"""A task that is learnt in a second: eight prompts, twelve tokens, responses of three, one right token per prompt.

The policy is a tiny network, but everything around it is the project's own: `ToyLearner` implements `Learner`,
`ToySampler` implements `Sampler`, and a toy grader has the `grade` of `Grader`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import Packing
from posttrain.learner import Policy
from posttrain.learner.accumulate import Passes, accumulate
from posttrain.learner.sharding import WHOLE
from posttrain.metrics import Report
from posttrain.rewards.pairwise import WinRates
from posttrain.rollout import Request
from posttrain.types import Batch, FinishReason, Prompt, Rollout, Sampling, Scored, Verdict

VOCABULARY, LENGTH, WIDTH = 12, 3, 32
PROMPTS = [Prompt(id=str(i), tokens=(i,), text=str(i), columns={"target": (3 * i + 1) % VOCABULARY}) for i in range(8)]
ASKED = torch.tensor([prompt.tokens[0] for prompt in PROMPTS])
TARGETS = torch.tensor([int(prompt.columns["target"]) for prompt in PROMPTS])


class Net(nn.Module):
    """Prompts `[S]` to log-probabilities `[S, 3, 12]` of the three tokens to come. `ways` to ask each question."""

    def __init__(self, ways: int = 1) -> None:
        super().__init__()
        self.prompt, self.place = nn.Embedding(ways * len(PROMPTS), WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        with torch.no_grad():
            # Nearly uniform at first: about 1/12 of all tokens hit, whatever the seed.
            self.head.weight.mul_(0.1)

    def forward(self, prompts: Tensor) -> Tensor:
        hidden = torch.tanh(self.prompt(prompts)[:, None] + self.place.weight)
        return self.head(hidden).log_softmax(-1)


class ValueNet(nn.Module):
    """Prompts `[S]` and responses `[S, 3]` to outputs `[S, 4, B]` at the states before each token and after the last.

    A state is worth what prompt and place say, plus what each earlier token at its place adds.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.start = nn.Embedding(len(PROMPTS) * (LENGTH + 1), bins)
        self.said = nn.Embedding(len(PROMPTS) * LENGTH * VOCABULARY, bins)
        for table in (self.start, self.said):
            nn.init.zeros_(table.weight)

    def forward(self, prompts: Tensor, said: Tensor) -> Tensor:
        before = self.start(prompts[:, None] * (LENGTH + 1) + torch.arange(LENGTH + 1))
        added = self.said((prompts[:, None] * LENGTH + torch.arange(LENGTH)) * VOCABULARY + said)
        return before + nn.functional.pad(added.cumsum(1), (0, 0, 1, 0))


class ToyLearner:
    """Implements `Learner`, but for what needs files or logits.

    `bins` are the outputs of its critic, `ways` those to ask each question. The first reference is the untrained
    policy, any others are as random.
    """

    def __init__(self, seed: int, rate: float, bins: int = 1, references: int = 1, ways: int = 1) -> None:
        torch.manual_seed(seed)
        # A step of 64 responses takes two micro-batches.
        self.packing, self.temperature, self.dtype = Packing(160), 1.0, torch.float32
        self.net, self.critic, self.version = Net(ways), ValueNet(bins), 0
        others = [Net(ways) for _ in range(references - 1)]
        self.references = [net.requires_grad_(False) for net in (copy.deepcopy(self.net), *others)]
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=0.02)
        self.frozen = False
        """Whether the critic stays as it is."""

    @torch.no_grad()
    def logprobs(self, rollouts: Sequence[Rollout], policy: Policy = "policy") -> list[Tensor]:
        tokens, said = (torch.tensor([getattr(r, name) for r in rollouts]) for name in ("tokens", "mask"))
        nets = [self.net] if policy == "policy" else self.references
        found = torch.stack([_after_prompt(_chosen(net(tokens[:, 0]), tokens)) for net in nets], dim=-1)
        found = torch.where(said[..., None], found, 0.0)
        return list(found[..., 0] if policy == "policy" else found)

    @torch.no_grad()
    def uniform(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        return list(_after_prompt(self.net(torch.tensor([r.tokens[0] for r in rollouts])).mean(-1)))

    @torch.no_grad()
    def values(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        tokens = torch.tensor([r.tokens for r in rollouts])
        return list(_after_prompt(self.critic(tokens[:, 0], tokens[:, 1:])))

    def logits(self, rollout: Rollout, dtype: torch.dtype | None = None, head: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def accumulate(
        self, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
    ) -> tuple[Report, list[Tensor]]:
        passes = Passes(lambda b: self._score(b, algorithm), Tensor.backward, WHOLE)
        return accumulate(passes, batches, algorithm, coefficients)

    def _score(self, batch: Batch, algorithm: Algorithm) -> Scored:
        tokens = batch.tokens.view(-1, LENGTH + 1)
        table = self.net(tokens[:, 0])
        kl = values = None
        if algorithm.kl.kind == "in_loss" and algorithm.kl["kl_estimator"] == "exact":
            each = [(table.exp() * (table - net(tokens[:, 0]))).sum(-1) for net in self.references]
            kl = _flat(torch.stack(each, dim=-1))
        if algorithm.needs.critic and (batch.returns is not None or algorithm.critic.kind == "joint"):
            values = _flat(self.critic(tokens[:, 0], tokens[:, 1:])[:, :-1])
        return Scored(
            logprobs=_flat(_chosen(table, tokens)),
            entropy=_flat(-(table.exp() * table).sum(-1)),
            kl=kl,
            values=values,
            uniform=_flat(table.detach().mean(-1)) if algorithm.needs.uniform else None,
            collision=_flat((2 * table.detach()).logsumexp(-1)) if algorithm.needs.collision else None,
        )

    def step(self, policy: bool = True) -> Report:
        if not self.frozen:
            self.critic_optimizer.step()
        if policy:
            self.optimizer.step()
            self.version += 1
        self.discard()
        return Report()

    def discard(self) -> None:
        self.optimizer.zero_grad()
        self.critic_optimizer.zero_grad()

    def snapshot(self) -> dict[str, Any]:
        policy = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**copy.deepcopy(policy), "version": self.version}

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        self.discard()
        self.net.load_state_dict(snapshot["net"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.version = snapshot["version"]

    @torch.no_grad()
    def refresh_reference(self, decay: float, momentum: float = 0.0) -> None:
        for mean, own in zip(self.references[0].parameters(), self.net.parameters(), strict=True):
            came = own - mean
            mean.mul_(decay).add_(own, alpha=1 - decay)
            own.add_(came, alpha=momentum)
        self.version += momentum > 0

    def reference_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.references[0].state_dict().items()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.net.state_dict().items()

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def table(self) -> Tensor:
        """`[8, 3, 12]`: every log-probability the policy has."""
        return self.net(ASKED)

    def reward(self) -> float:
        """The exact expected share of tokens that hit."""
        return float(self.table().exp()[torch.arange(len(TARGETS)), :, TARGETS].mean())

    def greedy_reward(self) -> float:
        """The share of hits where the likeliest token is said each time."""
        return float((self.table().argmax(-1) == TARGETS[:, None]).float().mean())

    def entropy(self) -> float:
        """Mean over all states, in nats."""
        return float(-(self.table().exp() * self.table()).sum(-1).mean())

    @torch.no_grad()
    def divergence(self) -> float:
        """Mean over all states of the exact KL(policy || first reference)."""
        own, other = self.table(), self.references[0](ASKED)
        return float((own.exp() * (own - other)).sum(-1).mean())


def _chosen(table: Tensor, tokens: Tensor) -> Tensor:
    """`[S, 3, 12]` and `[S, 4]` to `[S, 3]`: log-probabilities of what was said."""
    return table.gather(-1, tokens[:, 1:, None])[..., 0]


def _after_prompt(figures: Tensor) -> Tensor:
    """`[S, M, ...]` to `[S, 1 + M, ...]`: 0 at the prompt."""
    return torch.cat([torch.zeros_like(figures[:, :1]), figures], dim=1)


def _flat(figures: Tensor) -> Tensor:
    """`[S, 3, ...]` to `[4 S, ...]`, as a Batch lies."""
    return _after_prompt(figures).flatten(0, 1)


class ToySampler:
    """Implements `Sampler`. `cut` says, by seed and tokens, which responses count as cut at the token limit."""

    def __init__(self, cut: Callable[[int, Sequence[int]], bool] = lambda seed, said: False) -> None:
        self.net, self.cut = Net(), cut
        self.version: int | None = None

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.net.load_state_dict(dict(weights))
        self.version = version

    def sleep(self) -> None:
        pass

    def wake(self) -> None:
        pass

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        table = self.net(torch.tensor([r.prompt.tokens[0] for r in requests], dtype=torch.long))
        if sampling.temperature:
            draws = torch.tensor([_uniforms(r.seed) for r in requests], dtype=torch.float64).view(-1, LENGTH)
            below = table.double().exp().cumsum(-1)
            said = torch.searchsorted(below, draws[..., None] * below[..., -1:])[..., 0].clamp(max=VOCABULARY - 1)
        else:
            said = table.argmax(-1)
        logprobs = table.gather(-1, said[..., None])[..., 0].tolist()
        return [self._rollout(*parts, sampling) for parts in zip(requests, said.tolist(), logprobs, strict=True)]

    def _rollout(self, request: Request, said: list[int], logprobs: list[float], sampling: Sampling) -> Rollout:
        assert self.version is not None
        finish: FinishReason = "length" if self.cut(request.seed, said) else "stop"
        return Rollout(
            tokens=(*request.prompt.tokens, *said),
            mask=(False,) + (True,) * LENGTH,
            text=" ".join(map(str, said)),
            finish_reason=finish,
            logprobs=(0.0, *logprobs),
            versions=(-1,) + (self.version,) * LENGTH,
            seed=request.seed,
            sampling=sampling,
        )


def _uniforms(seed: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.random() for _ in range(LENGTH)]


def hits(prompt: Prompt, rollout: Rollout) -> list[bool]:
    """Token by token, whether it is the prompt's target."""
    return [token == prompt.columns["target"] for token in rollout.tokens[1:]]


def share(prompt: Prompt, rollout: Rollout) -> Verdict:
    """The share of tokens that hit."""
    return Verdict(sum(hits(prompt, rollout)) / LENGTH)


def spot_check(prompt: Prompt, rollout: Rollout) -> Verdict:
    """Right or wrong: whether one token hits, chosen by the response's seed. Its mean is the share."""
    assert rollout.seed is not None
    return Verdict(float(hits(prompt, rollout)[rollout.seed % LENGTH]))


def two_graders(prompt: Prompt, rollout: Rollout) -> Verdict:
    """One looks at the first token, the other at those after it; they weigh as many tokens as they see."""
    first, *others = hits(prompt, rollout)
    parts = {"first": float(first), "others": sum(others) / len(others)}
    return Verdict(sum(TWO[name] * part for name, part in parts.items()), parts=parts)


TWO = {"first": 1 / LENGTH, "others": 1 - 1 / LENGTH}


@dataclass(frozen=True)
class ToyGrader:
    """What `collect` needs of a grader: each response by itself."""

    judge: Callable[[Prompt, Rollout], Verdict] = share

    def grade(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> list[tuple[Verdict, ...]]:
        return [tuple(self.judge(prompt, r) for r in rollouts) for prompt, rollouts in groups]


def more_hits(completion: str, other: str, target: int) -> float:
    """The probability that `completion` is the better of two: 1, 1/2 or 0 by the number of hits."""
    own, others = (text.split().count(str(target)) for text in (completion, other))
    return 0.5 if own == others else float(own > others)


@dataclass(frozen=True)
class ToyDuel:
    """A grader of groups: each response is worth its win rate against the others."""

    rates: WinRates = field(default_factory=lambda: WinRates(more_hits))

    def grade(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> list[tuple[Verdict, ...]]:
        return [
            tuple(Verdict(rate) for rate in self.rates([r.text for r in rollouts], target=prompt.columns["target"]))
            for prompt, rollouts in groups
        ]
