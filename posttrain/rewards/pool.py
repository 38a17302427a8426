"""Workers that grade side by side: jobs go in, parts come out, and no call is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Self, TypeVar

from posttrain.errors import GradingError
from posttrain.recipe import Reward
from posttrain.rewards.cache import VerdictCache
from posttrain.rewards.jobs import Job
from posttrain.rewards.worker import START_LIMIT, Part, Worker, call, probe

T = TypeVar("T")


class Pool:
    """`count` processes, each with all of a recipe's verifiers. A context manager: they start when it is entered and
    are gone when it is left.
    """

    def __init__(self, rewards: Sequence[Reward], count: int, start_limit: float = START_LIMIT) -> None:
        self.rewards = tuple(rewards)
        self.count = count
        self.start_limit = start_limit
        self._workers: list[Worker] = []
        self._starting: list[Future[tuple[int, list[str]]]] = []
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start the workers and wait until each has its verifiers. Raises GradingError where one cannot have them."""
        self.begin()
        try:
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Start the workers, and go on while they load their verifiers. `wait` and the first question wait for them."""
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="grader")
        self._workers = [Worker(self.rewards, self.start_limit) for _ in range(self.count)]
        self._starting = self._probes()

    def wait(self) -> None:
        """Until each worker has its verifiers. Raises GradingError where one cannot have them."""
        if self._starting:
            self._answers(self._starting)
            self._starting = []
            for worker in self._workers:
                self._idle.put(worker)

    def close(self) -> None:
        """End the workers, busy or not."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._workers, self._starting, self._threads = [], [], None

    @property
    def open(self) -> bool:
        """Whether there are workers to ask."""
        return self._threads is not None

    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers, each of which has just answered; not while jobs run."""
        self.wait()
        return tuple(pid for pid, _ in self._answers(self._probes()))

    def _probes(self) -> list[Future[tuple[int, list[str]]]]:
        """A question to each worker, which it answers once it has its verifiers."""
        assert self._threads is not None, "a Pool is used inside `with`"
        return [self._threads.submit(worker.run, probe, limit=self.start_limit) for worker in self._workers]

    def _answers(self, asked: Sequence[Future[tuple[int, list[str]]]]) -> list[tuple[int, list[str]]]:
        try:
            answers = [each.result() for each in asked]
        except (TimeoutError, ChildProcessError) as error:
            raise GradingError(f"a grading worker did not start within {self.start_limit:.0f} s: {error}") from None
        for _, problems in answers:
            if problems:
                raise GradingError(f"a grading worker could not load its verifiers: {problems[0]}")
        return answers

    def map(self, function: Callable[[Job], T], jobs: Sequence[Job]) -> Iterator[T]:
        """What a function that calls `ask` makes of each job, in their order, as many at a time as workers."""
        assert self._threads is not None, "a Pool is used inside `with`"
        self.wait()
        return self._threads.map(function, jobs)

    def submit(self, function: Callable[[Job], T], job: Job) -> Future[T]:
        """What such a function makes of one job, once a worker is free."""
        assert self._threads is not None, "a Pool is used inside `with`"
        self.wait()
        return self._threads.submit(function, job)

    def ask(self, job: Job, timeout: float, retries: int) -> list[Part]:
        """A job's parts, one per member, after at most `timeout` seconds for each; failures after the retries are parts
        too.
        """
        limit = timeout * len(job.members)
        answer: list[Part] | str = ""
        for _ in range(1 + retries):
            worker = self._idle.get()
            try:
                answer = worker.run(call, job.payload, job.count, limit, limit=limit)
            except TimeoutError:
                reason = f"{job.label}: no answer within {limit:g} s, its worker was killed"
                return [Part(None, "timeout", reason, seconds=timeout)] * len(job.members)
            except ChildProcessError as error:
                answer = f"ChildProcessError: {error}"
            finally:
                self._idle.put(worker)
            if not isinstance(answer, str):
                return answer
        return [Part(None, "error", f"{job.label}: {answer}")] * len(job.members)


def with_kept(
    jobs: Sequence[Job], cache: VerdictCache | None, ask: Callable[[Sequence[Job]], Iterator[list[Part]]]
) -> Iterator[list[Part]]:
    """Each job's parts, in order: kept ones, and of the others what `ask` yields, which is kept. Nothing is asked where
    all are kept.
    """
    kept = cache.find(job.key for job in jobs) if cache else {}
    unknown = [job for job in jobs if job.key is None or job.key not in kept]
    answers = ask(unknown) if unknown else iter(())
    fresh: dict[bytes, Part] = {}
    try:
        for job in jobs:
            if job.key is not None and job.key in kept:
                yield [kept[job.key]]
                continue
            parts = next(answers)
            if job.key is not None and parts:
                fresh[job.key] = parts[0]
            yield parts
    finally:
        # Also of a batch that is interrupted: what was graded need not be graded again.
        if cache:
            cache.keep(fresh)
