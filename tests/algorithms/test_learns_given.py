"""Every row of a policy learns from answers that come with the data, through the project's own credit and loss.

The answers are drawn at random, so that few tokens of them hit, and what is learnt is measured on the policy itself:
the exact expected share of right tokens, about .08 at first, and on pairs that were held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.table import ALGORITHMS
from posttrain.types import Group
from tests.algorithms.toy_given import (
    Given,
    continued_pairs,
    flipped,
    graded_pairs,
    learn_given,
    lists,
    pairs,
    preferred,
    scored,
    single,
    squares,
    stepped,
    texts,
    thumbs,
    told,
    worth,
)
from tests.algorithms.toy_runs import BEFORE, OFFLINE, SEEDS, optimum
from tests.toy import ASKED, PROMPTS, TARGETS

PAIRS, LISTS = Given(pairs, preferred=0.75), Given(lists, groups=16)
FAMILIES: tuple[tuple[Callable[[Algorithm], bool], Given], ...] = (
    (lambda row: row.needs.conditioning, Given(told, groups=64, ways=2)),
    (lambda row: row.needs.steps, Given(stepped, groups=64)),
    (lambda row: row.needs.margins, replace(PAIRS, data=graded_pairs)),
    (lambda row: row.needs.pairs, PAIRS),
    (lambda row: row.needs.min_group > 1, LISTS),
    (lambda row: row.needs.critic, Given(scored, groups=64)),
    (lambda row: row.objective.entry.level == "set", Given(thumbs, groups=64)),
    (lambda row: True, Given(texts)),
)
"""What a row learns from, by what it needs: the first that fits."""

RESTS = "it comes to rest at its own optimum, which is .7 at .1; a test below measures it"
CLONES = "at 1 the likelihood of the best answers prevails, of which a third hits"
SETTINGS = {
    "sft": Given(texts, "it says what its texts say, of which two thirds hit; a test below measures it", goal=0.55),
    "lipo": replace(LISTS, why="lists are what it is for"),
    "pro": replace(LISTS, why="lists are what it is for"),
    "step_dpo": replace(PAIRS, data=continued_pairs, why="its answers continue a step that both begin with"),
    "sppo_hard": replace(PAIRS, why="it pulls every best answer up by 5 nats and no further", goal=0.45),
    "dpop": replace(PAIRS, why="no answer that was ever the best may fall below the reference", goal=0.55),
    **{
        name: replace(PAIRS, why="half a nat between means over tokens contents it, and the rest is slow", steps=60)
        for name in ("dpo_norm", "alphapo")
    },
    "apo_down": replace(
        PAIRS, why="it lowers both answers, the worst more, so that what neither says gains", goal=0.14, preferred=0.6
    ),
    "discopop": replace(
        PAIRS, why="at .05 its slope leads away from what is preferred; a test below", overrides={"discopop_tau": 0.5}
    ),
    "hypo": replace(PAIRS, why="KL on what it says itself holds it at .4", overrides={"kl_coefficient": 0.01}),
    **{name: replace(PAIRS, why=CLONES, overrides={"cloning_coefficient": 0.1}) for name in ("rpo", "mpo", "cpo")},
    "orpo": replace(PAIRS, why=CLONES, overrides={"cloning_coefficient": 0.1, "odds_weight": 1.0}),
    **{
        name: replace(LISTS, why=RESTS, overrides={"contrast_beta": 0.05})
        for name in ("exo", "k_way", "copg_offline", "agro_offline")
    },
    "rebel_offline": replace(LISTS, why="eta is the price of leaving the reference", overrides={"rebel_eta": 20.0}),
    "dro_v": Given(scored, RESTS, groups=64, overrides={"dro_tau": 0.05}),
    "dqo": Given(scored, RESTS, groups=64, overrides={"contrast_beta": 0.05}),
    "direct_advantage": Given(stepped, RESTS, groups=64, overrides={"contrast_beta": 0.05}),
    "a_lol_kl": Given(scored, "KL holds it below .6", groups=64, overrides={"kl_coefficient": 0.01}),
}


def given_to(name: str) -> Given:
    row = ALGORITHMS[name]
    return SETTINGS[name] if name in SETTINGS else next(given for fits, given in FAMILIES if fits(row))


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("name", OFFLINE)
def test_every_row_learns_from_given_answers(name: str, seed: int) -> None:
    given = given_to(name)
    algorithm = choose(name, given.overrides)
    run = learn_given(algorithm, given, seed, given.data(seed))
    assert run.rewards[0] < BEFORE
    assert run.reached >= given.goal, run.rewards
    if given.preferred:
        assert preferred(run.learner, algorithm, given.data(seed + 100)) >= given.preferred


def test_every_deviation_has_its_reason_and_its_row() -> None:
    assert set(SETTINGS) <= set(OFFLINE)
    assert all(given.why for given in SETTINGS.values())


COMPARING = [name for name in OFFLINE if given_to(name).preferred]


@pytest.mark.parametrize("name", COMPARING)
def test_pairs_of_which_every_other_is_the_wrong_way_round_teach_nothing(name: str) -> None:
    given = replace(given_to(name), goal=2.0, steps=24)
    run = learn_given(choose(name, given.overrides), given, 0, flipped(given.data(0)))
    # A policy that imitates both answers alike says what they do, and a fifth of their tokens hit.
    assert max(run.rewards) < min(0.3, given_to(name).goal)


def test_a_loss_whose_slope_is_uphill_at_the_reference_unlearns_what_is_preferred() -> None:
    """At h = 0 the slope of the loss in h is (1 - log 2) / (4 tau) - 3 / 4: uphill below tau = .102."""
    for tau, learns in ((0.05, False), (0.2, True)):
        algorithm = choose("discopop", {"discopop_tau": tau})
        run = learn_given(algorithm, replace(PAIRS, steps=8), 0, pairs(0))
        assert (preferred(run.learner, algorithm, pairs(100)) > 0.5) == learns


OPTIMAL = {
    **{name: {"contrast_beta": 0.1} for name in ("exo", "k_way", "copg_offline", "agro_offline")},
    "rebel_offline": {"rebel_eta": 10.0},
    "dro_v": {"dro_tau": 0.1},
}


@pytest.mark.parametrize("name", OPTIMAL)
def test_scores_of_every_token_lead_to_the_regularised_optimum_and_no_further(name: str) -> None:
    algorithm = choose(name, OPTIMAL[name])
    groups = squares(0)
    if algorithm.needs.min_group == 1:
        groups = single(groups, lambda group, i: group.verdicts[i])
    given = Given(squares, groups=len(groups) // 4, goal=2.0)
    run = learn_given(algorithm, given, 0, groups)
    # Steps of one size keep a policy from resting at the optimum itself.
    assert fmean(run.rewards[-10:]) == pytest.approx(optimum(run.learner.references[0](ASKED), 0.1), abs=0.04)


def best(groups: list[Group]) -> float:
    """What the best answer of a group is worth, in the mean."""
    return fmean(max(v.score or 0.0 for v in group.verdicts) for group in groups)


def test_texts_are_imitated_as_they_are_and_their_likeliest_tokens_alone_where_these_count_more() -> None:
    given = Given(texts, goal=2.0, steps=50)
    run = learn_given(ALGORITHMS["sft"], given, 0, texts(0))
    # Batches of a sixth of the texts are not quite like all of them.
    assert run.reached == pytest.approx(best(texts(0)), abs=0.03)
    assert learn_given(ALGORITHMS["dft"], given, 0, texts(0)).reached > 0.95


def test_a_policy_that_was_told_what_answers_are_worth_says_good_and_bad_ones_as_it_is_asked() -> None:
    groups = told(0)
    run = learn_given(ALGORITHMS["rcrl"], Given(told, groups=64, ways=2, goal=2.0, steps=50, rate=0.02), 0, groups)
    bad = run.learner.net(ASKED + len(PROMPTS)).detach().exp()[torch.arange(len(TARGETS)), :, TARGETS]
    for found, score in ((run.reached, 1.0), (float(bad.mean()), 0.0)):
        said = [worth(g.prompt, g.rollouts[0]) for g in groups if g.verdicts[0].score == score]
        assert found == pytest.approx(fmean(said), abs=0.03)


def test_kl_on_what_the_policy_says_itself_holds_it_nearer_to_the_reference() -> None:
    free = learn_given(ALGORITHMS["dpo"], replace(PAIRS, goal=2.0, steps=16), 0, pairs(0))
    held = learn_given(ALGORITHMS["hypo"], replace(PAIRS, goal=2.0, steps=16), 0, pairs(0))
    assert held.learner.divergence() < 0.6 * free.learner.divergence()
    assert held.reached > 2 * BEFORE
