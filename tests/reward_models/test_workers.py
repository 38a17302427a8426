"""Reward models in the processes that grade: the same verdicts, none from a model that is not what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from posttrain.errors import GradingError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader, signature_of
from posttrain.types import Prompt, Rollout, Verdict
from posttrain_reward_models.classifier import Classifier
from posttrain_reward_models.gap import Gap
from posttrain_reward_models.implicit import Implicit
from posttrain_reward_models.process import Process
from tests.data import assistant, user
from tests.reward_models.scorers import arguments, asked, measured_folder, said
from tests.tiny import tiny_folder

PROMPT = asked("how", prompt="how")
ANSWERS = [said(PROMPT, "a b\nc"), said(PROMPT, "zzz", stop=False), said(PROMPT, "q")]


def reward(kind: str, weight: float = 1.0, **settings: Any) -> Reward:
    path = f"posttrain_reward_models.{kind.lower()}:{kind}"
    return Reward(verifier=path, weight=weight, settings={"device": "cpu", **settings})


def local(name: str) -> Reward:
    return Reward(verifier=f"tests.reward_models.graders:{name}")


def grade(rewards: Sequence[Reward], prompt: Prompt, rollouts: Sequence[Rollout]) -> tuple[Verdict, ...]:
    # The clock starts after the models are loaded; a busy machine still needs a while for the first verdict.
    with Grader(rewards, Grading(workers=1, timeout=30.0, retries=0, max_failure_rate=1.0)) as grader:
        return grader.grade([(prompt, rollouts)])[0]


def test_every_kind_grades_in_a_worker_as_it_does_here(tmp_path: Path) -> None:
    one = str(measured_folder(tmp_path / "one", outputs=2, seed=1))
    two = str(measured_folder(tmp_path / "two", seed=2))
    pair = {"policy": str(tiny_folder(tmp_path / "p", seed=1)), "reference": str(tiny_folder(tmp_path / "r", seed=2))}
    fp32 = {"device": "cpu", "dtype": "float32"}
    rewards = [
        reward("Classifier", path=[one, two], aggregate="uwo", dtype="float32"),
        reward("Implicit", weight=0.5, per_token=True, **pair),
        reward("Process", weight=2.0, path=two, dtype="float32"),
        reward("Gap", weight=-1.0, path=two, dtype="float32"),
    ]
    assert [signature_of(r).kind for r in rewards] == ["group", "group", "group", "pair"]
    assert all(signature_of(r).required == () for r in rewards)
    verdicts = grade(rewards, PROMPT, ANSWERS)
    given = arguments(PROMPT, *ANSWERS)
    scores = Classifier([one, two], "uwo", **fp32)(**given)
    implicit = Implicit(**pair, per_token=True, device="cpu")(**given)
    steps = Process(two, **fp32)(**given)
    gap = Gap(two, **fp32)
    texts = [r.text for r in ANSWERS]
    for i, verdict in enumerate(verdicts):
        rate = sum(gap(texts[i], other, prompt="how") for other in texts if other != texts[i]) / 2
        # fp32, with another number of threads.
        assert verdict.score == pytest.approx(
            scores[i].score + 0.5 * implicit[i].score + 2 * steps[i].score - rate, abs=1e-4
        )
        assert verdict.parts["Gap"] == pytest.approx(rate, abs=1e-4)
        assert {"Classifier.model0.head1", "Classifier.model1", "Classifier.std", "Process.steps"} <= set(verdict.parts)
        placed = [(at, 0.5 * r) for at, r in implicit[i].steps] + [(at, 2 * r) for at, r in steps[i].steps]
        assert [at for at, _ in verdict.steps] == [at for at, _ in placed]
        assert [r for _, r in verdict.steps] == pytest.approx([r for _, r in placed], abs=1e-4)


def test_a_worker_does_not_start_with_a_model_that_is_not_what_was_measured(tmp_path: Path) -> None:
    folder = measured_folder(tmp_path / "rm")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "score.weight": -tensors["score.weight"]}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(GradingError, match=r"rewards\[1\]: ValueError: path: .* is not what was measured"):
        grade([local("named"), reward("Classifier", path=str(folder))], PROMPT, ANSWERS)


def test_graders_of_a_group_get_the_prompts_ids_and_text_where_they_name_them() -> None:
    whole = [user("how"), assistant("the gold answer")]
    prompt = Prompt("p", (1, 2), "rendered", {"messages": whole})
    follows = Rollout((1, 2, 3, 4), (False, False, True, True), "x", "stop")
    breaks = Rollout((1, 2, 3, 9, 4), (False, False, True, False, True), "y", "stop")
    first, second = grade([local("given"), local("named")], prompt, [follows, breaks])
    reasons = [dict(line.split(": ", 1) for line in v.reason.split("; ")) for v in (first, second)]
    assert json.loads(reasons[0]["given"]) == [[user("how")], [1, 2], "rendered"]
    # What a tool said stands between: prompt and said words are not all there was.
    assert json.loads(reasons[1]["given"]) == [[user("how")], None, "rendered"]
    assert reasons[0]["named"] == "completion_ids messages prompts"


def test_a_verifier_beside_a_model_has_as_much_memory_as_alone() -> None:
    rewards = [local("Holder"), local("takes"), local("Frugal")]
    small, large = grade(rewards, PROMPT, [_says("3"), _says("5")])
    assert small.parts == {"Holder": 1.0, "takes": 1.0, "Frugal": None}
    assert large.parts == {"Holder": 1.0, "takes": None, "Frugal": None}
    assert "MemoryError: Unable to allocate 5.00 GiB" in large.reason


def _says(text: str) -> Rollout:
    return Rollout((*PROMPT.tokens, 30), (False,) * len(PROMPT.tokens) + (True,), text, "stop")
