"""Variants of rows that play against an earlier policy, or compare what they sample. Imports no torch."""

from __future__ import annotations

from posttrain.algorithms.variants.variant import Variant

GAMES: dict[str, tuple[Variant, ...]] = {
    "Against an earlier policy": (
        Variant(
            "Iterative DPO",
            "The policy of every 100th step is the reference of the next ones (2312.11456).",
            "algorithm: iterative_dpo\nreference: {refresh: copy, every: 100}",
        ),
        Variant(
            "Iterative IPO",
            "The same with another loss.",
            "algorithm: {name: iterative_dpo, objective: best_worst_squared}\nreference: {refresh: copy, every: 100}",
        ),
        Variant(
            "Accelerated DPO",
            "At each copy the policy goes on by a share of the way it came (2410.06293).",
            "algorithm: accelerated_dpo\nreference: {refresh: copy, every: 100, momentum: 0.3}",
        ),
        Variant(
            "alpha-SPIN",
            "Log-ratios are to a mixture of the last iterate, the opponent, with the policy training began from "
            "(2404.04291).",
            "algorithm: spin\n"
            "reference: {refresh: copy, every: 100, policies: [{share: 0.9}, {path: owner/model, share: 0.1}]}",
        ),
        Variant(
            "SPIN against a larger pool",
            "Each step's opponent is one of the last eight iterates.",
            "algorithm: {name: spin_pool, pool_size: 8}\nreference: {refresh: copy, every: 100}",
        ),
        Variant(
            "INPO",
            "Shares of the iterate and of the base are 1 - tau / eta and tau / eta (2407.00617).",
            "algorithm: inpo\n"
            "reference: {refresh: copy, every: 100, policies: [{share: 0.67}, {path: owner/model, share: 0.33}]}",
        ),
        Variant(
            "DNO on best and worst",
            "Without the other pairs of a group it is iterative DPO, cell by cell.",
            "algorithm: {name: dno, objective: best_worst_sigmoid}\nreference: {refresh: copy, every: 100}",
        ),
        Variant(
            "XPO with more optimism",
            "How much less likely the reference's responses become.",
            "algorithm: {name: xpo, xpo_alpha: 0.001}",
        ),
    ),
    "Losses of groups on what is sampled": (
        Variant(
            "Online SLiC",
            "The hinge loss of the best and worst of a group (2402.04792).",
            "algorithm: {name: online_dpo, objective: hinge}",
        ),
        Variant(
            "Online EXO",
            "The reverse KL to what the scores say of a whole group.",
            "algorithm: {name: online_dpo, objective: exo}",
        ),
        Variant(
            "Online SimPO",
            "Mean log-probabilities, no reference.",
            "algorithm: {name: online_dpo, objective: simpo, anchor: none, ratio: sequence}",
        ),
        Variant(
            "Online RPO",
            "The best response of each group is also learnt by likelihood.",
            "algorithm: {name: online_dpo, cloning: best, cloning_coefficient: 0.1}",
        ),
    ),
}
