"""TRL's own reward functions grade through our pool as they stand, and say there what they say when called directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from trl import rewards as trl

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rewards.verifier import signature_of
from posttrain.types import Prompt, Rollout, Verdict

TEXTS = [
    r"<think>half of it</think> So it is $\boxed{\frac{1}{2}}$.",
    r"<think>half of it</think> So it is $\boxed{\frac{1}{3}}$.",
    r"I say $\boxed{0.5}$.",
    "<think>never closed",
    "",
    "again again again again again again again again",
]
COSINE = {"max_len": 40, "min_value_wrong": -1.0, "max_value_wrong": -0.5, "min_value_correct": 0.5}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "accuracy_reward": {},
    "reasoning_accuracy_reward": {},
    "think_format_reward": {},
    "get_soft_overlong_punishment": {"max_completion_len": 30, "soft_punish_cache": 20},
    "get_repetition_penalty_reward": {"ngram_size": 2, "max_penalty": -1.0},
    "get_cosine_scaled_reward": COSINE | {"max_value_correct": 1.0},
}
SOLUTIONS = [r"$\frac{1}{2}$", "no mathematics at all"]


def ids(text: str) -> tuple[int, ...]:
    return tuple(range(2, 2 + len(text) // 2)) if "again" not in text else tuple([5, 6] * 8)


def graded(name: str) -> list[tuple[Verdict, ...]]:
    """All texts, once for each solution."""
    question = [{"role": "user", "content": "What is half of one?"}]
    groups: list[tuple[Prompt, Sequence[Rollout]]] = []
    for i, solution in enumerate(SOLUTIONS):
        prompt = Prompt(str(i), (1,), "q", {"prompt": question, "solution": solution})
        said = [Rollout((1, *ids(t)), (False, *[True] * len(ids(t))), t, "stop") for t in TEXTS]
        groups.append((prompt, said))
    reward = Reward(verifier=f"trl.rewards:{name}", settings=FUNCTIONS[name])
    with Grader([reward], Grading(workers=1, timeout=60)) as grader:
        return grader.grade(groups)


def direct(name: str, solution: str) -> list[float | None]:
    """What TRL's trainer would get."""
    function = getattr(trl, name)
    function = function(**FUNCTIONS[name]) if FUNCTIONS[name] else function
    return function(
        prompts=[[{"role": "user", "content": "What is half of one?"}]] * len(TEXTS),
        completions=[[{"role": "assistant", "content": text}] for text in TEXTS],
        completion_ids=[list(ids(text)) for text in TEXTS],
        solution=[solution] * len(TEXTS),
    )


def test_every_reward_function_of_trl_is_tried() -> None:
    assert set(FUNCTIONS) == set(trl._import_structure["accuracy_rewards"]) | set(
        trl._import_structure["format_rewards"]
    ) | set(trl._import_structure["other_rewards"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_says_through_the_grader_what_it_says_alone(name: str) -> None:
    seen = set()
    for solution, verdicts in zip(SOLUTIONS, graded(name), strict=True):
        expected = direct(name, solution)
        assert [v.score for v in verdicts] == expected
        # None is TRL's word for a row it does not apply to: no score, and not a zero.
        assert [v.status for v in verdicts] == ["unparsable" if e is None else "ok" for e in expected]
        seen |= set(expected)
    # Not all alike: the functions tell these texts apart.
    assert len(seen) > 1


def test_what_it_needs_is_read_from_its_parameters() -> None:
    needs = {n: signature_of(Reward(verifier=f"trl.rewards:{n}", settings=s)) for n, s in FUNCTIONS.items()}
    assert {n: s.kind for n, s in needs.items()} == dict.fromkeys(FUNCTIONS, "group")
    wants = {n: s.required for n, s in needs.items() if s.required}
    with_solution = ("accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward")
    assert wants == dict.fromkeys(with_solution, ("solution",))
