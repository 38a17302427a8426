"""What travels between the stages. Each stage makes the next type; nothing is filled in later.

Nothing here imports torch at run time, so a recipe can be checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length", "given"]
"""`stop`: the policy ended its turn; `length`: cut at the token limit; `given`: read from a file."""

Author = Literal["policy", "data", "opponent"]
"""Who said a response: the policy that is trained, the data set, or another policy it plays against."""

Status = Literal["ok", "unparsable", "timeout", "error", "unavailable"]

Message = Mapping[str, str]
"""A chat message: `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The neutral values (1, 1, 0, 0) sample the policy itself."""

    temperature: float = 1.0
    """0 decodes greedily."""
    max_tokens: int = 256
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, as the exact token ids the engine will see. Hashable by its id; holds no tensors."""

    id: str
    tokens: tuple[int, ...]
    text: str
    """The rendered prompt, for people to read; never encoded again."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    """The whole data set row: what verifiers receive by name."""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response. All tuples have one entry per token, prompt included: `[T]`."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True where the policy said the token; prompt, tool and template tokens are False."""
    text: str
    """The policy's words without special tokens: what verifiers read."""
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None
    """The engine's log-probability of each token when it was drawn, 0 where the mask is False; None offline."""
    versions: tuple[int, ...] | None = None
    """The weight version that drew each token, -1 where the mask is False; None offline."""
    seed: int | None = None
    sampling: Sampling | None = None
    author: Author = "policy"

    def __post_init__(self) -> None:
        for name in ("mask", "logprobs", "versions"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.tokens):
                raise ValueError(f"Rollout.{name} has {len(value)} entries for {len(self.tokens)} tokens")

    @property
    def length(self) -> int:
        """How many tokens the policy said."""
        return sum(self.mask)

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a response is worth. `score` None means not graded: never trained on, never a silent zero."""

    score: float | None
    status: Status = "ok"
    parts: Mapping[str, float | None] = field(default_factory=dict, hash=False)
    """Each grader's own score before weighting, by name."""
    reason: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    """Shares of the score that belong to a token: (index among the tokens the policy said, reward). What they leave of
    the score belongs to the last token.
    """
    answer: str | None = None
    """What was taken for the answer, written so that equal answers are equal texts; None where none can be told."""
    lasting: bool = True
    """Whether the same would be said on another day: of what ran into a limit of time that is not known."""
    offset: float | None = None
    """A response's part of its group's margins, where its score does not say it: a margin is the difference of two."""

    def __post_init__(self) -> None:
        if self.score is None and self.steps:
            raise ValueError("a verdict without a score cannot carry step rewards")
        if not all(abs(reward) < float("inf") for _, reward in self.steps):
            raise ValueError(f"Verdict.steps must be finite, not {self.steps}")
        if self.score is not None and (self.score != self.score or abs(self.score) == float("inf")):
            raise ValueError(f"Verdict.score must be finite or None, not {self.score}")
        if self.status in ("timeout", "error", "unavailable") and self.score is not None:
            raise ValueError(f"a verdict with status {self.status!r} cannot carry a score ({self.score})")
        if self.status == "ok" and self.score is None:
            raise ValueError("a verdict with status 'ok' needs a score")


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt, its K responses and what they are worth: the unit of comparison, filtering and logging."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]
    greedy: Verdict | None = None
    """Of one greedy response to the same prompt, where the algorithm asks for it."""

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.verdicts):
            raise ValueError(f"{len(self.rollouts)} rollouts with {len(self.verdicts)} verdicts")


@dataclass(frozen=True, slots=True)
class Annotation:
    """What the learner adds to a group, and only what the algorithm's needs ask for; one tensor per rollout."""

    previous: Sequence[Tensor] | None = None
    """`[T]` log-probabilities under the trainer's weights before the first update on this batch."""
    reference: Sequence[Tensor] | None = None
    """`[T, R]` log-probabilities under each of the R reference policies."""
    values: Sequence[Tensor] | None = None
    """`[T + 1, B]` the critic's outputs at the state before each token, and after the last one."""
    uniform: Sequence[Tensor] | None = None
    """`[T]` log-probabilities averaged over the vocabulary, under the weights of `previous`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A rollout with what it teaches; per-token tensors `[T]` on the CPU."""

    rollout: Rollout
    group: int
    """Index of its group in the optimiser step: rows of one group may share their prompt."""
    mask: Tensor
    """[T] bool: the tokens that are learnt from."""
    advantages: Tensor
    score: float = 0.0
    """What the whole response was worth, after shaping, scaling and penalties."""
    offset: float | None = None
    """Its part of its group's margins, where that is not the score."""
    previous: Tensor | None = None
    reference: Tensor | None = None
    """[T, R]."""
    returns: Tensor | None = None
    """What the critic should have said of the state before each token."""
    values: Tensor | None = None
    """What it said."""
    uniform: Tensor | None = None
    ends: Tensor | None = None
    """[T]: 1 at the last token of a step."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch, all tokens end to end: every tensor is `[N]` except `lengths`, `groups`, `scores`, `offsets`,
    `index`, `author` `[S]`, and `reference` `[N, R]`.
    """

    tokens: Tensor
    position: Tensor
    segment: Tensor
    """Which of the S sequences a token belongs to."""
    mask: Tensor
    behaviour: Tensor
    """The engine's log-probabilities; 0 outside the mask."""
    advantages: Tensor
    lengths: Tensor
    groups: Tensor
    scores: Tensor
    offsets: Tensor
    """[S]: a group's margins are the differences of these."""
    index: Tensor
    """[S]: which of the optimiser step's samples each sequence is."""
    author: Tensor
    """[S]: who said it, as `posttrain.objectives.sets` counts."""
    total_tokens: int
    """Masked tokens of the whole optimiser step: a denominator, whatever the micro-batch."""
    total_sequences: int
    """Sequences of the whole optimiser step that have a masked token."""
    total_groups: int = 1
    """Groups of the whole optimiser step that have such a sequence."""
    previous: Tensor | None = None
    reference: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None
    uniform: Tensor | None = None
    ends: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """What the learner's forward pass says of a Batch; 0 outside the mask, and only what the algorithm asks for."""

    logprobs: Tensor
    """`[N]`, with gradient."""
    entropy: Tensor
    """`[N]`, with gradient where the algorithm seeks entropy."""
    kl: Tensor | None = None
    """`[N, R]` exact KL(policy || reference), with gradient."""
    values: Tensor | None = None
    """`[N, B]` outputs of the critic, or of a reward model after the token, with gradient."""
    uniform: Tensor | None = None
    """`[N]` log-probabilities averaged over the vocabulary, without gradient."""
    collision: Tensor | None = None
    """`[N]` log of the probability that two draws of the token are the same one, without gradient."""
    states: Tensor | None = None
    """`[N, H]` last hidden states of a reward model after the token, with gradient."""
