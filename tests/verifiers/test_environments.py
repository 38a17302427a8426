"""Tasksets of the real package `verifiers` grade through ours, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout
from posttrain_verifiers.environments import Environment

SUMS = """
import httpx
import openai
import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: int = 0


class SumConfig(vf.TaskConfig):
    bonus: float = 0.0


class SumTask(vf.Task[SumData, vf.State, SumConfig]):
    @vf.reward(weight=2.0)
    async def right(self, trace) -> float:
        if "crash" in trace.last_reply:
            raise RuntimeError("no crash, please")
        if "away" in trace.last_reply:
            raise openai.APIConnectionError(request=httpx.Request("POST", "http://127.0.0.1:1"))
        return float(trace.last_reply == str(self.data.answer)) + self.config.bonus

    @vf.reward(weight=0.5)
    async def short(self, task, trace) -> float:
        assert task.answer == self.data.answer
        assert [m.role for m in trace.messages] == ["system", "user", "assistant"]
        return float(len(trace.last_reply) < 4)

    @vf.metric
    async def turns(self, trace) -> float:
        return float(trace.num_turns)


class SumsConfig(vf.TasksetConfig):
    task: SumConfig = SumConfig()
    size: int = 3


class Sums(vf.Taskset[SumTask, SumsConfig]):
    def load(self):
        for i in range(self.config.size):
            data = SumData(prompt=f"{i} + 1 = ?", system_prompt="Add.", answer=i + 1)
            yield SumTask(data, self.config.task)


__all__ = ["Sums"]
"""
ONE = "    @vf.reward\n    async def one(self) -> float:\n        return 1.0\n"
BODIES = {
    "sandboxed": "    @vf.reward\n    async def inside(self, trace, runtime) -> float:\n        return 1.0",
    "staged": f"    async def setup(self, trace, runtime):\n        pass\n\n{ONE}",
    "boxed": f"    NEEDS_CONTAINER = True\n\n{ONE}",
    "idle": "    pass",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasksets as installed modules; skips where the package they are written for is not there."""
    pytest.importorskip("verifiers.v1", reason="PrimeIntellect's package verifiers is not installed")
    (tmp_path / "sums_here.py").write_text(SUMS)
    for name, body in BODIES.items():
        lines = ["import verifiers.v1 as vf", f"class T(vf.Task):\n{body}", "class S(vf.Taskset[T, vf.TasksetConfig]):"]
        lines += ["    def load(self):\n        return []", '__all__ = ["S"]']
        (tmp_path / f"{name}_here.py").write_text("\n\n\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_tasks_own_rewards_are_summed_with_their_weights() -> None:
    grade = Environment("sums-here")
    task = {"prompt": "1 + 1 = ?", "system_prompt": "Add.", "answer": 2}
    right, wrong, long = (grade(text, task=task) for text in ("2", "3", "two, I think"))
    assert [v.score for v in (right, wrong, long)] == [2.5, 0.5, 0.0]
    assert right.parts == {"right": 1.0, "short": 1.0, "turns": 1.0}
    assert grade("2", task=json.dumps(task)) == right
    assert Environment("sums-here", {"task": {"bonus": 1.0}})("3", task=task).score == 2.5


@pytest.mark.usefixtures("installed")
def test_a_reward_that_raises_is_an_error_and_never_a_zero() -> None:
    verdict = Environment("sums-here")("crash", task={"prompt": "q", "system_prompt": "Add.", "answer": 2})
    assert (verdict.score, verdict.status) == (None, "error")
    assert "no crash, please" in verdict.reason
    verdict = Environment("sums-here")("away", task={"prompt": "q", "system_prompt": "Add.", "answer": 2})
    assert (verdict.score, verdict.status) == (None, "unavailable")


@pytest.mark.usefixtures("installed")
def test_rows_are_what_a_data_file_needs_and_what_is_graded() -> None:
    environment = Environment("sums-here", {"size": 5})
    rows = json.loads(json.dumps(list(environment.rows())))
    assert len(rows) == 5
    assert rows[3]["prompt"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "3 + 1 = ?"}]
    assert len({row["key"] for row in rows}) == 5
    assert [environment(str(i + 1), task=row["task"]).score for i, row in enumerate(rows)] == [2.5] * 5
    assert len(list(environment.rows(2))) == 2


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "words"),
    [("sandboxed", "'inside'"), ("staged", "`setup`"), ("boxed", "container"), ("idle", "no reward")],
)
def test_what_needs_more_than_a_response_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Environment(f"{name}-here").prepare()


@pytest.mark.usefixtures("installed")
def test_it_grades_in_worker_processes() -> None:
    rows = list(Environment("sums-here").rows())
    groups = [
        (Prompt(str(i), (1,), "q", row), [Rollout((1,), (True,), t, "stop") for t in (str(i + 1), "no", "crash")])
        for i, row in enumerate(rows)
    ]
    settings: dict[str, Any] = {"taskset": "sums-here"}
    reward = Reward(verifier="posttrain_verifiers.environments:Environment", settings=settings)
    with Grader([reward], Grading(workers=1, timeout=60)) as grader:
        verdicts = grader.grade(groups)
    assert [[v.score for v in vs] for vs in verdicts] == [[2.5, 0.5, None]] * 3


def test_without_the_package_it_says_what_to_install() -> None:
    program = (
        "import sys\n"
        f"sys.path[:0] = {[path for path in sys.path if not _holds_the_package(path)]}\n"
        "from posttrain_verifiers.environments import Environment\n"
        "try:\n    Environment('gsm8k')\nexcept ValueError as error:\n    print(error)\n"
        "print([name for name in ('verifiers.v1', 'openai', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-E", "-c", program], capture_output=True, text=True)
    if importlib.util.find_spec("verifiers") is None or importlib.util.find_spec("verifiers.v1") is None:
        assert "pip install 'verifiers>=0.4'" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("[]"), done.stderr


def _holds_the_package(path: str) -> bool:
    return (Path(path or ".") / "verifiers" / "v1").is_dir()


def test_a_taskset_needs_a_name() -> None:
    with pytest.raises(ValueError, match="taskset"):
        Environment("")
