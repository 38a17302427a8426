"""Groups to Samples: who is compared with whom, and what is never learnt."""

from __future__ import annotations

import pytest
import torch

from posttrain.algorithms.choice import choose
from posttrain.algorithms.credit import assign_credit, informative
from posttrain.algorithms.table import ALGORITHMS
from posttrain.types import Annotation, Group, Rollout, Verdict
from tests.tiny import prompt


def group(*scores: float | None, lengths: tuple[int, ...] = (), name: int = 2, cut: tuple[int, ...] = ()) -> Group:
    lengths = lengths or (3,) * len(scores)
    rollouts = tuple(
        Rollout(
            tokens=(name, 3, *range(4, 4 + n)),
            mask=(False, False) + (True,) * n,
            text="",
            finish_reason="length" if i in cut else "stop",
            logprobs=(0.0, 0.0) + (-1.0,) * n,
            versions=(-1, -1) + (0,) * n,
        )
        for i, n in enumerate(lengths)
    )
    verdicts = tuple(Verdict(s) if s is not None else Verdict(None, "error", reason="died") for s in scores)
    return Group(prompt([name, 3]), rollouts, verdicts)


def credited(name: str, groups: list[Group], **changes: object) -> tuple[list, dict[str, float]]:
    samples, report = assign_credit(choose(name, changes), groups, [Annotation()] * len(groups), max_tokens=10)
    return samples, report.values()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ragged_groups_are_compared_within_themselves_only(name: str) -> None:
    groups = [group(1.0, 0.0), group(0.0, 0.0, 1.0, name=5), group(0.5, 0.25, 0.0, 0.25, name=6)]
    together, _ = credited(name, groups)
    alone = [s for g in groups for s in credited(name, [g])[0]]
    assert len(together) == 9
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.advantages, b.advantages)
        assert a.rollout is b.rollout


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_response_without_a_score_is_as_if_it_had_not_been_drawn(name: str) -> None:
    with_failure, report = credited(name, [group(1.0, None, 0.0, 0.0)])
    without, _ = credited(name, [group(1.0, 0.0, 0.0)])
    assert [s.advantages.tolist() for s in with_failure] == [s.advantages.tolist() for s in without]
    assert report["learn/ungraded_fraction"] == 0.25


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_group_with_too_few_scores_teaches_nothing_and_is_counted(name: str) -> None:
    samples, report = credited(name, [group(1.0, None), group(None, None), group(1.0, 0.0)])
    assert len(samples) == 2
    assert report["learn/unusable_groups"] == pytest.approx(2 / 3)


def test_advantages_stand_on_what_the_policy_said_and_nowhere_else() -> None:
    samples, _ = credited("dr_grpo", [group(1.0, 0.0, lengths=(2, 4))])
    assert [s.advantages.tolist() for s in samples] == [[0, 0, 0.5, 0.5], [0, 0, -0.5, -0.5, -0.5, -0.5]]


def test_cut_responses_are_compared_but_not_learnt_under_mask() -> None:
    train, _ = credited("grpo", [group(1.0, 0.0, cut=(1,))])
    masked, _ = credited("grpo", [group(1.0, 0.0, cut=(1,))], truncated="mask")
    assert [bool(s.mask.any()) for s in train] == [True, True]
    assert [bool(s.mask.any()) for s in masked] == [True, False]
    assert torch.equal(train[0].advantages, masked[0].advantages)


def test_overlong_shaping_changes_scores_before_they_are_compared() -> None:
    plain, _ = credited("dr_grpo", [group(1.0, 1.0, lengths=(2, 9))])
    shaped, _ = credited("dr_grpo", [group(1.0, 1.0, lengths=(2, 9))], shaping="overlong")
    assert [float(s.advantages.max()) for s in plain] == [0.0, 0.0]
    assert float(shaped[0].advantages[-1]) == pytest.approx(0.25)
    assert float(shaped[1].advantages[-1]) == pytest.approx(-0.25)


def test_a_penalty_in_the_reward_needs_the_reference_and_changes_with_it() -> None:
    one = group(1.0, 1.0)
    near = Annotation(reference=[torch.full((5,), -1.0), torch.full((5,), -1.0)])
    far = Annotation(reference=[torch.full((5,), -1.0), torch.full((5,), -2.0)])
    algorithm = choose("dr_grpo", {"kl": "in_reward", "kl_coefficient": 0.1})
    assert algorithm.needs.reference
    same, _ = assign_credit(algorithm, [one], [near], 10)
    other, _ = assign_credit(algorithm, [one], [far], 10)
    assert [float(s.advantages.abs().max()) for s in same] == [0.0, 0.0]
    # k1 = policy - reference = 1 on each of three tokens of the second response, so it is worth 0.3 less.
    assert [float(s.advantages[-1]) for s in other] == pytest.approx([0.15, -0.15])


def test_dynamic_selection_calls_groups_of_one_score_uninformative() -> None:
    dapo, grpo = ALGORITHMS["dapo"], ALGORITHMS["grpo"]
    assert [informative(dapo, g) for g in (group(1.0, 1.0), group(1.0, 0.0), group(1.0, None))] == [False, True, False]
    assert informative(grpo, group(1.0, 1.0))
