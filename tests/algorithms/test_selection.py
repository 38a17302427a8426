"""Which groups teach, and which responses of a group are learnt from."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.choice import choose
from posttrain.algorithms.selection import asks_for, informative, note_spread, rounds, widest_margins
from posttrain.algorithms.state import RowState
from posttrain.types import Annotation, Group, Verdict
from tests.algorithms.made import credited, group, rollout, said, verdict


class TestGroups:
    @pytest.mark.parametrize("kind", ["mixed", "dynamic"])
    def test_a_group_of_one_score_teaches_nothing_where_contrast_is_asked_for(self, kind: str) -> None:
        algorithm = choose("grpo", {"selection": kind})
        groups = [group(1.0, 1.0), group(1.0, 0.0), group(1.0, None), group(1.0, None, 0.5), group(None, None)]
        assert [informative(algorithm, g) for g in groups] == [False, True, False, True, False]

    @pytest.mark.parametrize("kind", ["all", "greedy_wrong", "implicit_margin"])
    def test_any_group_with_enough_scores_teaches_elsewhere(self, kind: str) -> None:
        algorithm = choose("grpo", {"selection": kind})
        assert [informative(algorithm, g) for g in (group(1.0, 1.0), group(1.0, None))] == [True, False]

    def test_every_kind_of_selection_is_tested_here(self) -> None:
        kinds = {"all", "mixed", "dynamic", "greedy_wrong", "steady_spread", "implicit_margin"}
        assert set(CATALOGUE["selection"]) == kinds

    def test_only_prompts_that_the_greedy_response_gets_wrong_are_asked(self) -> None:
        strict = choose("self", {"right_score": 0.8})
        greedy = [Verdict(0.0), Verdict(0.79), Verdict(0.8), Verdict(1.0), verdict(None)]
        assert [asks_for(strict, g) for g in greedy] == [True, True, False, False, False]
        assert all(asks_for(choose("grpo", {}), g) for g in greedy)

    def test_prompts_are_drawn_anew_as_often_as_the_row_says(self) -> None:
        assert [rounds(choose(n, c)) for n, c in (("grpo", {}), ("dapo", {}), ("self", {"max_rounds": 3}))] == [
            1,
            10,
            3,
        ]

    def test_a_spread_is_held_against_its_moving_mean_after_the_warm_up(self) -> None:
        changes = {"spread_decay": 0.75, "spread_factor": 0.5, "spread_warmup": 2}
        algorithm, state, mean = choose("rlpr", changes), RowState(), None
        steps = [[(0.0, 1.0), (0.5, 0.5)], [(0.0, 0.2), (0.4, 1.0)], [(0.0, 0.0, 3.0), (0.1, 0.3)], [(0.0, 2.0)]]
        for number, rows in enumerate(steps):
            for row in [*rows, (0.0, 0.1), (0.3, 0.3)]:
                steady = number < 2 or statistics.pstdev(row) >= 0.5 * mean
                assert informative(algorithm, group(*row), state) == steady, (number, row)
            note_spread(algorithm, [group(*row) for row in rows], state)
            now = statistics.fmean(statistics.pstdev(row) for row in rows)
            mean = now if mean is None else 0.75 * mean + 0.25 * now
            assert state.spread == pytest.approx(mean)
            assert state.spread_steps == number + 1

    def test_the_spread_of_a_group_is_that_of_its_graded_responses(self) -> None:
        algorithm, state = choose("rlpr", {}), RowState()
        note_spread(algorithm, [group(0.0, None, 1.0)], state)
        assert state.spread == pytest.approx(0.5)

    def test_a_group_without_a_graded_response_says_nothing_of_spreads(self) -> None:
        algorithm, state = choose("rlpr", {}), RowState()
        note_spread(algorithm, [group(0.0, 1.0), group(None, None)], state)
        assert state.spread == pytest.approx(0.5)

    def test_a_row_that_does_not_ask_for_spreads_keeps_none(self) -> None:
        state = RowState()
        note_spread(choose("grpo", {}), [group(0.0, 1.0)], state)
        assert state == RowState()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestMargins:
    """Which pairs of a step are furthest apart in log-ratio already (selection: implicit_margin)."""

    SCORES = ((1.0, 0.0), (0.0, 1.0), (0.2, None, 0.9, 0.1), (1.0, 0.5, 1.0), (0.0, 0.0, 1.0))

    def step(self) -> tuple[list[Group], list[Annotation]]:
        """Ragged groups with a tool span inside a response, and log-probabilities that are garbage outside masks."""
        masks = ((True,), (True, True), (True, False, True, True), (True, True, True))
        groups, notes = [], []
        for name, scores in enumerate(self.SCORES):
            rollouts = tuple(rollout(masks[(name + i) % 4], 4 + name) for i in range(len(scores)))
            groups.append(Group(group(1.0).prompt, rollouts, tuple(verdict(s) for s in scores)))
            sizes = [(10 * name + i, len(r.tokens)) for i, r in enumerate(rollouts)]
            notes.append(Annotation([noise(s, n) for s, n in sizes], [noise(s + 500, n, 2) for s, n in sizes]))
        return groups, notes

    def margin(self, one: Group, note: Annotation) -> float:
        def log_ratio(score: float) -> float:
            i = [v.score for v in one.verdicts].index(score)
            own, others = note.previous[i].tolist(), note.reference[i].tolist()
            said = [t for t, m in enumerate(one.rollouts[i].mask) if m]
            return sum(own[t] - 0.25 * others[t][0] - 0.75 * others[t][1] for t in said)

        graded = [v.score for v in one.verdicts if v.score is not None]
        return log_ratio(max(graded)) - log_ratio(min(graded))

    @pytest.mark.parametrize(("fraction", "count"), [(1.0, 5), (0.7, 4), (0.5, 2), (0.4, 2), (0.01, 1)])
    def test_the_share_with_the_widest_margins_is_kept_in_its_order(self, fraction: float, count: int) -> None:
        algorithm = choose("sera", {"keep_fraction": fraction})
        groups, notes = self.step()
        margins = [self.margin(g, n) for g, n in zip(groups, notes, strict=True)]
        found, report = widest_margins(algorithm, groups, notes, (0.25, 0.75))
        assert found == sorted(sorted(range(5), key=lambda i: -margins[i])[:count])
        assert report.values()["learn/implicit_margin"] == pytest.approx(statistics.fmean(margins))
        assert report.values()["learn/kept_groups"] == pytest.approx(count / 5)

    def test_a_group_without_a_graded_response_comes_last(self) -> None:
        groups, notes = self.step()
        groups[1] = replace(groups[1], verdicts=tuple(Verdict(None, "error") for _ in groups[1].verdicts))
        algorithm, share = choose("sera", {"keep_fraction": 0.8}), (0.25, 0.75)
        found, report = widest_margins(algorithm, groups, notes, share)
        assert found == [0, 2, 3, 4]
        graded = [self.margin(g, n) for i, (g, n) in enumerate(zip(groups, notes, strict=True)) if i != 1]
        assert report.values()["learn/implicit_margin"] == pytest.approx(statistics.fmean(graded))

    def test_of_equal_margins_the_first_are_kept(self) -> None:
        groups, notes = self.step()
        found, _ = widest_margins(choose("sera", {"keep_fraction": 0.5}), groups[:1] * 4, notes[:1] * 4, (0.25, 0.75))
        assert found == [0, 1]


def kept(kind: str, one: Group, **changes: Any) -> list[int]:
    """Indices of the responses that are left of a group."""
    samples, _ = credited("grpo", [one], keep=kind, credit="ones", **changes)
    places = {id(r): i for i, r in enumerate(one.rollouts)}
    return [places[id(s.rollout)] for s in samples]


class TestResponses:
    SCORES = (0.25, 1.0, 0.0, 1.0, 0.0, 0.5)

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("all", [0, 1, 2, 3, 4, 5]),
            ("best", [1]),
            ("best_worst", [1, 4]),
            ("right", [1, 3, 5]),
            ("one_each", [0, 1]),
        ],
    )
    def test_what_is_kept_of_a_group_in_the_order_it_was_drawn(self, kind: str, expected: list[int]) -> None:
        assert kept(kind, group(*self.SCORES)) == expected

    def test_every_kind_of_keeping_is_tested_here(self) -> None:
        assert set(CATALOGUE["keep"]) == {"all", "best", "best_random", "best_worst", "right", "one_each"}

    def test_the_best_goes_with_one_other_that_its_seed_decides(self) -> None:
        others = set()
        for first in range(40):
            rollouts = tuple(rollout((True,) * 2, seed=first + i) for i in range(6))
            one = Group(group(1.0).prompt, rollouts, tuple(Verdict(s) for s in self.SCORES))
            found = kept("best_random", one)
            assert found == kept("best_random", one)
            assert found == sorted(found)
            assert len(found) == 2
            assert 1 in found
            others |= set(found)
        assert others == set(range(6))

    def test_a_bound_moves_what_counts_as_right(self) -> None:
        assert kept("right", group(*self.SCORES), right_score=0.25) == [0, 1, 3, 5]
        assert kept("one_each", group(*self.SCORES), right_score=0.75) == [0, 1]
        assert kept("one_each", group(*self.SCORES), right_score=0.25) == [0, 2]

    @pytest.mark.parametrize("scores", [(1.0, 1.0), (0.0, 0.25)])
    def test_without_one_of_each_nothing_is_kept(self, scores: tuple[float, ...]) -> None:
        assert kept("one_each", group(*scores)) == []

    def test_nothing_right_leaves_nothing(self) -> None:
        assert kept("right", group(0.0, 0.25)) == []

    def test_equal_texts_of_one_prompt_are_learnt_once_unless_asked_otherwise(self) -> None:
        texts = ["a", "b", "a", "c", "b"]
        rollouts = tuple(rollout((True,) * 2, text=text) for text in texts)
        verdicts = tuple(Verdict(s) for s in (1.0, 0.0, 1.0, 1.0, 1.0))
        one = Group(group(1.0).prompt, rollouts, verdicts)
        assert kept("right", one) == [0, 3, 4]
        assert kept("right", one, dedupe="never") == [0, 2, 3, 4]
        elsewhere = Group(group(1.0).prompt, rollouts, verdicts)
        samples, _ = credited("expert_iteration", [one, elsewhere])
        assert [s.group for s in samples] == [0, 0, 0, 1, 1, 1]

    def test_ungraded_responses_are_never_kept(self) -> None:
        assert kept("best", group(None, 0.25, None, 0.5)) == [3]
        assert kept("best_worst", group(None, 0.25, None, 0.5)) == [1, 3]

    def test_credit_is_assigned_before_responses_are_left_out(self) -> None:
        samples, _ = credited("dr_grpo", [group(1.0, 0.0, 0.0, 0.0)], keep="best_worst")
        assert [said(s)[0] for s in samples] == pytest.approx([0.75, -0.25])

    def test_what_is_kept_is_decided_by_scores_as_they_are_shaped(self) -> None:
        one = group(1.0, 0.75, lengths=(10, 3))
        assert kept("best", one) == [0]
        assert kept("best", one, shaping="overlong") == [1]
