"""Questions to verifiers that are asked while other responses are still drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from posttrain.errors import DataError
from posttrain.rewards.cache import VerdictCache
from posttrain.rewards.jobs import Asked, Groups, Job, jobs_of
from posttrain.rewards.worker import Part
from posttrain.types import Prompt, Rollout, Verdict

Submit = Callable[[Job], "Future[list[Part]]"]
Finish = Callable[[Groups, "Early"], list[tuple[Verdict, ...]]]


class Early:
    """A step's groups, of which each is graded as soon as its responses are there, with the verdicts that all of them
    get together: each question is the one that is asked then, and what is counted is counted then.

    Not asked early is a verifier that holds the cores (`alone`), which drawing needs. What a limit of time decided
    while drawing took its share of the cores is asked again once all is drawn.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        asked: Sequence[Asked],
        cache: VerdictCache | None,
        submit: Submit,
        finish: Finish,
    ) -> None:
        self.prompts, self.asked, self.cache = prompts, asked, cache
        self._submit, self._finish = submit, finish
        self._jobs: dict[int, list[Job]] = {}
        self._begun: dict[tuple[int, int, tuple[int, ...]], Future[list[Part]]] = {}

    def add(self, group: int, rollouts: Sequence[Rollout]) -> None:
        """All responses to the prompt of this number. Raises nothing: what is wrong with them `verdicts` finds too."""
        try:
            jobs = jobs_of(self.asked, group, self.prompts[group], rollouts)
        except DataError:
            return
        self._jobs[group] = jobs
        kept = self.cache.find(job.key for job in jobs) if self.cache else {}
        for job in jobs:
            if job.key not in kept and not self.asked[job.reward].signature.alone:
                self._begun[job.place] = self._submit(job)

    def verdicts(self, groups: Groups) -> list[tuple[Verdict, ...]]:
        """As `Grader.grade` gives them to these groups: the prompts', in their order. Raises what it raises."""
        return self._finish(groups, self)

    def jobs(self, group: int, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Job]:
        """The group's questions."""
        found = self._jobs.get(group)
        return jobs_of(self.asked, group, prompt, rollouts) if found is None else found

    def answer(self, job: Job) -> list[Part] | None:
        """What was answered early, waited for where it is not there yet; None where it is still to be asked."""
        begun = self._begun.pop(job.place, None)
        if begun is None:
            return None
        parts = begun.result()
        return None if any(part.status == "timeout" or not part.lasting for part in parts) else parts

    def cancel(self) -> None:
        """Ask nothing more of what nobody waits for."""
        for begun in self._begun.values():
            begun.cancel()
        self._begun.clear()
