"""Groups to Samples: who is compared with whom, against which baseline, and what is never learnt."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, replace

import pytest
import torch

from posttrain.algorithms.choice import choose
from posttrain.algorithms.state import RowState, Terms
from posttrain.algorithms.table import ALGORITHMS
from posttrain.errors import TrainingError
from posttrain.types import Annotation, Group, Sample, Verdict
from tests.algorithms.made import POLICIES, credited, group, rollout, said, verdict

ALONE = {"whitening": "none", "scaling": "none"}
"""What compares a group with the rest of its step."""


SCORES = [(1.0, 0.0, 0.0, 0.5), (0.0, 0.0, 1.0, 0.25, 0.0), (0.5, 0.25, 0.0, 0.25, 1.0, 0.75)]
RAGGED = [
    group(*row, name=4 + i, lengths=[1 + (i + 2 * k) % 5 for k in range(len(row))], greedy=Verdict(0.25))
    for i, row in enumerate(SCORES)
]


def same(found: list[Sample], expected: list[Sample]) -> None:
    """The same responses in the same order with the same credit, to the bit."""
    assert found
    for a, b in zip(found, expected, strict=True):
        assert a.rollout is b.rollout
        assert torch.equal(a.advantages, b.advantages)
        assert torch.equal(a.mask, b.mask)
        assert a.score == b.score
        assert (a.returns is None) == (b.returns is None)
        assert a.returns is None or torch.equal(a.returns, b.returns)


@pytest.mark.parametrize("name", [n for n in POLICIES if ALGORITHMS[n].credit.entry.level != "step"])
def test_ragged_groups_are_compared_within_themselves_only(name: str) -> None:
    together, _ = credited(name, RAGGED, **ALONE)
    same(together, [s for g in RAGGED for s in credited(name, [g], **ALONE)[0]])


@pytest.mark.parametrize("name", POLICIES)
def test_a_response_without_a_score_is_as_if_it_had_not_been_drawn(name: str) -> None:
    failed = [
        Group(g.prompt, (g.rollouts[0], rollout((True,) * 9), *g.rollouts[1:]), _with_failure(g), g.greedy)
        for g in RAGGED
    ]
    states = [RowState.of(ALGORITHMS[name]) for _ in range(2)]
    without, _ = credited(name, RAGGED, state=states[0])
    with_failures, report = credited(name, failed, state=states[1])
    same(with_failures, without)
    assert asdict(states[0]) == asdict(states[1])
    assert report["learn/ungraded_fraction"] == pytest.approx(3 / 18)


def _with_failure(one: Group) -> tuple[Verdict, ...]:
    return (one.verdicts[0], verdict(None), *one.verdicts[1:])


@pytest.mark.parametrize("name", POLICIES)
def test_a_group_with_too_few_scores_teaches_nothing_and_is_counted(name: str) -> None:
    few = ALGORITHMS[name].needs.min_group - 1
    groups = [group(*[1.0] * few, None, greedy=Verdict(0.25)), group(None, None, greedy=Verdict(0.25)), RAGGED[0]]
    samples, report = credited(name, groups)
    assert {s.group for s in samples} == {2}
    assert report["learn/unusable_groups"] == pytest.approx(2 / 3)
    same(samples, credited(name, groups[2:])[0])


def test_advantages_stand_on_what_the_policy_said_and_nowhere_else() -> None:
    samples, _ = credited("dr_grpo", [group(1.0, 0.0, lengths=(2, 4))])
    assert [s.advantages.tolist() for s in samples] == [[0, 0, 0.5, 0.5], [0, 0, -0.5, -0.5, -0.5, -0.5]]


def test_the_step_level_credit_centres_by_group_and_scales_by_every_score_of_the_step() -> None:
    spread = statistics.pstdev([s for row in SCORES for s in row])
    expected = [(s - statistics.fmean(row)) / spread for row in SCORES for s in row]
    samples, _ = credited("lite_ppo", RAGGED)
    assert [said(s)[0] for s in samples] == pytest.approx(expected)
    assert all(len(set(said(s))) == 1 for s in samples)


@pytest.mark.parametrize("name", [n for n, row in ALGORITHMS.items() if row.whitening.kind != "none"])
@pytest.mark.parametrize("cut", [(), (1, 2)])
def test_whitened_advantages_have_mean_zero_and_spread_one_over_the_tokens_that_are_learnt(
    name: str, cut: tuple[int, ...]
) -> None:
    groups = [group(1.0, 0.0, 0.5, 0.5, lengths=(2, 5, 1, 3), cut=cut), group(0.0, 1.0, 1.0, 0.0, lengths=(4, 1, 6, 2))]
    samples, _ = credited(name, groups, truncated="mask")
    learnt = torch.cat([s.advantages[s.mask] for s in samples])
    assert float(learnt.mean()) == pytest.approx(0, abs=1e-12)
    assert float(learnt.std(unbiased=False)) == pytest.approx(1)
    silent = [s for s in samples if not bool(s.mask.any())]
    assert [s.rollout.truncated for s in samples] == [not bool(s.mask.any()) for s in samples]
    assert all(not bool(s.advantages.any()) for s in silent)


def test_scaled_advantages_keep_their_signs_and_their_order() -> None:
    plain, _ = credited("dr_grpo", RAGGED)
    scaled, _ = credited("dr_grpo", RAGGED, whitening="batch_scale")
    before, after = (torch.cat([s.advantages[s.mask] for s in batch]) for batch in (plain, scaled))
    torch.testing.assert_close(after, before / before.std(unbiased=False))


def test_a_baseline_from_earlier_steps_moves_by_its_decay_after_each_step() -> None:
    algorithm = choose("reinforce_baseline", {"baseline_decay": 0.8})
    state, baseline = RowState.of(algorithm), None
    for scores in ([(1.0, 0.0), (1.0,)], [(0.0, 0.0, 1.0)], [(None, 1.0), (None,)], [(0.5,)]):
        samples, _ = credited("reinforce_baseline", [group(*s) for s in scores], state=state, baseline_decay=0.8)
        graded = [[s for s in row if s is not None] for row in scores]
        expected = [s - (0.0 if baseline is None else baseline) for row in graded for s in row]
        assert [said(s)[0] for s in samples] == pytest.approx(expected)
        mean = statistics.fmean([s for row in graded for s in row])
        baseline = mean if baseline is None else 0.8 * baseline + 0.2 * mean
        assert state.baseline == pytest.approx(baseline)


def test_a_step_without_a_graded_response_leaves_the_baseline_where_it_was() -> None:
    state = RowState(baseline=0.7)
    assert credited("reinforce_baseline", [group(None)], state=state)[0] == []
    assert state.baseline == 0.7


def test_the_greedy_response_is_the_baseline_and_without_it_a_group_teaches_nothing() -> None:
    groups = [group(1.0, 0.0, greedy=Verdict(0.25)), group(1.0, greedy=verdict(None)), group(1.0, 0.0)]
    samples, report = credited("remax", groups)
    assert [said(s)[0] for s in samples] == pytest.approx([0.75, -0.25, 0.0, 0.0, 0.0])
    assert report["learn/zero_advantage_groups"] == pytest.approx(2 / 3)


def test_components_are_normalised_one_by_one_and_added_by_their_weights() -> None:
    rows = [(1.0, 0.5), (0.0, 0.25), (0.0, 1.0), (1.0, None)]
    verdicts = tuple(Verdict(9.0, parts={"right": r, "short": s, "silent": -50.0 * r}) for r, s in rows)
    rollouts = tuple(rollout((True,) * 2) for _ in rows)
    samples, _ = credited("gdpo", [Group(group(1.0).prompt, rollouts, verdicts)], whitening="none")

    def normed(values: list[float]) -> list[float]:
        return [(v - statistics.fmean(values)) / statistics.pstdev(values) for v in values]

    # One with nothing to say of a whole group makes no contrast in it.
    silent = tuple(replace(v, parts={**v.parts, "short": None}) for v in verdicts)
    samples_without, _ = credited("gdpo", [Group(group(1.0).prompt, rollouts, silent)], whitening="none")
    assert [said(s)[0] for s in samples_without] == pytest.approx(normed([1.0, 0.0, 0.0, 1.0]))

    # A grader with nothing to say counts as the others' mean.
    right, short = normed([1.0, 0.0, 0.0, 1.0]), normed([0.5, 0.25, 1.0, 1.75 / 3])
    expected = [1.0 * r + 0.5 * s for r, s in zip(right, short, strict=True)]
    assert [said(s)[0] for s in samples] == pytest.approx(expected)
    heavier = Terms(10, {"right": 1.0, "short": 2.0})
    again, _ = credited("gdpo", [Group(group(1.0).prompt, rollouts, verdicts)], whitening="none", terms=heavier)
    assert [said(s)[0] for s in again] == pytest.approx([r + 2 * s for r, s in zip(right, short, strict=True)])


def test_lengths_that_weigh_are_those_of_what_the_policy_said() -> None:
    rollouts = (rollout((True, False, False, False)), rollout((True, True, True)))
    samples, _ = credited("opo", [Group(group(1.0).prompt, rollouts, (Verdict(1.0), Verdict(0.0)))])
    assert [said(s)[0] for s in samples] == pytest.approx([0.75, -0.25])


def test_a_score_that_a_credit_cannot_bear_stops_with_the_cells_name() -> None:
    with pytest.raises(TrainingError, match=r"algorithm\.credit: mean_scaled.*-1\.0"):
        credited("max_rl", [group(1.0, -1.0)])


def interleaved(cut: bool = False, outputs: int = 1, garbage: float = 1e6) -> tuple[Group, Annotation, list[int]]:
    """One response between tool spans; values are garbage wherever the policy did not speak next."""
    mask = (True, True, False, False, True, False, True, True)
    one = rollout(mask, cut=cut)
    places = [t for t, m in enumerate(one.mask) if m]
    values = torch.full((len(one.tokens) + 1, outputs), garbage, dtype=torch.float64)
    for i, t in enumerate([*places, len(one.tokens)]):
        values[t] = torch.linspace(0.1 * i, 0.3 + 0.07 * i * i, outputs, dtype=torch.float64)
    scored = Verdict(1.0, steps=((1, 0.3), (2, -0.2)))
    return Group(group(1.0).prompt, (one,), (scored,)), Annotation(values=[values]), places


REWARDS = [0.0, 0.3, -0.2, 0.0, 0.9]
"""Of the five tokens said in `interleaved`: step rewards, and at the end what they leave of the score."""


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """`values` has the bootstrap behind it."""
    errors = [r + gamma * values[i + 1] - values[i] for i, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (j - i) * errors[j] for j in range(i, len(errors))) for i in range(len(errors))]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("truncated", ["train", "bootstrap"])
def test_gae_goes_over_tool_spans_as_if_they_were_not_there(cut: bool, truncated: str) -> None:
    one, annotation, places = interleaved(cut)
    settings = {"whitening": "none", "gamma": 0.9, "lam": 0.8, "truncated": truncated}
    (sample,), _ = credited("ppo", [one], [annotation], **settings)
    (values,) = annotation.values
    own = values[places, 0].tolist()
    after = values[-1, 0].item() if cut and truncated == "bootstrap" else 0.0
    expected = slow_gae(REWARDS, [*own, after], 0.9, 0.8)
    assert said(sample) == pytest.approx(expected)
    assert said(sample, sample.returns) == pytest.approx([a + v for a, v in zip(expected, own, strict=True)])
    assert said(sample, sample.values) == pytest.approx(own)
    elsewhere = ~torch.tensor(sample.rollout.mask)
    assert not any(bool(f[elsewhere].any()) for f in (sample.advantages, sample.returns, sample.values))
    assert sample.score == pytest.approx(1.0)


def test_a_frozen_critic_is_read_and_never_taught() -> None:
    one, annotation, places = interleaved()
    (sample,), _ = credited("dvpo", [one], [annotation], whitening="none")
    own = annotation.values[0][places, 0].tolist()
    assert said(sample) == pytest.approx(slow_gae(REWARDS, [*own, 0.0], 1.0, 0.95))
    assert sample.returns is None


def test_a_histogram_of_values_is_read_as_its_mean() -> None:
    one, annotation, places = interleaved(outputs=4)
    settings = {"critic": "hl_gauss", "value_low": -1.0, "value_high": 3.0, "whitening": "none", "lam": 0.5}
    (sample,), _ = credited("ppo", [one], [annotation], **settings)
    own = []
    for t in places:
        odds = [math.exp(x) for x in annotation.values[0][t].tolist()]
        own.append(sum(o / sum(odds) * centre for o, centre in zip(odds, (-0.5, 0.5, 1.5, 2.5), strict=True)))
    assert said(sample, sample.values) == pytest.approx(own)
    assert said(sample) == pytest.approx(slow_gae(REWARDS, [*own, 0.0], 1.0, 0.5))


@pytest.mark.parametrize("worth", [1.0, -1.0])
def test_what_is_no_better_than_the_critic_expects_of_its_prompt_gets_no_credit(worth: float) -> None:
    one, annotation, places = interleaved()
    scored = Verdict(worth, steps=one.verdicts[0].steps)
    (sample,), _ = credited("a_lol_ref_free", [replace(one, verdicts=(scored,))], [annotation])
    expected = max(0.0, worth - annotation.values[0][places[0], 0].item())
    assert said(sample) == pytest.approx([expected] * 5)
    assert said(sample, sample.returns) == pytest.approx([worth] * 5)


def test_a_step_is_worth_what_it_changes_in_the_chance_of_being_right() -> None:
    one, annotation, places = interleaved()
    (sample,), _ = credited("direct_advantage", [one], [annotation])
    chance = [1 / (1 + math.exp(-v)) for v in annotation.values[0][places, 0].tolist()]
    # The steps end with the second and the third of five tokens, and with the response.
    first, second, last = chance[2] - chance[0], chance[3] - chance[2], 1.0 - chance[3]
    assert said(sample) == pytest.approx([first, first, second, last, last])
    assert said(sample, sample.ends) == [0, 1, 1, 0, 1]
    assert said(sample, sample.values) == pytest.approx(chance)
    assert not bool(sample.ends[~torch.tensor(sample.rollout.mask)].any())
    assert sample.returns is None
    assert credited("dqo", [one], [annotation])[0][0].ends is None


@pytest.mark.parametrize("gap", [0.0, 0.4, -0.3])
def test_v_trace_weighs_by_the_gap_between_trainer_and_engine_at_the_tokens_said(gap: float) -> None:
    one, plain, places = interleaved()
    previous = torch.tensor([-1.0 + gap if m else 70.0 for m in one.rollouts[0].mask], dtype=torch.float64)
    (sample,), _ = credited("impala", [one], [Annotation([previous], values=plain.values)])
    values, rho = [*plain.values[0][places, 0].tolist(), 0.0], min(math.exp(gap), 1.0)
    # v_s = V_s + rho d_s + c (v_{s+1} - V_{s+1}), backwards from the end.
    targets = [0.0] * 6
    for t in reversed(range(5)):
        error = rho * (REWARDS[t] + values[t + 1] - values[t])
        targets[t] = values[t] + error + rho * (targets[t + 1] - values[t + 1])
    assert said(sample, sample.returns) == pytest.approx(targets[:5])
    expected = [rho * (REWARDS[t] + targets[t + 1] - values[t]) for t in range(5)]
    assert said(sample) == pytest.approx(expected)


def test_a_sample_carries_what_the_learner_noted_of_its_own_response() -> None:
    one = group(1.0, None, 0.0, lengths=(1, 2, 3))
    noted = Annotation(*([torch.full((len(r.tokens), 1 + i), float(i)) for i, r in enumerate(one.rollouts)],) * 2)
    samples, _ = credited("grpo", [one], [noted])
    for sample, i in zip(samples, (0, 2), strict=True):
        assert sample.rollout is one.rollouts[i]
        assert sample.previous is noted.previous[i]
        assert sample.reference is noted.reference[i]
        assert sample.uniform is sample.values is sample.returns is None
