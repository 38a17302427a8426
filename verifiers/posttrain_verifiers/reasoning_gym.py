"""Answers to reasoning_gym's problems, scored by the task that made them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from posttrain.types import Verdict


class ReasoningGym:
    """The task's own score in [0, 1], often with partial credit, of the answer found in a completion.

    `extract` says where the answer is: `last_line` (for a grid as many last lines as the known answer has), `tags`
    (the last `<answer>…</answer>`), or the `whole` completion. Tasks whose problems have no one answer (their column
    `answer` is None) may want answers of several lines: use `tags` or `whole` there.
    """

    version = "2"

    def __init__(self, extract: Literal["last_line", "tags", "whole"] = "last_line") -> None:
        if extract not in ("last_line", "tags", "whole"):
            raise ValueError(f"extract is 'last_line', 'tags' or 'whole', not {extract!r}")
        self.extract = extract
        self.scorers: dict[str, Callable[..., float]] = {}

    def prepare(self) -> None:
        # A second to import: in a worker, before the clock starts, and never in `posttrain check`.
        import reasoning_gym  # noqa: F401

    def __call__(
        self, completion: str, *, metadata: Mapping[str, Any], answer: str | None, question: str | None = None
    ) -> Verdict:
        """Score 0 and `unparsable` where there is no answer, or none that the task can read. Raises KeyError where
        `metadata` names no task, and what the task's scorer raises where the row itself cannot be scored."""
        found = self._found(completion, answer)
        if not found:
            return Verdict(0.0, "unparsable", reason=f"no answer found ({self.extract})")
        task = metadata["source_dataset"]
        said = "\n".join(" ".join(line.split()) for line in found.strip().split("\n"))
        entry = {"question": question or "", "answer": answer, "metadata": metadata}
        scorer = self._scorer(task)
        try:
            score = float(scorer(found, entry))
        except Exception as error:
            # Many scorers raise on an answer of another form. It is the row's fault only if the known answer fails too.
            scorer(answer or "", entry)
            return Verdict(0.0, "unparsable", reason=f"{task}: {type(error).__name__} for {found[:200]!r}")
        reason = f"{task}: extracted {found[:200]!r}, known answer {str(answer)[:200]!r}"
        return Verdict(score, reason=reason, answer=said)

    def _found(self, completion: str, answer: str | None) -> str:
        if self.extract == "tags":
            bodies = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", completion, re.DOTALL)
            return bodies[-1].strip("\n") if bodies and bodies[-1].strip() else ""
        if self.extract == "whole" or not completion.strip():
            return completion if completion.strip() else ""
        height = answer.strip("\n").count("\n") + 1 if answer else 1
        return "\n".join(completion.rstrip().split("\n")[-height:])

    def _scorer(self, task: str) -> Callable[..., float]:
        if task not in self.scorers:
            from reasoning_gym import get_score_answer_fn  # a second to import, see prepare

            self.scorers[task] = get_score_answer_fn(task)
        return self.scorers[task]
