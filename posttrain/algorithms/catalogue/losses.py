"""From log-probabilities and advantages to a loss: ratios, objectives, corrections, penalties, value functions."""

from __future__ import annotations

from posttrain.algorithms.catalogue.scores import SCORES
from posttrain.algorithms.catalogue.sets import CONTRAST, SETS
from posttrain.algorithms.cells import Kind, Parameter, asks, positive

ESTIMATORS = ("k1", "k2", "k3", "exact")
KL = {
    "kl_coefficient": Parameter(0.04, low=0.0),
    "kl_estimator": Parameter("k3", choices=ESTIMATORS),
    "kl_target": Parameter(None, low=0.0, optional=True),
    "kl_horizon": positive(10000.0),
}
K1_IN_LOSS = (
    "the expected gradient of k1 as a loss is zero, so it would not hold the policy back; "
    "use kl_estimator: k2, k3 or exact, or kl: in_reward"
)
EXACT_IN_REWARD = (
    "the exact KL at a token does not depend on which token was drawn there, so as its reward it would not hold the "
    "policy back; use kl_estimator: k1, or kl: in_loss"
)
CLIP = {"clip_low": positive(0.2), "clip_high": positive(0.2)}
CAP = {"importance_cap": positive(2.0)}
FRACTION = {"cov_fraction": Parameter(2e-4, low=0.0, high=1.0)}
TRUST = {"max_kl": positive(0.05)}
PENALTY = {"trust_coefficient": positive(1.0)}
TOKENS = ("tokens",)
RATIO = asks("previous")
"""A formula that reads the ratio's value, so that it needs the policy from before a step's first update."""

COLUMNS: dict[str, dict[str, Kind]] = {
    "anchor": {
        "previous": Kind(None, about="Log-ratios are to the trainer's policy before the step's first update."),
        "behaviour": Kind(None, about="Log-ratios are to the engine's own log-probabilities.", asks=asks("behaviour")),
        "reference": Kind(None, about="Log-ratios are to the reference policy.", asks=asks("reference")),
        "iterate": Kind(
            None,
            about="Log-ratios are to the reference policy, which must follow the policy (reference.refresh: copy). "
            "Several references count by their shares, as a geometric mixture.",
            asks=asks("reference", "refresh"),
        ),
        "none": Kind(None, about="Log-ratios are the policy's log-probabilities themselves."),
    },
    "ratio": {
        "token": Kind("ratios.token"),
        "sequence": Kind("ratios.sequence"),
        "sequence_token": Kind("ratios.sequence_token"),
        "sequence_sum": Kind("ratios.sequence_sum"),
        "discounted_sum": Kind("ratios.discounted_sum", {"discount": Parameter(1.0, low=0.0, high=1.0)}),
        "desensitised": Kind(
            "ratios.desensitised", {"ld_alpha": Parameter(0.5, least=0.0, high=1.0)}, takes=("groups",)
        ),
    },
    "divergence": {
        "reverse_kl": Kind("divergences.reverse_kl"),
        "forward_kl": Kind("divergences.forward_kl"),
        "js": Kind("divergences.js"),
        "alpha": Kind("divergences.alpha", {"alpha_coefficient": Parameter(0.5)}),
    },
    "objective": {
        "reinforce": Kind("surrogates.reinforce"),
        "clip": Kind("surrogates.clip", CLIP, asks=RATIO),
        "dual_clip": Kind("surrogates.dual_clip", {**CLIP, "dual_clip": Parameter(3.0, low=1.0)}, asks=RATIO),
        "geometric_clip": Kind(
            "surrogates.geometric_clip",
            {"clip_low": positive(0.4), "clip_high": positive(0.4)},
            takes=TOKENS,
            asks=RATIO,
        ),
        "soft_gate": Kind(
            "surrogates.soft_gate", {"tau_positive": positive(1.0), "tau_negative": positive(1.05)}, asks=RATIO
        ),
        "clipped_weight": Kind(
            "surrogates.clipped_weight",
            {"clip_low": positive(1.0), "clip_high": positive(0.28)},
            takes=TOKENS,
            asks=RATIO,
        ),
        "truncated_weight": Kind(
            "surrogates.truncated_weight", {"weight_cap": positive(1.0)}, takes=TOKENS, asks=RATIO
        ),
        "binary_tv": Kind("surrogates.binary_tv", {"max_divergence": positive(0.2)}, takes=TOKENS, asks=RATIO),
        "binary_kl": Kind("surrogates.binary_kl", {"max_divergence": positive(0.05)}, takes=TOKENS, asks=RATIO),
        "drift": Kind("surrogates.drift", {"drift_alpha": positive(2.0), "drift_beta": positive(0.6)}, asks=RATIO),
        "mirror_descent": Kind(
            "surrogates.mirror_descent", {"step_size": positive(1.0)}, asks=RATIO, teaches_at_zero=True
        ),
        "kl_penalised": Kind("surrogates.kl_penalised", asks=RATIO),
        "likelihood": Kind("likelihoods.likelihood", takes=TOKENS),
        "kept_likelihood": Kind("likelihoods.kept_likelihood", CLIP, takes=TOKENS, asks=RATIO),
        "tempered_likelihood": Kind("likelihoods.tempered_likelihood", {"temper": positive(1.0)}, takes=TOKENS),
        "shifted_likelihood": Kind(
            "likelihoods.shifted_likelihood", {"shift": positive(0.1)}, takes=TOKENS, teaches_at_zero=True
        ),
        "positive_cloning": Kind(
            "likelihoods.positive_cloning",
            {"positive_weight": positive(1.0), "negative_weight": positive(0.5)},
            takes=TOKENS,
            asks=RATIO,
        ),
        "bellman": Kind(
            "likelihoods.bellman",
            {"rover_scale": positive(1.0)},
            takes=TOKENS,
            asks=asks("previous", "uniform"),
            teaches_at_zero=True,
        ),
        "second_moment": Kind(
            "covariance.second_moment",
            {"second_moment_budget": positive(0.04)},
            level="step",
            takes=TOKENS,
            asks=RATIO,
        ),
        "clip_cov": Kind(
            "covariance.clip_cov",
            {"cov_low": Parameter(1.0), "cov_high": Parameter(5.0), **FRACTION, "clip_range": positive(0.2)},
            level="step",
            takes=TOKENS,
            asks=RATIO,
        ),
        "kl_cov": Kind(
            "covariance.kl_cov",
            {**FRACTION, "cov_penalty": positive(1.0)},
            level="step",
            takes=TOKENS,
            asks=RATIO,
            teaches_at_zero=True,
        ),
        "dynamic_likelihood": Kind("likelihoods.dynamic_likelihood", takes=TOKENS),
        "regressed": Kind("likelihoods.regressed", CONTRAST, teaches_at_zero=True),
        "step_regression": Kind(
            "offline.step_regression", CONTRAST, takes=("tokens", "ends"), asks=asks("steps"), teaches_at_zero=True
        ),
        **SETS,
        **SCORES,
    },
    "weighting": {
        "none": Kind("weightings.none"),
        "policy_probability": Kind("weightings.policy_probability", asks=asks("collision")),
    },
    "correction": {
        "none": Kind("corrections.none"),
        "truncated_importance": Kind("corrections.truncated_importance", CAP, asks=asks("behaviour")),
        "masked_importance": Kind("corrections.masked_importance", CAP, asks=asks("behaviour")),
        "two_sided_mask": Kind(
            "corrections.two_sided_mask",
            {"importance_low": positive(0.5), "importance_high": positive(5.0)},
            asks=asks("behaviour"),
        ),
        "sequence_truncated": Kind("corrections.sequence_truncated", CAP, asks=asks("behaviour")),
        "sequence_masked": Kind("corrections.sequence_masked", CAP, asks=asks("behaviour")),
        "geometric_mask": Kind(
            "corrections.geometric_mask",
            {"geometric_low": positive(0.99), "geometric_high": positive(1.01)},
            asks=asks("behaviour"),
        ),
    },
    "reduction": {
        "token_mean": Kind("reductions.token_mean"),
        "sequence_mean": Kind("reductions.sequence_mean"),
        "sequence_sum": Kind("reductions.sequence_sum"),
        "constant": Kind("reductions.constant", {"constant_length": Parameter(None, low=0.0, optional=True)}),
        "group_mean": Kind("reductions.group_mean", level="set"),
    },
    "cloning": {
        "none": Kind(None, about="Nothing is learnt by likelihood alone."),
        "best": Kind(
            None,
            {"cloning_coefficient": positive(1.0)},
            "The loss gains cloning_coefficient x the mean negative log-likelihood of the best responses' tokens.",
        ),
    },
    "contrast": {
        "none": Kind(None, about="A reward model learns from its scores alone."),
        "goal": Kind(
            "scores.contrastive",
            {"contrast_temperature": positive(0.1), "contrast_coefficient": Parameter(0.1, low=0.0, formula=False)},
            level="scorer",
            asks=asks("states"),
        ),
    },
    "kl": {
        "none": Kind(None, about="No penalty towards a reference."),
        "in_loss": Kind(
            None,
            KL,
            "The loss gains kl_coefficient x KL(policy || reference); kl_target adapts the coefficient.",
            asks=asks("reference"),
            refused={("kl_estimator", "k1"): K1_IN_LOSS},
        ),
        "in_reward": Kind(
            None,
            {**KL, "kl_estimator": Parameter("k1", choices=ESTIMATORS)},
            "Each token's reward loses kl_coefficient x KL(policy || reference); kl_target adapts the coefficient. "
            "Only k1 has the gradient of that KL; k2 and k3 scarcely pull near the reference.",
            asks=asks("reference"),
            refused={("kl_estimator", "exact"): EXACT_IN_REWARD},
        ),
        "online": Kind(
            None,
            {"kl_coefficient": Parameter(0.04, low=0.0), "kl_responses": Parameter(1, low=0)},
            "Beside the given responses, kl_responses are sampled to each prompt, and the loss gains kl_coefficient x "
            "KL(policy || reference) on them, its gradient that of REINFORCE.",
            asks=asks("reference", "sampler"),
        ),
    },
    "entropy": {
        "none": Kind(None, about="Entropy is logged, not sought."),
        "bonus": Kind(None, {"entropy_coefficient": positive(0.01)}, "The loss loses entropy_coefficient x entropy."),
        "adaptive": Kind(
            None,
            {"entropy_target": positive(0.2), "entropy_rate": positive(1e-3), "entropy_largest": positive(0.01)},
            "As bonus, its coefficient raised by entropy_rate while entropy is below entropy_target, else lowered.",
        ),
    },
    "critic": {
        "none": Kind(None, about="No value function."),
        "squared": Kind(
            "values.squared",
            {
                "value_coefficient": positive(1.0, formula=False),
                "value_clip": Parameter(None, low=0.0, optional=True),
            },
        ),
        "hl_gauss": Kind(
            "values.hl_gauss",
            {
                "value_coefficient": positive(1.0, formula=False),
                "value_bins": Parameter(51, low=1, formula=False),
                "value_low": Parameter(0.0),
                "value_high": Parameter(1.0),
                "value_sigma": positive(0.75),
            },
        ),
        "frozen": Kind(None, about="A pretrained value function that is never updated."),
        "frozen_probability": Kind(
            None, about="As frozen, its output the logit of a probability: a process reward model is one."
        ),
        "joint": Kind(None, about="The objective itself trains the value function."),
    },
    "trust": {
        "none": Kind(None, about="KL(old || new) is not bounded."),
        "stop": Kind(
            None,
            TRUST,
            "No further update of a step once the mean KL(old || new) of its samples is above max_kl.",
            asks=RATIO,
        ),
        "rollback": Kind(
            None,
            TRUST,
            "An update that brings the mean KL(old || new) of its samples above max_kl is undone, and the step ends.",
            asks=RATIO,
        ),
        "penalty": Kind(
            None,
            {**TRUST, **PENALTY},
            "The loss gains a coefficient x KL(old || new), doubled above 1.5 max_kl and halved below max_kl / 1.5.",
            asks=RATIO,
        ),
        "fixup": Kind(
            None,
            {**TRUST, **PENALTY, "fixup_steps": Parameter(5, low=0)},
            "As penalty; then steps on KL(old || new) alone until it is below max_kl, fixup_steps at most.",
            asks=RATIO,
        ),
    },
}
