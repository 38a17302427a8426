"""Verdicts to rewards token by token: they add up to the score, whatever shaped, scaled or penalised it."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.algorithms.choice import choose
from posttrain.algorithms.state import RowState, Terms
from posttrain.algorithms.table import ALGORITHMS
from posttrain.types import Annotation, Group, Sample, Verdict
from tests.algorithms.made import POLICIES, TERMS, credited, group, noted, rollout, said

PLAIN = {"kl": "none", "whitening": "none", "correction": "none"}
"""On `reinforce_pp`: each token's advantage is what is still to come, so rewards are its differences."""


def rewards(sample: Sample) -> list[float]:
    """Of each token said, from the returns that a discount of 1 gives."""
    ahead = [*said(sample), 0.0]
    return [a - b for a, b in pairwise(ahead)]


def graded(score: float, length: int, steps: tuple[tuple[int, float], ...] = (), cut: bool = False) -> Group:
    return group(score, lengths=(length,), steps={0: steps}, cut=(0,) if cut else ())


@settings(max_examples=60, deadline=None)
@given(
    score=st.floats(-3, 3),
    length=st.integers(1, 10),
    steps=st.lists(st.tuples(st.integers(0, 9), st.floats(-2, 2)), max_size=6),
    cut=st.booleans(),
    changes=st.fixed_dictionaries(
        {
            "shaping": st.sampled_from(["none", "overlong"]),
            "truncated": st.sampled_from(["train", "mask", "penalise"]),
        }
    ),
)
def test_token_rewards_add_up_to_the_score_whatever_its_steps(
    score: float, length: int, steps: list[tuple[int, float]], cut: bool, changes: dict[str, Any]
) -> None:
    inside = tuple((t, r) for t, r in steps if t < length)
    (sample,), _ = credited("reinforce_pp", [graded(score, length, inside, cut)], **PLAIN, **changes)
    expected = score - (changes["shaping"] == "overlong") * max(length - 8, 0) / 2
    expected -= cut and changes["truncated"] == "penalise"
    assert sample.score == pytest.approx(expected, abs=1e-9)
    if cut and changes["truncated"] == "mask":
        assert not any(said(sample))
        return
    found = rewards(sample)
    assert sum(found) == pytest.approx(expected, abs=1e-9)
    for t in range(length - 1):
        assert found[t] == pytest.approx(sum(r for at, r in inside if at == t), abs=1e-9)


@pytest.mark.parametrize("name", POLICIES)
def test_step_rewards_change_who_gets_credit_but_never_what_a_response_is_worth(name: str) -> None:
    scores, lengths = (1.0, 0.0, 0.5, 0.25), (3, 4, 5, 2)
    plain = group(*scores, lengths=lengths, greedy=Verdict(0.5))
    steps = group(*scores, lengths=lengths, greedy=Verdict(0.5), steps=dict.fromkeys(range(4), ((0, 0.5), (1, -2.0))))
    before, after = (credited(name, [one])[0] for one in (plain, steps))
    assert [s.score for s in after] == pytest.approx([s.score for s in before])
    credit = ALGORITHMS[name].credit
    # What is above the value of the prompt is so as a whole.
    if credit.entry.level != "token" or credit.kind == "above_value":
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(b.advantages, a.advantages)
    else:
        assert any(said(a) != pytest.approx(said(b)) for a, b in zip(before, after, strict=True))


def test_step_rewards_may_be_counted_from_the_end() -> None:
    (sample,), _ = credited("reinforce_pp", [graded(1.0, 4, ((-2, 0.25), (-4, 0.5)))], **PLAIN)
    assert rewards(sample) == pytest.approx([0.5, 0.0, 0.25, 0.25])


def test_step_rewards_count_the_policys_own_tokens_and_not_a_tools() -> None:
    one = rollout((True, False, False, True, True))
    scored = Verdict(1.0, steps=((1, 0.25),))
    (sample,), _ = credited("reinforce_pp", [Group(group(1.0).prompt, (one,), (scored,))], **PLAIN)
    assert sample.advantages.tolist() == [0, 0, 1.0, 0, 0, 1.0, 0.75]


class TestScaling:
    def test_scores_of_a_step_lose_their_mean_and_spread_and_stay_within_the_bound(self) -> None:
        scores = [(1.0, 0.0, 0.25), (0.0, 0.0, 0.0, 9.0)]
        flat = [s for row in scores for s in row]
        mean, spread = statistics.fmean(flat), statistics.pstdev(flat)
        samples, _ = credited("kimi", [group(*row) for row in scores], scaling="batch", reward_clip=2.0)
        assert [s.score for s in samples] == pytest.approx([min((s - mean) / spread, 2.0) for s in flat])
        assert max(s.score for s in samples) == 2.0

    def test_the_running_scale_is_the_spread_of_every_score_so_far(self) -> None:
        seen: list[float] = []
        state = RowState.of(choose("kimi", {"scaling": "running"}))
        for row in ([3.0, 3.0], [1.0, 2.0, None], [-4.0, 0.5], [50.0, 3.0]):
            samples, _ = credited("kimi", [group(*row)], state=state, scaling="running", reward_clip=3.0)
            now = [s for s in row if s is not None]
            seen += now
            spread = statistics.pstdev(seen) or 1.0
            assert [s.score for s in samples] == pytest.approx([max(min(s / spread, 3.0), -3.0) for s in now])
        assert state.reward_count == len(seen)

    @pytest.mark.parametrize("scaling", ["batch", "running"])
    def test_step_rewards_are_scaled_with_their_score(self, scaling: str) -> None:
        groups = [graded(2.0, 4, ((0, 1.0), (2, -0.5))), graded(-1.0, 2, ((0, 0.25),))]
        spread, mean = 1.5, 0.5 if scaling == "batch" else 0.0
        first, second = credited("reinforce_pp", groups, scaling=scaling, **PLAIN)[0]
        worth = [(2.0 - mean) / spread, (-1.0 - mean) / spread]
        assert rewards(first) == pytest.approx([1 / spread, 0, -0.5 / spread, worth[0] - 0.5 / spread])
        assert rewards(second) == pytest.approx([0.25 / spread, worth[1] - 0.25 / spread])
        assert [first.score, second.score] == pytest.approx(worth)

    @pytest.mark.parametrize("scaling", ["batch", "running"])
    def test_scores_that_differ_by_rounding_alone_do_not_blow_up_their_steps(self, scaling: str) -> None:
        groups = [graded(0.1 + 0.2, 3, ((0, 0.1),)), graded(0.3, 3, ((0, 0.2),))]
        samples, _ = credited("reinforce_pp", groups, scaling=scaling, **PLAIN)
        assert max(abs(r) for s in samples for r in rewards(s)) <= 1.0


class TestCutResponses:
    def test_masked_ones_are_compared_but_not_learnt(self) -> None:
        train, _ = credited("grpo", [group(1.0, 0.0, cut=(1,))])
        masked, _ = credited("grpo", [group(1.0, 0.0, cut=(1,))], truncated="mask")
        assert [bool(s.mask.any()) for s in train] == [True, True]
        assert [bool(s.mask.any()) for s in masked] == [True, False]
        assert torch.equal(train[0].advantages, masked[0].advantages)

    def test_penalised_ones_score_less_before_they_are_compared(self) -> None:
        samples, _ = credited("dr_grpo", [group(1.0, 1.0, cut=(1,))], truncated="penalise", truncated_penalty=0.5)
        assert [s.score for s in samples] == [1.0, 0.5]
        assert [said(s)[0] for s in samples] == pytest.approx([0.25, -0.25])

    def test_bootstrapped_ones_alone_expect_what_the_critic_says_of_their_end(self) -> None:
        groups = [graded(1.0, 3), graded(1.0, 3, cut=True)]
        values = torch.tensor([[9.0], [9.0], [0.1], [0.2], [0.3], [0.7]], dtype=torch.float64)
        changes = {"whitening": "none", "lam": 1.0, "gamma": 0.5}
        notes = [Annotation(values=[values])] * 2
        ended, cut = credited("ppo", groups, notes, truncated="bootstrap", **changes)[0]
        assert said(ended, ended.returns) == pytest.approx([0.25, 0.5, 1.0])
        assert said(cut, cut.returns) == pytest.approx([0.25 + 0.125 * 0.7, 0.5 + 0.25 * 0.7, 1.0 + 0.5 * 0.7])
        plain = credited("ppo", groups, notes, truncated="train", **changes)[0]
        assert said(plain[1], plain[1].returns) == pytest.approx([0.25, 0.5, 1.0])


def test_overlong_shaping_changes_scores_before_they_are_compared() -> None:
    plain, _ = credited("dr_grpo", [group(1.0, 1.0, lengths=(2, 9))])
    shaped, _ = credited("dr_grpo", [group(1.0, 1.0, lengths=(2, 9))], shaping="overlong")
    assert [float(s.advantages.max()) for s in plain] == [0.0, 0.0]
    assert float(shaped[0].advantages[-1]) == pytest.approx(0.25)
    assert float(shaped[1].advantages[-1]) == pytest.approx(-0.25)


ESTIMATES = {
    "k1": lambda p, q: p - q,
    "k2": lambda p, q: (p - q) ** 2 / 2,
    "k3": lambda p, q: math.exp(q - p) - (q - p) - 1,
}


class TestPenaltyInTheReward:
    @pytest.mark.parametrize("estimator", ESTIMATES)
    @pytest.mark.parametrize("several", [False, True])
    def test_each_token_pays_for_its_own_distance_and_all_that_come_before_it_hear_of_it(
        self, estimator: str, several: bool
    ) -> None:
        """Of the engine's policy where a step has one update, of the trainer's where it has several."""
        one = rollout((True, False, True, True))
        generator = torch.Generator().manual_seed(0)
        reference = -torch.rand(6, 2, generator=generator, dtype=torch.float64) - 0.5
        previous = -torch.rand(6, generator=generator, dtype=torch.float64) - 0.5
        note = Annotation(previous=[previous] if several else None, reference=[reference])
        made = [Group(group(1.0).prompt, (one,), (Verdict(1.0, steps=((0, 0.5),)),))]
        changes = {"whitening": "none", "gamma": 0.9, "kl_estimator": estimator, "kl_coefficient": 0.3}
        (sample,), report = credited("reinforce_pp", made, [note], **changes)
        places = [2, 4, 5]
        each = []
        for t in places:
            p = previous[t].item() if several else one.logprobs[t]
            pair = [ESTIMATES[estimator](p, q) for q in reference[t].tolist()]
            each.append(0.25 * pair[0] + 0.75 * pair[1])
        earned = [r - 0.3 * k for r, k in zip([0.5, 0.0, 0.5], each, strict=True)]
        expected = [sum(0.9**i * r for i, r in enumerate(earned[t:])) for t in range(3)]
        assert said(sample) == pytest.approx(expected, abs=1e-6)
        assert said(sample, sample.returns) == pytest.approx(expected, abs=1e-6)
        assert sample.score == pytest.approx(sum(earned), abs=1e-6)
        assert report["learn/kl"] == pytest.approx(statistics.fmean(each), abs=1e-6)

    def test_it_needs_the_reference_and_changes_what_a_group_compares(self) -> None:
        near = Annotation(reference=[torch.full((5, 1), -1.0), torch.full((5, 1), -1.0)])
        far = Annotation(reference=[torch.full((5, 1), -1.0), torch.full((5, 1), -2.0)])
        changes = {"kl": "in_reward", "kl_coefficient": 0.1}
        assert choose("dr_grpo", changes).needs.reference
        alone = Terms(10)
        same, _ = credited("dr_grpo", [group(1.0, 1.0)], [near], terms=alone, **changes)
        other, _ = credited("dr_grpo", [group(1.0, 1.0)], [far], terms=alone, **changes)
        assert [float(s.advantages.abs().max()) for s in same] == [0.0, 0.0]
        # k1 = policy - reference = 1 on each of three tokens of the second response, so it is worth 0.3 less.
        assert [float(s.advantages[-1]) for s in other] == pytest.approx([0.15, -0.15])

    def test_its_coefficient_is_the_runs_and_not_the_tables(self) -> None:
        algorithm = choose("reinforce_pp", {"kl_coefficient": 0.1})
        state, one = RowState.of(algorithm), group(1.0)
        free, _ = credited("reinforce_pp", [one], state=RowState(kl_coefficient=0.0))
        scores = []
        for state.kl_coefficient in (0.1, 0.4):
            (sample,), _ = credited("reinforce_pp", [one], [noted(algorithm, one)], state=state)
            scores.append(free[0].score - sample.score)
        assert scores[1] == pytest.approx(4 * scores[0])
        assert scores[0] != 0
        assert TERMS.references == (0.25, 0.75)
