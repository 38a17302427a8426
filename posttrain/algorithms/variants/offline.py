"""Variants of rows that learn from responses which come with the data. Imports no torch."""

from __future__ import annotations

from posttrain.algorithms.variants.variant import Variant

OFFLINE: dict[str, tuple[Variant, ...]] = {
    "Demonstrations": (
        Variant(
            "Every demonstration weighs the same",
            "Long ones no more than short ones.",
            "algorithm: {name: sft, reduction: sequence_mean}",
        ),
        Variant(
            "SFT near the policy it starts from",
            "The exact KL at every token of a demonstration; an estimate would need tokens that the policy drew.",
            "algorithm: {name: sft, kl: in_loss, kl_estimator: exact, kl_coefficient: 0.1}",
        ),
        Variant(
            "SFT weighted by scores",
            "Every answer counts as much as the data says it is worth.",
            "algorithm: {name: sft, credit: score, keep: all}",
        ),
        Variant(
            "SFT on all answers",
            "Of several answers to a question not only the best, whatever they are worth.",
            "algorithm: {name: sft, keep: all}",
        ),
        Variant(
            "SFT with adapters",
            "Low-rank ones, beside frozen weights.",
            "algorithm: sft\nmodel: {lora: {rank: 16, alpha: 32}}",
        ),
        Variant(
            "GRPO on scored answers",
            "A list of given answers is a group; nobody knows what sampled them, so nothing is corrected.",
            "algorithm: {name: grpo, source: given, correction: none}",
        ),
    ),
    "Pairs": (
        Variant(
            "cDPO",
            "Labels are wrong with a probability (label smoothing).",
            "algorithm: {name: dpo, label_smoothing: 0.1}",
        ),
        Variant(
            "DPO under the forward KL",
            "One of the f-divergences of 2309.16240.",
            "algorithm: {name: f_dpo, divergence: forward_kl}",
        ),
        Variant(
            "DPO under an alpha divergence",
            "Between the forward KL (0) and the reverse KL (1).",
            "algorithm: {name: f_dpo, divergence: alpha, alpha_coefficient: 0.5}",
        ),
        Variant(
            "IPO by sums",
            "The paper's log-ratios of whole responses; the row averages them over tokens.",
            "algorithm: {name: ipo, ratio: sequence_sum}",
        ),
        Variant(
            "DPO and SFT of the best response",
            "TRL's mix of the losses sigmoid and sft, cell by cell the row of RPO.",
            "algorithm: {name: dpo, cloning: best, cloning_coefficient: 1.0}",
        ),
        Variant(
            "RPO with a small eta",
            "How much the likelihood of the best response counts.",
            "algorithm: {name: rpo, cloning_coefficient: 0.005}",
        ),
        Variant(
            "CPO-SimPO",
            "SimPO with CPO's likelihood of the best response.",
            "algorithm: {name: simpo, cloning: best, cloning_coefficient: 0.05}",
        ),
        Variant(
            "DPO without a reference",
            "CPO without its likelihood.",
            "algorithm: {name: dpo, anchor: none}",
        ),
        Variant(
            "DPO blind to length",
            "What a response has beyond the shorter one's length counts for nothing.",
            "algorithm: {name: ld_dpo, ld_alpha: 0.0}",
        ),
        Variant(
            "SimPO with WPO's weights",
            "Pairs that the policy could have said itself count most.",
            "algorithm: {name: simpo, weighting: policy_probability}",
        ),
        Variant(
            "IPO on the widest margins",
            "SeRA's selection beside another loss.",
            "algorithm: {name: ipo, selection: implicit_margin, keep_fraction: 0.5}",
        ),
        Variant(
            "CPL near a reference",
            "Log-ratios in place of log-probabilities; at cpl_lambda 1 it would be DPO.",
            "algorithm: {name: cpl, anchor: reference, cpl_lambda: 0.5}",
        ),
        Variant(
            "DPO with a KL penalty",
            "The exact KL at every token of both responses.",
            "algorithm: {name: dpo, kl: in_loss, kl_estimator: exact, kl_coefficient: 0.01}",
        ),
    ),
    "The reference of given responses": (
        Variant(
            "TR-DPO, soft",
            "The reference follows the policy as a moving average (2404.09656).",
            "algorithm: dpo\nreference: {refresh: average, every: 1, decay: 0.99}",
        ),
        Variant(
            "TR-DPO, hard",
            "The reference becomes the policy from time to time (2404.09656).",
            "algorithm: dpo\nreference: {refresh: copy, every: 500}",
        ),
        Variant(
            "DPO between references",
            "Log-ratios are to their geometric mixture, by share.",
            "algorithm: dpo\nreference: {policies: [{share: 0.7}, {path: owner/model, share: 0.3}]}",
        ),
        Variant(
            "Reference computed once",
            "Its log-probabilities of every given response are kept on disk.",
            "algorithm: dpo\nreference: {cache: true}",
        ),
    ),
    "Lists, thumbs and scores": (
        Variant(
            "LiPO, all pairs",
            "The logistic loss of every pair of a list, each the same.",
            "algorithm: {name: lipo, objective: pairwise_logistic}",
        ),
        Variant(
            "SLiC over a list",
            "The hinge loss of every pair of a list.",
            "algorithm: {name: lipo, objective: pairwise_hinge}",
        ),
        Variant(
            "EXO by the best",
            "The smoothed label of the best response in place of scores; of two responses it is the row for pairs.",
            "algorithm: {name: exo, objective: exo_best}",
        ),
        Variant(
            "KTO with unequal weights",
            "For data with more thumbs of one kind than of the other.",
            "algorithm: {name: kto, desirable_weight: 1.33, undesirable_weight: 1.0}",
        ),
        Variant(
            "REBEL on given responses",
            "To a fixed reference, cell by cell a row; anchor: previous would be to the policy before each step.",
            "algorithm: {name: rebel, source: given, anchor: reference}",
        ),
        Variant(
            "CoPG on given responses",
            "Cell by cell a row.",
            "algorithm: {name: copg, source: given}",
        ),
        Variant(
            "AGRO on given responses",
            "Cell by cell a row.",
            "algorithm: {name: agro, source: given}",
        ),
        Variant(
            "DRO-V with a softer policy",
            "tau is the price of leaving the reference.",
            "algorithm: {name: dro_v, dro_tau: 0.1}",
        ),
    ),
}
