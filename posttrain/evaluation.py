"""A benchmark is prompts and a grader: the same grader that rewards training. Every figure carries its interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from posttrain.metrics.figures import figures
from posttrain.metrics.results import Item, Sampled, judged, plain
from posttrain.metrics.unfinished import Unfinished
from posttrain.rollout import Request, Sampler, request_seed
from posttrain.rollout.collect import Grades
from posttrain.types import Group, Prompt, Rollout, Sampling, Verdict

DRAWN = {False: "evaluate", True: "greedy"}
"""The words that seeds and cached prefixes are told apart by: of samples, and of greedy responses."""


@dataclass(frozen=True)
class Benchmark:
    """Held-out problems and how they are measured."""

    prompts: Sequence[Prompt]
    grader: Grades
    samples: int
    """Completions per problem for avg@k; 0 for greedy ones only."""
    temperature: float
    max_tokens: int
    greedy: bool
    seed: int
    best_of: str | None = None
    """The grader whose favourite of n responses is measured by the others."""
    top_p: float = 1.0
    at_once: int = 256
    """Responses asked of the engine in one go, and kept: progress is known in between. A problem's stay together."""


@dataclass(frozen=True)
class Result:
    """`metrics` for the log, and every group behind them: sampled ones first, then greedy ones."""

    metrics: dict[str, float]
    groups: list[Group]


def evaluate(sampler: Sampler, benchmark: Benchmark, kept: Unfinished | None = None) -> Result:
    """Draw, grade and measure: see `metrics.figures`, whose names stand behind eval/ here. Parts that are `kept` are
    not drawn again, and those that are drawn are kept there.

    The seeds do not depend on the training step: two evaluations of the same weights are the same. Raises GradingError
    where nothing could be graded.
    """
    groups: list[Group] = []
    total = len(benchmark.prompts) * (benchmark.samples + benchmark.greedy)
    with _shown(total) as progress:
        for greedy in (False, True):
            if benchmark.greedy if greedy else benchmark.samples:
                rollouts = _drawn(sampler, benchmark, greedy, progress, kept)
                groups += _graded(benchmark, rollouts, progress)
    found = figures(items(benchmark, groups), benchmark.seed, benchmark.best_of)
    return Result({f"eval/{name}": value for name, value in found.items()}, groups)


def items(benchmark: Benchmark, groups: Sequence[Group]) -> tuple[Item, ...]:
    """The groups of an evaluation as a file of results keeps them, one item a problem."""
    count = len(benchmark.prompts) if benchmark.samples else 0
    responses: dict[str, list[Sampled]] = {prompt.id: [] for prompt in benchmark.prompts}
    for index, group in enumerate(groups):
        responses[group.prompt.id] += [
            _sampled(rollout, verdict, greedy=index >= count)
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        ]
    return tuple(
        Item(p.id, p.text, plain(p.columns)[0], tuple(responses[p.id]), tuple(p.tokens)) for p in benchmark.prompts
    )


def _sampled(rollout: Rollout, verdict: Verdict, greedy: bool) -> Sampled:
    tokens = tuple(token for token, said in zip(rollout.tokens, rollout.mask, strict=True) if said)
    said = Sampled(
        completion=rollout.text,
        score=None,
        status=verdict.status,
        reason="",
        parts={},
        answer=None,
        length=rollout.length,
        truncated=rollout.truncated,
        greedy=greedy,
        tokens=tokens,
        seed=rollout.seed,
    )
    return judged(said, verdict)


def _drawn(
    sampler: Sampler, benchmark: Benchmark, greedy: bool, progress: _Bar, kept: Unfinished | None
) -> list[tuple[Rollout, ...]]:
    """Every problem's responses, drawn in parts that do not depend on who asks."""
    word, size = DRAWN[greedy], 1 if greedy else benchmark.samples
    sampling = Sampling(temperature=0.0, max_tokens=benchmark.max_tokens)
    if not greedy:
        sampling = Sampling(benchmark.temperature, benchmark.max_tokens, top_p=benchmark.top_p)
    requests = [
        Request(prompt, request_seed(benchmark.seed, word, 0, prompt.id, k), word)
        for prompt in benchmark.prompts
        for k in range(size)
    ]
    rollouts: list[Rollout] = []
    at_once = max(size, benchmark.at_once // size * size)
    for start in range(0, len(requests), at_once):
        part = requests[start : start + at_once]
        prompts = [request.prompt for request in part]
        said = kept.get(word, start, prompts) if kept else None
        if said is None:
            said = sampler.generate(part, sampling)
            if kept:
                kept.keep(word, start, prompts, said)
        rollouts += said
        progress.note(len(part), "greedy responses" if greedy else "samples")
    return [tuple(rollouts[i * size : (i + 1) * size]) for i in range(len(benchmark.prompts))]


def _graded(benchmark: Benchmark, rollouts: Sequence[tuple[Rollout, ...]], progress: _Bar) -> list[Group]:
    """All of them at once: graders may compare a problem's responses."""
    verdicts = benchmark.grader.grade(list(zip(benchmark.prompts, rollouts, strict=True)), progress.graded)
    return [Group(*parts) for parts in zip(benchmark.prompts, rollouts, verdicts, strict=True)]


class _Bar:
    """A bar for a person who is watching."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._task = progress, progress.add_task("evaluating", total=total)

    def note(self, done: int, what: str) -> None:
        """So many more responses were drawn."""
        self._progress.update(self._task, advance=done, description=what, refresh=True)

    def graded(self, done: int, total: int) -> None:
        """So many of the questions to graders were answered."""
        self._progress.update(self._task, description=f"grading {done} of {total}")


@contextmanager
def _shown(total: int) -> Iterator[_Bar]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, total)


FIGURES = ("accuracy", "greedy", "preferred", "likelier", "nll", "margin")
"""What a summary says of the first and the last evaluation."""


def summary(before: dict[str, float], after: dict[str, float]) -> dict[str, float | None]:
    """The figures of a run's summary with their intervals, from the metrics of its first and last evaluation."""
    found: dict[str, float | None] = {}
    for when, line in (("before", before), ("after", after)):
        for name in FIGURES:
            for end in ("", "_low", "_high"):
                if f"eval/{name}{end}" in line or name in ("accuracy", "greedy"):
                    found[f"{name}_{when}{end}"] = line.get(f"eval/{name}{end}")
    return found
