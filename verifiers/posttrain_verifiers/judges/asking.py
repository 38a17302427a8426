"""The settings that all judges share, and one question asked until its answer can be read."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from posttrain.types import Verdict
from posttrain_verifiers.judges.endpoint import Endpoint, Limits, RefusedError, Session, UnavailableError, api_key
from posttrain_verifiers.judges.ledger import Budget, Ledger, default_folder
from posttrain_verifiers.judges.prompts import Template, read_template
from posttrain_verifiers.judges.scale import Scale

READINGS = 2
"""How often an answer is asked for until it can be read."""
QUOTED = 200
"""Characters of a judge's answer that its verdict quotes."""


@dataclass(eq=False, kw_only=True)
class Asking:
    """A model behind an OpenAI-compatible chat endpoint. Raises ValueError for settings that contradict themselves.

    Answers are kept by content in `cache`, and so is what was spent: processes, resumes and runs with one folder share
    both. No answer for a reason that is not the response's (no server, status 429 or 500, too late, nothing left of the
    budget) is a verdict `unavailable` without a score.
    """

    endpoint: str
    """Up to and with the version: http://127.0.0.1:8000/v1."""
    model: str
    template: str | None = None
    template_file: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of a placeholder the column it stands for, where that has another name."""
    bound: bool = True
    """Ask the judge to repeat a word with its score that the judged text cannot know. Without it, a last line that
    stands in the judged text too is not read."""
    temperature: float | None = 0.0
    """None leaves it to the server."""
    max_tokens: int = 1024
    """Of an answer; one that is cut has no score."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request."""
    requests_per_minute: int | None = None
    """Of all processes that share the cache."""
    concurrency: int = 8
    """Requests in flight at one time, in each grading process."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """requests, tokens, cost with prompt_price and answer_price: what may be spent on this model in this cache."""
    cache: str | None = None
    """A folder; POSTTRAIN_CACHE or the user's cache folder where empty."""
    api_key_env: str | None = None
    """The environment variable that holds the key."""
    timeout: float = 60.0
    """Seconds for one verdict, tries and pauses included; `grading.timeout` has to be longer."""
    retries: int = 2

    foreign: ClassVar[tuple[str, ...]] = ()
    """Placeholders of what a policy wrote."""
    given: ClassVar[tuple[str, ...]] = ()
    """Placeholders of what the Grader brings beside columns."""
    default_template: ClassVar[str] = ""
    _endpoint: Endpoint | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: {self.endpoint!r} is no address; write http://host:port/v1")
        if self.temperature is not None and not self.temperature >= 0:
            raise ValueError(f"temperature: {self.temperature:g} must be at least 0")
        for key, least in (("max_tokens", 1), ("concurrency", 1), ("retries", 0), ("requests_per_minute", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"{key}: {value} must be at least {least}")
        for key in self.extra:
            if key in ("model", "messages", "stream", "n", "max_tokens", "temperature"):
                raise ValueError(f"extra.{key}: it is not free; there is a setting for what may be chosen")
        if not self.timeout > 0:
            raise ValueError(f"timeout: {self.timeout:g} must be above 0")
        self._limits = Limits(
            self.timeout, self.retries, self.concurrency, self.requests_per_minute, Budget.of(self.budget)
        )
        self._template = Template(read_template(self.template, self.template_file, self.default_template), self.foreign)
        for name in self.columns:
            if name not in self._names:
                raise ValueError(f"columns.{name}: the template has no placeholder {{{name}}} that stands for a column")

    def prepare(self) -> None:
        """Open the ledger. Raises ValueError without it, or without the key."""
        self._key = api_key(self.api_key_env)
        chosen: dict[str, Any] = {"max_tokens": self.max_tokens}
        chosen |= {} if self.temperature is None else {"temperature": self.temperature}
        folder = default_folder() if self.cache is None else Path(self.cache).expanduser()
        self._endpoint = Endpoint(self.endpoint, self.model, {**chosen, **self.extra}, self._limits, Ledger(folder))

    @property
    def _names(self) -> tuple[str, ...]:
        """The template's placeholders that are columns."""
        return tuple(name for name in self._template.names if name not in (*self.foreign, *self.given))

    def _column(self, placeholder: str) -> str:
        return self.columns.get(placeholder, placeholder)

    def _needs(self, *positional: str, columns: Sequence[str]) -> inspect.Signature:
        """What the Grader is told to bring: the columns that the template names, before anything is asked."""
        kinds = inspect.Parameter
        required = dict.fromkeys(map(self._column, columns))
        return inspect.Signature(
            [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in positional]
            + [kinds(name, kinds.KEYWORD_ONLY) for name in required if name not in positional]
        )

    def _run(self, questions: Sequence[Mapping[str, str]], scale: Scale) -> list[Verdict]:
        """One verdict per question, with several in flight."""
        if self._endpoint is None:
            self.prepare()
        assert self._endpoint is not None
        return asyncio.run(self._together(self._endpoint, questions, scale))

    async def _together(
        self, endpoint: Endpoint, questions: Sequence[Mapping[str, str]], scale: Scale
    ) -> list[Verdict]:
        """Equal questions are asked once."""
        keys = [json.dumps(question, sort_keys=True) for question in questions]
        unique = dict(zip(keys, questions, strict=True))
        async with endpoint.session(self._key) as session:
            found = await asyncio.gather(*(self._judge(session, question, scale) for question in unique.values()))
        verdicts = dict(zip(unique, found, strict=True))
        return [verdicts[key] for key in keys]

    async def _judge(self, session: Session, values: Mapping[str, str], scale: Scale) -> Verdict:
        async with session.room:
            return await self._converse(session, values, scale, time.monotonic() + self.timeout)

    async def _converse(self, session: Session, values: Mapping[str, str], scale: Scale, deadline: float) -> Verdict:
        """One question until its answer can be read, or there is no time left."""
        nonce = self._template.nonce(values)
        question = f"{self._template.fill(values, nonce)}\n\n{scale.ending(nonce)}"
        messages = [{"role": "user", "content": question}]
        written = [values[name] for name in self.foreign]
        said = ""
        for _ in range(READINGS):
            try:
                answer = await session.ask(messages, deadline)
            except UnavailableError as error:
                return Verdict(None, "unavailable", reason=f"{self.model} at {self.endpoint}: {error}")
            except RefusedError as error:
                return Verdict(None, "error", reason=f"{self.model} at {self.endpoint} refused: {error}")
            said = f"{answer.text.strip()[-QUOTED:]}" + (" (cut)" if answer.finish == "length" else "")
            # A number that is cut is another number.
            value = None if answer.finish == "length" else scale.read(answer.text, nonce, written)
            if value is not None:
                return Verdict(scale.worth(value), parts={"said": value}, reason=said)
            messages += [
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": scale.reminder(nonce)},
            ]
        return Verdict(None, "unparsable", reason=f"the judge gave no score in {READINGS} answers; it ended: {said}")
