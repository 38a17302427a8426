"""How many answers the maths verifier grades in a second, against Math-Verify's own parse and verify on the same pairs,
and what it gets right on MATH-500 and GSM8K.

python benchmarks/grade_answers.py [--data FOLDER] [--seeds N] [--rows N] [--json FILE]

The folder holds math500.jsonl (columns solution, answer), gsm8k_train.jsonl and gsm8k_test.jsonl (column answer). Exits
with 1 where a right answer is refused, or an accepted number is another one. What was accepted among MATH-500's
shuffled answers in another spelling is listed, to be read.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import math_verify

from posttrain_verifiers.math import Math, compare, extract
from posttrain_verifiers.mathematics import symbolic
from posttrain_verifiers.mathematics.exact import Comparison
from posttrain_verifiers.mathematics.reading import read

Pair = tuple[str, str]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def rows(folder: Path, name: str, limit: int | None) -> list[dict[str, str]]:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:limit]]


def decided(pair: Pair) -> bool:
    """Whether exact arithmetic alone gives the verdict."""
    return Comparison().equal(read(pair[0]), read(pair[1])) is not None


def theirs(found: str, gold: str) -> bool:
    """As its README calls it, without the timeout that starts a signal for every call."""
    known = math_verify.parse(f"${gold}$", parsing_timeout=None)
    said = math_verify.parse(f"${found}$", parsing_timeout=None)
    return bool(math_verify.verify(known, said, timeout_seconds=None))


def rate(grade: Callable[[str, str], bool | None], pairs: Sequence[Pair]) -> tuple[float, list[bool]]:
    """Verdicts in a second of processor time, and the verdicts."""
    started = time.process_time()
    verdicts = [bool(grade(*pair)) for pair in pairs]
    return len(pairs) / (time.process_time() - started), verdicts


def right_answers(problems: Sequence[dict[str, str]], sums: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Worked solutions against their own answers."""
    grade = Math()
    refused = [r["answer"] for r in problems if grade(r["solution"], answer=r["answer"]).score != 1.0]
    lost = [r["answer"] for r in sums if grade(r["answer"], answer=r["answer"]).score != 1.0]
    print(f"MATH-500 solutions against their answers: {len(problems) - len(refused)}/{len(problems)}", *refused[:5])
    print(f"GSM8K solutions against themselves: {len(sums) - len(lost)}/{len(sums)}", *lost[:5])
    return {"math500_refused": refused, "gsm8k_refused": lost}


def shuffled(problems: Sequence[dict[str, str]], seeds: int) -> dict[str, Any]:
    """Solutions graded against other problems' answers: what was accepted, once for each pair of different texts."""
    grade = Math()
    graded, same_text = 0, 0
    spellings: dict[Pair, int] = {}
    for seed in range(seeds):
        order = random.Random(seed).sample(range(len(problems)), len(problems))
        for row, at in zip(problems, order, strict=True):
            answer = problems[at]["answer"]
            if row is problems[at]:
                continue
            graded += 1
            if grade(row["solution"], answer=answer).score != 1.0:
                continue
            pair = (extract(row["solution"]) or "", answer)
            same_text += pair[0] == pair[1]
            if pair[0] != pair[1]:
                spellings[pair] = spellings.get(pair, 0) + 1
    accepted = same_text + sum(spellings.values())
    print(
        f"shuffled, {seeds} seeds: {graded} pairs, {accepted} accepted, {same_text} of them with the same text; others:"
    )
    for (found, gold), times in sorted(spellings.items()):
        print(f"  {found!r} = {gold!r} ({times}x)")
    return {"shuffled": graded, "accepted": accepted, "spellings": [list(pair) for pair in sorted(spellings)]}


def shuffled_sums(sums: Sequence[dict[str, str]], seeds: int) -> dict[str, Any]:
    """The same for GSM8K, whose answers are plain numbers: what was accepted is held against the numbers."""
    grade = Math()
    numbers = [float(row["answer"].rpartition("####")[2].replace(",", "")) for row in sums]
    equal, wrong = 0, []
    for seed in range(seeds):
        order = random.Random(seed).sample(range(len(sums)), len(sums))
        for i, j in enumerate(order):
            accepted = grade(sums[i]["answer"], answer=sums[j]["answer"]).score == 1.0
            equal += accepted
            if accepted != (numbers[i] == numbers[j]):
                wrong.append((numbers[i], numbers[j]))
    print(
        f"shuffled GSM8K, {seeds} seeds: {len(sums) * seeds} pairs, {equal} accepted, {len(wrong)} wrong verdicts",
        *wrong[:5],
    )
    return {"sums_accepted": equal, "sums_wrong": wrong}


def speed(problems: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Every answer against its solution's and against its neighbour's."""
    found = [extract(row["solution"]) or "" for row in problems]
    gold = [row["answer"] for row in problems]
    own = list(zip(found, gold, strict=True))
    pairs = own + list(zip(found, gold[1:] + gold[:1], strict=True))
    exact = [pair for pair in pairs if decided(pair)]
    share, share_own = len(exact) / len(pairs), sum(map(decided, own)) / len(own)
    symbolic.agree("x^2", "x*x")  # both compile their grammar before the clock starts
    once, again = (rate(compare, exact) for _ in range(2))
    their_rate, opinions = rate(theirs, exact)
    ours = max(once[0], again[0])
    print(f"decided exactly: {share:.1%} of {len(pairs)} pairs, {share_own:.1%} of MATH-500's answers")
    print(f"ours {ours:.0f} verdicts/s, Math-Verify {their_rate:.0f}/s, ratio {ours / their_rate:.1f}")
    differ = [(*p, a, b) for p, a, b in zip(exact, once[1], opinions, strict=True) if a != b]
    for left, right, we, they in differ[:20]:
        print(f"  {left!r}, {right!r}: ours {we}, Math-Verify {they}")
    return {"decided": share, "decided_own": share_own, "ours": ours, "math_verify": their_rate, "differ": differ}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, help="of each file; all of them by default")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    asked = parser.parse_args()
    problems = rows(asked.data, "math500.jsonl", asked.rows)
    sums = [row for name in ("train", "test") for row in rows(asked.data, f"gsm8k_{name}.jsonl", asked.rows)]
    figures = right_answers(problems, sums) | shuffled(problems, asked.seeds)
    figures |= shuffled_sums(sums, min(asked.seeds, 3)) | speed(problems)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(any(figures[name] for name in ("math500_refused", "gsm8k_refused", "sums_wrong")))


if __name__ == "__main__":
    raise SystemExit(main())
