"""Held-out problems that stand in the training prompts: word for word, or in part. No tokenizer, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.data.questions import Asked, normalised, questions, units_of
from posttrain.errors import DataError
from posttrain.types import Prompt

ANSWERS = ("answer", "solution", "canonical_solution", "code", "completion", "target", "label")
"""Columns whose equality says that two problems have the same answer: the first that both rows have."""

LIKELY = 0.5
"""From this share of its word runs on, a held-out problem is probably known."""
COMMON = 50
"""A run that more held-out problems have is a common phrase."""
SHOWN, CUT = 5, 120


@dataclass(frozen=True, slots=True)
class Match:
    """A held-out problem, and the training prompt that shares most with it."""

    held: str
    train: str
    """Ids, or indices where texts came without."""
    share: float
    """Of the held-out problem's word runs, those that stand in any training prompt."""
    same_answer: bool | None
    """Whether both have the same answer; None where one of them has none."""
    text: str
    """The held-out problem, cut."""


@dataclass(frozen=True, slots=True)
class Contamination:
    """How much of the held-out problems the training prompts hold."""

    n: int
    """Words in a run."""
    train: int
    held: int
    duplicates: tuple[Match, ...]
    """Equal but for case, spaces and the punctuation of sentences."""
    overlaps: tuple[Match, ...]
    """Others that share a run of n words, largest share first."""

    def report(self) -> str:
        """A few lines for people."""
        likely = [match for match in self.overlaps if match.share >= LIKELY]
        lines = [
            f"contamination: of {self.held} held-out problems {len(self.duplicates)} are training prompts but for "
            f"case, spaces and punctuation ({len(self.answered(self.duplicates))} with the same answer); "
            f"{len(self.overlaps)} more share {self.n} words in a row with one of {self.train} "
            f"({len(self.answered(self.overlaps))} with the same answer), {len(likely)} of them {LIKELY:.0%} of their "
            "runs or more"
        ]
        lines += [f"  {match.held} = {match.train}: {match.text}" for match in self.duplicates[:SHOWN]]
        # Known problems with known answers come first: they are worse.
        worst = [*self.answered(self.overlaps), *(m for m in self.overlaps if not m.same_answer)]
        for match in worst[:SHOWN]:
            same = ", same answer" if match.same_answer else ""
            lines.append(f"  {match.held}: {match.share:.0%}, most in {match.train}{same}: {match.text}")
        return "\n".join(lines)

    def answered(self, matches: Sequence[Match]) -> list[Match]:
        """Those whose answer is known, too."""
        return [match for match in matches if match.same_answer]

    def as_json(self) -> dict[str, Any]:
        """Counts, and every match by its fields."""
        return {
            "words": self.n,
            "train": self.train,
            "held_out": self.held,
            "duplicates": [asdict(match) for match in self.duplicates],
            "overlaps": [asdict(match) for match in self.overlaps],
            "same_answer": len(self.answered([*self.duplicates, *self.overlaps])),
        }

    def refuse(self) -> None:
        """Raise DataError where held-out problems stand in training, naming them."""
        if self.duplicates:
            raise DataError(
                f"data.eval: {len(self.duplicates)} of {self.held} problems also stand in data.train but for case, "
                f"spaces and punctuation: {_listed(self.duplicates)}; take these rows out of data.train, or hold out "
                "another split, file or range of rows (skip, limit)"
            )


@dataclass(slots=True)
class _Seen:
    """What has been seen of one held-out problem while training prompts pass by."""

    grams: frozenset[int]
    best: tuple[int, int] = (0, -1)
    """Most runs shared with one training prompt, and its index."""
    equal: int | None = None


def contamination(train: Asked, held: Asked, n: int = 13) -> Contamination:
    """Which held-out problems stand in training prompts, and which share runs of n words with one.

    Words are numbers and runs of letters, case-folded. A problem of fewer than n words shares what is wholly equal to
    it only. Runs that more than half of the held-out problems have (at least three) are the words of a template and
    count for nothing. Of a Prompt the question is compared, as its columns have it, so that chat templates, system
    prompts and worked examples do not count; texts are compared as they are. The first of several training prompts
    that share as much is named. Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"runs of {n} words")
    texts = questions(held)
    wholes, problems = _indexed(texts, n)
    first = _pass_by(train, n, wholes, problems)
    duplicates: list[Match] = []
    overlaps: list[Match] = []
    for index, problem in enumerate(problems):
        met = problem.grams & first.keys()
        other = problem.equal
        if other is None and met:
            other = problem.best[1] if problem.best[0] else min(first[gram] for gram in met)
        if other is None:
            continue
        share = 1.0 if problem.equal is not None else len(met) / len(problem.grams)
        text = " ".join(texts[index].split())
        text = text if len(text) <= CUT else f"{text[: CUT - 1]}…"
        same = _same_answer(held[index], train[other])
        match = Match(_id(held[index], index), _id(train[other], other), share, same, text)
        (overlaps if problem.equal is None else duplicates).append(match)
    overlaps.sort(key=lambda match: -match.share)
    return Contamination(n, len(train), len(held), tuple(duplicates), tuple(overlaps))


def _indexed(texts: Sequence[str], n: int) -> tuple[dict[str, list[_Seen]], list[_Seen]]:
    """Held-out problems, and by their whole normalised text."""
    units = [units_of(text) for text in texts]
    grams = [_grams(row, n) for row in units]
    counts = Counter(gram for row in grams for gram in row)
    template = {gram for gram, count in counts.items() if count >= 3 and 2 * count > len(grams)}
    problems = [_Seen(frozenset(row - template)) for row in grams]
    wholes: dict[str, list[_Seen]] = {}
    for row, problem in zip(units, problems, strict=True):
        wholes.setdefault(" ".join(row), []).append(problem)
    return wholes, problems


def _pass_by(train: Asked, n: int, wholes: dict[str, list[_Seen]], problems: Sequence[_Seen]) -> dict[int, int]:
    """Note what each training prompt shares with problems. Gives, of each run that they share, the first prompt's
    index.

    Training prompts' runs are many: they are looked up one prompt at a time and never kept.
    """
    owners: dict[int, list[_Seen]] = {}
    for problem in problems:
        for gram in problem.grams:
            owners.setdefault(gram, []).append(problem)
    first: dict[int, int] = {}
    for index, text in enumerate(questions(train)):
        units = units_of(text)
        for problem in wholes.get(" ".join(units), ()):
            problem.equal = index if problem.equal is None else problem.equal
        counts: Counter[int] = Counter()
        met: dict[int, _Seen] = {}
        for gram in owners.keys() & _grams(units, n):
            first.setdefault(gram, index)
            # A common phrase says nothing of which prompt a problem was taken from, and would make this quadratic.
            if len(owners[gram]) <= COMMON:
                for problem in owners[gram]:
                    counts[id(problem)] += 1
                    met[id(problem)] = problem
        for key, problem in met.items():
            if counts[key] > problem.best[0]:
                problem.best = counts[key], index
    return first


def _grams(units: Sequence[str], n: int) -> set[int]:
    """Hashes of all runs of n words: of 64 bits, so that two of a hundred million different ones are rarely equal."""
    words = [unit for unit in units if unit[0].isalnum()]
    return set(map(hash, zip(*(words[start:] for start in range(n)), strict=False)))


def _listed(matches: Sequence[Match]) -> str:
    more = f" and {len(matches) - SHOWN} more" if len(matches) > SHOWN else ""
    return ", ".join(f"{match.held} = {match.train}" for match in matches[:SHOWN]) + more


def _id(row: Prompt | str, index: int) -> str:
    return row.id if isinstance(row, Prompt) else str(index)


def _same_answer(a: Prompt | str, b: Prompt | str) -> bool | None:
    if isinstance(a, str) or isinstance(b, str):
        return None
    column = next((c for c in ANSWERS if a.columns.get(c) is not None and b.columns.get(c) is not None), None)
    return None if column is None else _final(a.columns[column]) == _final(b.columns[column])


def _final(answer: Any) -> str:
    """What an answer comes to: behind its last ####, where it is a worked solution of that kind."""
    return normalised(str(answer).rpartition("####")[2])
