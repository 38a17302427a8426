"""A model behind a chat endpoint as a judge of responses, one by one or two by two.

A judge can be wrong, talked into things, and partial to length, to its own style and to what it reads first. Measure it
against known verdicts before anything is trained on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from posttrain.types import Verdict
from posttrain_verifiers.judges.asking import Asking
from posttrain_verifiers.judges.prompts import PAIR, SINGLE, as_text
from posttrain_verifiers.judges.scale import Parse, Scale


@dataclass(eq=False, kw_only=True)
class Judge(Asking):
    """Each response's score, as a share of the scale, in [0, 1]; or what the judge's word is worth.

    The template's placeholders are `{completion}`, `{prompt}` (what was asked) and columns. A group is judged at once,
    equal responses once. Without a readable score after a second try the verdict is `unparsable` and has none.
    """

    parse: Parse = "number"
    scale: tuple[float, float] = (1.0, 10.0)
    """The worst and the best number."""
    words: Mapping[str, float] = field(default_factory=dict)
    """What each word of `parse: words` is worth."""
    mark: str = "Score"
    """What the judge writes before its score."""

    foreign: ClassVar[tuple[str, ...]] = ("completion",)
    given: ClassVar[tuple[str, ...]] = ("prompt",)
    default_template: ClassVar[str] = SINGLE

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale
        self._scale = Scale(self.parse, float(low), float(high), self.words, self.mark, self.bound)
        self.__signature__: inspect.Signature = self._needs("prompts", "completions", columns=self._names)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[Verdict]:
        """One verdict per response, its `said` what the judge wrote on its own scale."""
        questions = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            own = {name: as_text(columns[self._column(name)][i]) for name in self._names}
            questions.append({**own, "prompt": as_text(prompt), "completion": as_text(completion)})
        return self._run(questions, self._scale)


@dataclass(eq=False, kw_only=True)
class Comparing(Asking):
    """Which of two responses a judge prefers: 1 for the one, 0 for the other, .5 for a tie, the mean of both orders.

    The template's placeholders are `{first}`, `{second}`, `{prompt}` and columns.
    """

    both_orders: bool = True
    """Ask twice, each response first once: what a judge prefers for its place cancels."""

    foreign: ClassVar[tuple[str, ...]] = ("first", "second")
    default_template: ClassVar[str] = PAIR

    def __post_init__(self) -> None:
        super().__post_init__()
        words = {"first": 1.0, "second": 0.0, "tie": 0.5}
        self._scale = Scale("words", words=words, mark="Better", bound=self.bound)

    def _preferences(self, pairs: Sequence[tuple[str, str]], own: Mapping[str, str]) -> list[Verdict]:
        """Of each pair the preference for its first text; all are asked at once. Equal texts are a tie."""
        orders = [[(a, b), (b, a)] if self.both_orders else [(a, b)] for a, b in pairs if a != b]
        questions = [{**own, "first": a, "second": b} for order in orders for a, b in order]
        said = iter(self._run(questions, self._scale))
        tie = Verdict(0.5, reason="equal texts")
        return [tie if a == b else _joined([next(said) for _ in range(1 + self.both_orders)]) for a, b in pairs]

    def _win_rates(self, texts: Sequence[str], own: Mapping[str, str]) -> list[Verdict | None]:
        """Of each text its mean preference over all others (2401.04056); no score where a comparison has none."""
        pairs = [(i, j) for i in range(len(texts)) for j in range(i + 1, len(texts))]
        found = self._preferences([(texts[i], texts[j]) for i, j in pairs], own)
        games = list(zip(pairs, found, strict=True))
        return [_win_rate([(i == pair[0], v) for pair, v in games if i in pair]) for i in range(len(texts))]


@dataclass(eq=False, kw_only=True)
class PairJudge(Comparing):
    """A grader of pairs, for algorithms that ask for one: `{prompt}` too is a column."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.__signature__: inspect.Signature = self._needs("completion", "other", columns=self._names)

    def __call__(self, completion: str, other: str, **columns: Any) -> float:
        """The probability that `completion` is the better one. Raises ConnectionError or ValueError where there is no
        verdict, with its reason.
        """
        verdict = self.compare(completion, other, **columns)
        if verdict.score is None:
            kind = ConnectionError if verdict.status == "unavailable" else ValueError
            raise kind(f"{verdict.status}: {verdict.reason}")
        return verdict.score

    def compare(self, completion: str, other: str, **columns: Any) -> Verdict:
        """The preference, by order `as_first` and `as_second`; its reason says where the orders disagree."""
        (verdict,) = self._preferences([(completion, other)], self._own(columns))
        return verdict

    def win_rates(self, texts: Sequence[str], **columns: Any) -> list[Verdict | None]:
        """Of each response the mean over all others, with all comparisons in flight at once; None for a lone one."""
        return self._win_rates(texts, self._own(columns))

    def _own(self, columns: Mapping[str, Any]) -> dict[str, str]:
        return {name: as_text(columns[self._column(name)]) for name in self._names}


@dataclass(eq=False, kw_only=True)
class WinRate(Comparing):
    """A grader of groups: each response is worth its win rate against the others, its `disagrees` the share of its
    comparisons in which the orders disagreed.
    """

    given: ClassVar[tuple[str, ...]] = ("prompt",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.__signature__: inspect.Signature = self._needs("prompts", "completions", columns=self._names)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[Verdict | None]:
        """One verdict per response; None for a lone one, which has nothing to be compared with."""
        own = {name: as_text(columns[self._column(name)][0]) for name in self._names}
        return self._win_rates([as_text(text) for text in completions], {**own, "prompt": as_text(prompts[0])})


def _joined(orders: Sequence[Verdict]) -> Verdict:
    """The preference that both orders say together; no score where one has none."""
    for verdict in orders:
        if verdict.score is None:
            return verdict
    scores = [v.score if i == 0 else 1 - v.score for i, v in enumerate(orders) if v.score is not None]
    parts: dict[str, float | None] = dict(zip(("as_first", "as_second"), scores, strict=False))
    reason = "; ".join(v.reason for v in orders)
    if len(scores) == 2:
        parts["disagrees"] = float((scores[0] - 0.5) * (scores[1] - 0.5) < 0)
        reason = ("the orders disagree: " if parts["disagrees"] else "") + reason
    return Verdict(sum(scores) / len(scores), parts=parts, reason=reason)


def _win_rate(games: Sequence[tuple[bool, Verdict]]) -> Verdict | None:
    """The mean of one text's preferences. Each verdict speaks for its pair's first text, which this is or is not."""
    if not games:
        return None
    for _, verdict in games:
        if verdict.score is None:
            return verdict
    won = [v.score if own else 1 - v.score for own, v in games if v.score is not None]
    disagreed = sum(v.parts.get("disagrees") or 0.0 for _, v in games)
    reason = f"the orders disagree in {disagreed:.0f} of {len(games)} comparisons" if disagreed else ""
    return Verdict(sum(won) / len(won), parts={"disagrees": disagreed / len(games)}, reason=reason)
