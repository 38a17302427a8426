"""Tasks of PrimeIntellect's package `verifiers` (0.4 or later, its `verifiers.v1`), graded by their own rewards.

`python -m posttrain_verifiers.environments TASKSET [LIMIT]` writes a taskset's tasks as the rows of a data file.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from posttrain.types import Status, Verdict

AWAY = ("APIConnectionError", "APITimeoutError", "RateLimitError", "InternalServerError")
"""Errors of the client that a task's judges use: nothing was said about the response."""


class Environment:
    """The weighted sum of a task's rewards, its judges' among them, over one response to the task's prompt.

    `taskset` names an installed taskset as that package does; `config` holds its settings, those of its tasks under
    `task`. The column `task` is a task's data as `rows` writes it. What needs more than a response is refused by name:
    a sandbox, tools, several turns, steps before or after the response. A reward that raises gives an error and no
    score; a judge that cannot be reached gives `unavailable`.
    """

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError where the package `verifiers` is not installed."""
        if not taskset:
            raise ValueError("taskset: it names an installed taskset and cannot be empty")
        if importlib.util.find_spec("verifiers") is None or importlib.util.find_spec("verifiers.v1") is None:
            raise ValueError(
                f"taskset: {taskset!r} is one of PrimeIntellect's package `verifiers`, which is not installed; pip "
                "install 'verifiers>=0.4'"
            )
        self.taskset, self.config = taskset, dict(config or {})
        self._loaded: Any = None

    def prepare(self) -> None:
        """Import the taskset. Raises ValueError for one that cannot be graded from a response alone."""
        # Seconds to import: in a worker, before the clock starts, and never in `posttrain check`.
        loaders = importlib.import_module("verifiers.v1.utils.loaders")
        kind = loaders.taskset_config_type(self.taskset)
        loaded = loaders.load_taskset(kind.model_validate({**self.config, "id": self.taskset}))
        if against := _hindrance(loaded):
            raise ValueError(f"taskset: {self.taskset!r} {against}, and a response alone is no such thing")
        self._loaded = loaded

    def rows(self, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """A data set's rows: `prompt` as messages, `task`, and its stable `key`. Raises ValueError for a task without a
        prompt, or one that is not text.
        """
        taskset = self._taskset()
        for task in islice(iter(taskset), limit):
            messages = [message.model_dump(mode="json", exclude_none=True) for message in _messages(task.data)]
            if not messages or messages[-1]["role"] != "user":
                raise ValueError(f"taskset: {self.taskset!r} has task {task.data.idx} without a prompt of a user")
            if not all(isinstance(message.get("content"), str) for message in messages):
                raise ValueError(f"taskset: {self.taskset!r} asks task {task.data.idx} with more than text")
            data = task.data.model_dump(mode="json", exclude_unset=True)
            yield {"prompt": messages, "task": data, "key": task.key}

    def __call__(self, completion: str, *, task: Mapping[str, Any] | str) -> Verdict:
        """Rewards and metrics are parts, before weighting. Raises ValueError for data that is none of this taskset."""
        taskset = self._taskset()
        kind = type(taskset).task_type()
        data = kind.data_type().model_validate(json.loads(task) if isinstance(task, str) else dict(task))
        asked = kind(data, taskset.config.task)
        trace = _trace(asked, completion)
        try:
            asyncio.run(asked.score(trace))
        except Exception as error:
            causes = [type(cause).__name__ for cause in _causes(error)]
            status: Status = "unavailable" if any(name in AWAY for name in causes) else "error"
            return Verdict(None, status, reason=f"{type(error).__name__}: {error!s:.300}")
        parts = {name: None if reward is None else float(reward.score) for name, reward in trace.rewards.items()}
        missing = [name for name, score in parts.items() if score is None]
        if missing or not parts:
            reason = f"no score from {', '.join(missing)}" if missing else "the task gave no reward"
            return Verdict(None, "error", parts, reason)
        return Verdict(float(trace.reward), parts={**trace.metrics, **parts})

    def _taskset(self) -> Any:
        if self._loaded is None:
            self.prepare()
        return self._loaded


def _hindrance(taskset: Any) -> str:
    """What its tasks have that a response alone cannot be graded with; empty where nothing."""
    base = importlib.import_module("verifiers.v1").Task
    kind = type(taskset).task_type()
    probe = kind(kind.data_type().model_construct(), taskset.config.task)
    rewards, judges = probe.hooks("reward"), probe.plugged_judges()
    if kind.NEEDS_CONTAINER:
        return "runs its tasks in a container"
    if kind.toolsets(taskset.config.task) or type(taskset).toolsets(taskset.config):
        return "gives its tasks tools"
    for step in ("setup", "finalize"):
        if getattr(kind, step) is not getattr(base, step):
            return f"has a step `{step}` of its own around each response"
    for name, function in [(r.__name__, r) for r in rewards] + [(j.reward_name, j.score) for j in judges]:
        parameter = inspect.signature(function).parameters.get("runtime")
        if parameter is not None and parameter.default is parameter.empty:
            return f"has the reward {name!r}, which looks into a sandbox"
    return "" if rewards or judges else "has no reward"


def _messages(data: Any) -> list[Any]:
    """What a task asks with."""
    types = importlib.import_module("verifiers.v1.types")
    system = [] if data.system_prompt is None else [types.SystemMessage(content=data.system_prompt)]
    prompt = data.prompt
    asked = [types.UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or [])
    return system + asked


def _trace(task: Any, completion: str) -> Any:
    """A finished roll-out of one turn, as that package would have recorded it."""
    v1, types = importlib.import_module("verifiers.v1"), importlib.import_module("verifiers.v1.types")
    traces, states = importlib.import_module("verifiers.v1.trace"), importlib.import_module("verifiers.v1.state")
    node = importlib.import_module("verifiers.v1.graph").MessageNode
    state = states.state_cls(type(task))
    trace = traces.Trace[type(task).data_type(), state, v1.AgentConfig](
        task=traces.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=traces.AgentInfo(config=v1.AgentConfig()),
        state=state(),
    )
    said = types.AssistantMessage(content=completion)
    messages = [(message, False) for message in _messages(task.data)] + [(said, True)]
    for i, (message, sampled) in enumerate(messages):
        trace.nodes.append(node(parent=i - 1 if i else None, message=message, sampled=sampled))
    trace.stop("agent_completed")
    trace.ok = True
    return trace


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def main(arguments: list[str]) -> None:
    """Write a taskset's rows to standard output, as JSON lines."""
    if not 1 <= len(arguments) <= 2:
        sys.exit("usage: python -m posttrain_verifiers.environments TASKSET [LIMIT]")
    limit = int(arguments[1]) if len(arguments) == 2 else None
    for row in Environment(arguments[0]).rows(limit):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1:])
