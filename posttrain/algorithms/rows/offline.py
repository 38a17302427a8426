"""Rows that learn from responses which come with the data. Imports no torch."""

from __future__ import annotations

from typing import Any

from posttrain.algorithms.row import Algorithm, row

Choice = str | tuple[str, dict[str, Any]]
LONG = {"clip_low": 0.9, "clip_high": 0.9}


def _text(name: str, paper: str, **cells: Choice) -> Algorithm:
    """What was said is learnt token by token."""
    return row(
        name,
        paper,
        **{"source": "given", "credit": "ones", "correction": "none", "reduction": "token_mean", **cells},
    )


def _set(name: str, paper: str, objective: Choice, **cells: Choice) -> Algorithm:
    """The responses to a prompt are compared by their log-ratios to the reference."""
    plain: dict[str, Any] = {"source": "given", "credit": "score", "anchor": "reference", "correction": "none"}
    plain |= {"ratio": "sequence_sum", "reduction": "group_mean"}
    return row(name, paper, objective=objective, **{**plain, **cells})


OFFLINE: tuple[Algorithm, ...] = (
    # Supervised; of several answers to a question the best is learnt.
    _text("sft", "2203.02155", objective="likelihood", keep="best"),
    _text("dft", "2508.05629", objective="dynamic_likelihood", keep="best"),
    _text("rcrl", "2403.04642", source="conditioned", objective="likelihood"),
    # Pairs, against a reference.
    _set("dpo", "2305.18290", "best_worst_sigmoid"),
    _set("robust_dpo", "2403.00409", "robust"),
    _set("slic", "2305.10425", "hinge"),
    _set("ipo", "2310.12036", "best_worst_squared", ratio="sequence"),
    _set("exo_pair", "2402.00856", "exo_pair"),
    _set("nca", "2402.05369", "nca_pair"),
    _set("bco_pair", "2404.04656", "bco_pair"),
    _set("sppo_hard", "2405.00675", "sppo_hard"),
    _set("aot", "2406.05882", "aot"),
    _set("aot_unpaired", "2406.05882", "aot_unpaired"),
    _set("apo_zero", "2408.06266", "apo_zero"),
    _set("apo_down", "2408.06266", "apo_down"),
    _set("discopop", "2406.08414", "discopop"),
    _set("dpo_norm", "2411.15124", ("best_worst_sigmoid", {"contrast_beta": 5.0}), ratio="sequence"),
    _set("f_dpo", "2309.16240", "best_worst_sigmoid", divergence="js"),
    _set("wpo", "2406.11827", "best_worst_sigmoid", weighting="policy_probability"),
    _set("ld_dpo", "2409.06411", "best_worst_sigmoid", ratio="desensitised"),
    _set("rpo", "2405.16436", "best_worst_sigmoid", cloning="best"),
    _set("mpo", "2411.10442", "mpo", cloning="best"),
    _set("dpop", "2402.13228", "positive_sigmoid"),
    _set("odpo", "2402.10571", "margin_sigmoid"),
    _set("modpo", "2310.03708", "modpo"),
    _set("step_dpo", "2406.18629", "best_worst_sigmoid"),
    _set("sera", "2410.09362", "best_worst_sigmoid", selection="implicit_margin"),
    _set("hypo", "2406.01462", "best_worst_sigmoid", kl="online"),
    # Pairs, without one.
    _set("simpo", "2405.14734", "simpo", anchor="none", ratio="sequence"),
    _set("cpo", "2401.08417", "best_worst_sigmoid", anchor="none", cloning="best"),
    _set("orpo", "2403.07691", "orpo", anchor="none", ratio="sequence", cloning="best"),
    _set(
        "alphapo",
        "2501.03884",
        ("alphapo", {"contrast_beta": 2.5, "alphapo_alpha": 0.25}),
        anchor="none",
        ratio="sequence",
    ),
    _set("cpl", "2310.13639", "cpl", anchor="none", ratio="discounted_sum"),
    # Lists, and single answers with a thumb.
    _set("lipo", "2402.01878", "lambda_rank"),
    _set("pro", "2306.17492", "list_mle"),
    _set("exo", "2402.00856", "exo"),
    _set("k_way", "2407.09024", "k_way"),
    _set("kto", "2402.01306", "kto"),
    _set("kto_apo_zero", "2408.06266", "kto_apo_zero"),
    _set("bco", "2404.04656", "bco"),
    # Scored responses.
    _set("rebel_offline", "2404.16767", "rebel"),
    _set("copg_offline", "2406.19185", "copg"),
    _set("agro_offline", "2503.19612", "agro"),
    _set("dro_v", "2405.19107", "dro", critic="joint"),
    *(
        _text(name, "2305.14718", credit="above_value", critic="squared", reduction="sequence_sum", **cells)
        for name, cells in (
            ("a_lol", {"anchor": "reference", "ratio": "sequence_sum", "objective": ("clipped_weight", LONG)}),
            ("a_lol_seq", {"anchor": "reference", "objective": ("clipped_weight", LONG)}),
            ("a_lol_ref_free", {"objective": "likelihood"}),
            ("a_lol_kl", {"objective": "likelihood", "kl": "in_loss"}),
        )
    ),
    _text(
        "direct_advantage",
        "2412.18279",
        credit="step_differences",
        anchor="reference",
        objective="step_regression",
        reduction="sequence_sum",
        critic="frozen_probability",
    ),
    _text(
        "dqo",
        "2410.09302",
        credit="gae",
        anchor="reference",
        objective="regressed",
        reduction="sequence_mean",
        critic="squared",
    ),
)
