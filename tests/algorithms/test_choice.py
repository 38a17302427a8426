"""A recipe's choice of a row: what is replaced, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from posttrain.algorithms.catalogue import CATALOGUE, cell
from posttrain.algorithms.cells import Level
from posttrain.algorithms.choice import choose
from posttrain.algorithms.contradictions import contradictions
from posttrain.algorithms.row import DEFAULTS
from posttrain.algorithms.table import ALGORITHMS
from posttrain.errors import RecipeError


def mistakes(name: str, **changes: Any) -> str:
    with pytest.raises(RecipeError) as refused:
        choose(name, changes)
    return str(refused.value)


def test_no_row_of_the_table_contradicts_itself_or_holds_a_value_that_would_be_refused() -> None:
    assert len(ALGORITHMS) == 124
    for name, row in ALGORITHMS.items():
        assert contradictions(row) == [], name
        assert choose(name, {}) == row
        for one in row.cells.values():
            assert set(one.values) <= set(one.entry.parameters), (name, one.column)
            for key, value in one.settings.items():
                assert (key, str(value)) not in one.entry.refused, (name, key)
                # Whatever the table says, a recipe may say as well, and means the same by it.
                assert choose(name, {key: value}).cells[one.column][key] == value


def test_every_kind_of_the_catalogue_has_defaults_that_a_recipe_may_write_down() -> None:
    for column, kinds in CATALOGUE.items():
        for kind in kinds:
            row = ALGORITHMS["grpo"].replaced(cell(column, kind))
            for key, value in row.cells[column].settings.items():
                found = choose_or_contradictions(column, kind, key, value)
                assert not [m for m in found if m.startswith(f"algorithm.{key}:")], (column, kind, key, found)


def choose_or_contradictions(column: str, kind: str, key: str, value: object) -> list[str]:
    try:
        choose("grpo", {column: kind, key: value})
    except RecipeError as error:
        return error.mistakes
    return []


def test_levels_of_kinds_are_those_that_somebody_reads() -> None:
    levels = {
        "credit": {"group", "step", "token"},
        "objective": {"token", "step", "set", "scorer", "scorer_token"},
        "reduction": {"token", "set"},
        "contrast": {"token", "scorer"},
    }
    for column, kinds in CATALOGUE.items():
        assert {entry.level for entry in kinds.values()} == levels.get(column, {"token"}), column
    assert set().union(*levels.values()) == set(get_args(Level))


def test_columns_left_out_of_a_row_are_the_defaults() -> None:
    assert set(DEFAULTS) | {"credit", "objective", "reduction"} == set(CATALOGUE)
    assert {c: ALGORITHMS["grpo"].cells[c].kind for c in DEFAULTS} == DEFAULTS


def test_the_estimate_whose_gradient_is_nothing_is_refused_in_the_loss() -> None:
    text = mistakes("grpo", kl="in_loss", kl_estimator="k1")
    assert "algorithm.kl_estimator: the expected gradient of k1 as a loss is zero" in text
    assert "use kl_estimator: k2, k3 or exact, or kl: in_reward (found 'k1')" in text
    assert choose("grpo", {"kl": "in_reward", "kl_estimator": "k1"}).kl["kl_estimator"] == "k1"
    assert choose("grpo", {"kl": "in_loss"}).kl["kl_estimator"] == "k3"


def test_the_estimate_that_does_not_know_the_token_is_refused_in_the_reward() -> None:
    text = mistakes("grpo", kl="in_reward", kl_estimator="exact")
    assert "algorithm.kl_estimator: the exact KL at a token does not depend on which token was drawn" in text
    assert "use kl_estimator: k1, or kl: in_loss" in text
    assert choose("grpo", {"kl": "in_reward"}).kl["kl_estimator"] == "k1"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grpo", {"clip_low": 0}, "algorithm.clip_low: must be greater than 0 (found 0)"),
        ("grpo", {"clip_low": "wide"}, "algorithm.clip_low: must be a number (found 'wide')"),
        ("grpo", {"clip_low": True}, "algorithm.clip_low: must be a number (found True)"),
        ("grpo", {"clip_low": None}, "algorithm.clip_low: must be a number (found None)"),
        ("grpo", {"objective": "dual_clip", "dual_clip": 1.0}, "algorithm.dual_clip: must be greater than 1"),
        ("ppo", {"gamma": 1.01}, "algorithm.gamma: must be at most 1 (found 1.01)"),
        ("ppo", {"lam": 1.5}, "algorithm.lam: must be at most 1"),
        ("dapo", {"max_rounds": 2.5}, "algorithm.max_rounds: must be a whole number"),
        ("dapo", {"max_rounds": 0}, "algorithm.max_rounds: must be greater than 0"),
        ("expert_iteration", {"dedupe": "yes"}, "algorithm.dedupe: must be one of text, never"),
        ("ppo", {"critic": "hl_gauss", "value_bins": 1}, "algorithm.value_bins: must be greater than 1"),
        ("clip_cov", {"cov_fraction": 1.5}, "algorithm.cov_fraction: must be at most 1"),
        ("dr_grpo", {"constant_length": 0}, "algorithm.constant_length: must be greater than 0"),
        ("rlpr", {"spread_warmup": -1}, "algorithm.spread_warmup: must be at least 0"),
        ("dpo", {"label_smoothing": 0.5}, "algorithm.label_smoothing: must be at most 0.499 (found 0.5)"),
        ("exo_pair", {"label_smoothing": 0}, "algorithm.label_smoothing: must be greater than 0"),
        ("dpo", {"contrast_beta": 0}, "algorithm.contrast_beta: must be greater than 0"),
        ("ld_dpo", {"ld_alpha": 1.1}, "algorithm.ld_alpha: must be at most 1"),
        ("cpl", {"discount": 0}, "algorithm.discount: must be greater than 0"),
        ("reward_ties", {"tie_theta": 1}, "algorithm.tie_theta: must be greater than 1 (found 1)"),
        ("reward_outcome", {"heads": 0}, "algorithm.heads: must be greater than 0"),
        ("reward_outcome", {"head_dropout": 1.0}, "algorithm.head_dropout: must be at most 0.9"),
        ("spin_pool", {"pool_size": 0}, "algorithm.pool_size: must be greater than 0"),
        ("sera", {"keep_fraction": 0}, "algorithm.keep_fraction: must be greater than 0"),
    ],
)
def test_values_out_of_bounds_are_refused_with_what_was_found(name: str, changes: dict[str, Any], message: str) -> None:
    assert message in mistakes(name, **changes)


@pytest.mark.parametrize("value", [float("nan"), -0.5])
def test_a_mixture_weight_that_is_none_is_refused(value: float) -> None:
    assert "algorithm.lam: must be" in mistakes("ppo", lam=value)


def test_none_is_legal_where_a_bound_or_the_recipe_stands_for_it() -> None:
    assert choose("ppo", {"value_clip": None}).critic["value_clip"] is None
    assert choose("dr_grpo", {"constant_length": None}).reduction["constant_length"] is None
    assert choose("ppo", {"lam": 0}).credit["lam"] == 0


def test_what_is_unknown_is_refused_with_what_is_near_or_whose_it_is() -> None:
    assert "did you mean 'dapo'" in mistakes("dapoo")
    assert "the table has reinforce, " in mistakes("zzzzzz")
    assert "algorithm.reduction: 'mean' is not one of token_mean" in mistakes("grpo", reduction="mean")
    assert "did you mean 'clip_low'" in mistakes("grpo", clip_lo=0.1)
    text = mistakes("grpo", max_kl=0.1)
    assert "algorithm.max_kl: belongs to trust: stop, but grpo has trust: none; set algorithm.trust: stop" in text


def test_every_mistake_is_named_at_once() -> None:
    text = mistakes("grpo", reduction="mean", clip_low=-1, lr=1, credit="gae")
    for key in ("reduction", "clip_low", "lr", "critic"):
        assert f"algorithm.{key}:" in text


def test_a_parameter_that_two_cells_have_is_set_in_both() -> None:
    chosen = choose("expert_iteration", {"selection": "greedy_wrong", "right_score": 0.9})
    assert chosen.selection["right_score"] == chosen.keep["right_score"] == 0.9


def test_a_replaced_cell_starts_from_its_own_defaults() -> None:
    chosen = choose("reinforce_pp", {"kl": "in_loss"})
    assert (chosen.kl["kl_coefficient"], chosen.kl["kl_estimator"]) == (0.04, "k3")
    assert choose("dapo", {}).objective["clip_high"] == 0.28
    assert choose("dapo", {"objective": "clip"}).objective["clip_high"] == 0.2
