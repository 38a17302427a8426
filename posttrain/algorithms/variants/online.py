"""Variants of rows that sample, grade and learn. Imports no torch."""

from __future__ import annotations

from posttrain.algorithms.variants.variant import Variant

ONLINE: dict[str, tuple[Variant, ...]] = {
    "Objectives": (
        Variant(
            "GSPO with token mean",
            "The ratio of whole responses; every token of the step weighs the same.",
            "algorithm: {name: gspo, reduction: token_mean}",
        ),
        Variant(
            "DAPO with equal clips and sequence mean",
            "Without its shaping and selection this is GRPO, cell by cell.",
            "algorithm: {name: dapo, clip_high: 0.2, reduction: sequence_mean, shaping: none, selection: all}",
        ),
        Variant(
            "GRPO with a wider clip above",
            "Clip-higher alone (DAPO, 2503.14476).",
            "algorithm: {name: grpo, clip_high: 0.28}",
        ),
        Variant(
            "Dual-clip PPO",
            "A bad token whose ratio has grown stops at dual_clip (1912.09729).",
            "algorithm: {name: ppo, objective: dual_clip, dual_clip: 3.0}",
        ),
        Variant(
            "RLOO with PPO's clip",
            "For several updates a step.",
            "algorithm: {name: rloo, objective: clip}",
        ),
        Variant(
            "Dr. GRPO with a length of its own",
            "The constant denominator where max_tokens is not it.",
            "algorithm: {name: dr_grpo, constant_length: 4096}",
        ),
        Variant(
            "Advantages scaled, not shifted",
            "Whitening that changes no sign.",
            "algorithm: {name: reinforce_pp, whitening: batch_scale}",
        ),
    ),
    "The gap between engine and trainer": (
        Variant(
            "Truncated importance sampling by token",
            "TIS, the default of most rows.",
            "algorithm: {name: grpo, correction: truncated_importance, importance_cap: 2.0}",
        ),
        Variant(
            "Truncated importance sampling by sequence",
            "The product of a response's ratios, capped.",
            "algorithm: {name: grpo, correction: sequence_truncated, importance_cap: 2.0}",
        ),
        Variant(
            "Masked importance sampling by token",
            "MIS: a token beyond the cap is left out.",
            "algorithm: {name: grpo, correction: masked_importance, importance_cap: 2.0}",
        ),
        Variant(
            "Masked importance sampling by sequence",
            "A response beyond the cap is left out.",
            "algorithm: {name: grpo, correction: sequence_masked, importance_cap: 2.0}",
        ),
        Variant(
            "IcePop",
            "A token whose ratio is too small or too large is left out (2510.18855).",
            "algorithm: {name: grpo, correction: two_sided_mask, importance_low: 0.5, importance_high: 5.0}",
        ),
        Variant(
            "Geometric mask",
            "A response whose mean gap is too large, either way, is left out; no weights.",
            "algorithm: {name: grpo, correction: geometric_mask, geometric_low: 0.99, geometric_high: 1.01}",
        ),
        Variant(
            "No correction",
            "The engine's distribution is taken for the trainer's.",
            "algorithm: {name: grpo, correction: none}",
        ),
        Variant(
            "Ratios to the engine",
            "PPO's ratio is taken to the log-probabilities that the tokens were drawn with.",
            "algorithm: {name: grpo, anchor: behaviour, correction: none}",
        ),
    ),
    "KL to the reference": (
        Variant(
            "k3 in the loss",
            "The penalty of the GRPO paper (2402.03300).",
            "algorithm: {name: grpo, kl: in_loss, kl_coefficient: 0.04}",
        ),
        Variant(
            "k2 in the loss",
            "The estimator with the gradient of KL(policy || reference).",
            "algorithm: {name: grpo, kl: in_loss, kl_estimator: k2}",
        ),
        Variant(
            "Exact KL in the loss",
            "Over the whole vocabulary at every token.",
            "algorithm: {name: grpo, kl: in_loss, kl_estimator: exact}",
        ),
        Variant(
            "k1 in the reward",
            "The penalty of RLHF with a critic or returns by token.",
            "algorithm: {name: ppo, kl: in_reward, kl_coefficient: 0.05}",
        ),
        Variant(
            "Adaptive KL",
            "The coefficient follows a target (1909.08593); the horizon is in responses.",
            "algorithm: {name: ppo, kl: in_reward, kl_coefficient: 0.05, kl_target: 6.0, kl_horizon: 10000}",
        ),
        Variant(
            "Reference as a moving average",
            "At each refresh it keeps decay of itself and takes the rest from the policy.",
            "algorithm: {name: grpo, kl: in_loss}\nreference: {refresh: average, every: 1, decay: 0.99}",
        ),
        Variant(
            "Reference replaced from time to time",
            "The policy of that step becomes the reference.",
            "algorithm: {name: grpo, kl: in_loss}\nreference: {refresh: copy, every: 50}",
        ),
        Variant(
            "Several references",
            "Their penalties are added by share; an entry without a path is the policy as training finds it.",
            "algorithm: {name: grpo, kl: in_loss}\n"
            "reference: {policies: [{share: 0.7}, {path: owner/model, share: 0.3}]}",
        ),
    ),
    "Entropy": (
        Variant(
            "Entropy bonus",
            "A constant coefficient.",
            "algorithm: {name: grpo, entropy: bonus, entropy_coefficient: 0.001}",
        ),
        Variant(
            "Adaptive entropy",
            "The coefficient rises while entropy is below its target (2505.22312).",
            "algorithm: {name: grpo, entropy: adaptive, entropy_target: 0.2, entropy_rate: 0.001}",
        ),
    ),
    "The critic": (
        Variant(
            "PPO with HL-Gauss",
            "A distribution over bins instead of a number (2403.03950).",
            "algorithm: {name: ppo, critic: hl_gauss, value_bins: 51, value_low: 0.0, value_high: 1.0}",
        ),
        Variant(
            "Shared head",
            "A value head on the policy's hidden states, which its loss does not move.",
            "algorithm: ppo\ncritic: {backbone: shared, learning_rate: 0.0003}",
        ),
        Variant(
            "Shared backbone",
            "As before, and the value loss trains the policy's layers too.",
            "algorithm: {name: ppo, value_coefficient: 0.1}\ncritic: {backbone: shared, stop_gradient: false}",
        ),
        Variant(
            "Critic that starts as a reward model",
            "With its head.",
            "algorithm: ppo\ncritic: {path: owner/reward-model, learning_rate: 0.00001}",
        ),
        Variant(
            "Critic warm-up",
            "In the first steps only the critic learns.",
            "algorithm: vapo\ncritic: {warmup_steps: 50}",
        ),
        Variant(
            "PPO without value clipping",
            "The plain squared error.",
            "algorithm: {name: ppo, value_clip: null}",
        ),
        Variant(
            "PPO with V-trace",
            "Credit that weighs the gap to the engine itself, so the correction goes.",
            "algorithm: {name: ppo, credit: v_trace, correction: none}",
        ),
    ),
    "Rewards": (
        Variant(
            "Scores whitened by step",
            "Centred and scaled over the step, then clipped.",
            "algorithm: {name: ppo, scaling: batch, reward_clip: 5.0}",
        ),
        Variant(
            "Scores by their running spread",
            "Scaled, not centred; the spread is that of the whole run.",
            "algorithm: {name: ppo, scaling: running, reward_clip: 5.0}",
        ),
        Variant(
            "PPO-max, switch by switch",
            "From PPO: the running scale and the penalty in the reward make the row of PPO-max (2307.04964).",
            "algorithm: {name: ppo, scaling: running, kl: in_reward, kl_coefficient: 0.01}",
        ),
        Variant(
            "Rewards by step",
            "A verifier's verdict may give shares of the score to single tokens (Verdict.steps); credit by token, as "
            "here, hands them to the tokens before.",
            "algorithm: {name: reinforce_pp, gamma: 1.0}",
        ),
        Variant(
            "Overlong shaping alone",
            "Falls linearly over the last overlong_buffer of max_tokens.",
            "algorithm: {name: grpo, shaping: overlong, overlong_buffer: 0.2, overlong_penalty: 1.0}",
        ),
    ),
    "What is learnt from": (
        Variant(
            "Cut responses left out",
            "They are compared, but not learnt from.",
            "algorithm: {name: grpo, truncated: mask}",
        ),
        Variant(
            "Cut responses penalised",
            "They score less.",
            "algorithm: {name: grpo, truncated: penalise, truncated_penalty: 0.5}",
        ),
        Variant(
            "Cut responses bootstrapped",
            "The critic says what would have followed.",
            "algorithm: {name: ppo, truncated: bootstrap}",
        ),
        Variant(
            "Dynamic sampling alone",
            "Groups without contrast are replaced by fresh ones.",
            "algorithm: {name: grpo, selection: dynamic, max_rounds: 4}",
        ),
        Variant(
            "Groups with contrast only",
            "Groups without contrast are dropped.",
            "algorithm: {name: grpo, selection: mixed}",
        ),
        Variant("PF-PPO, best", "The best response of each group.", "algorithm: {name: pf_ppo, keep: best}"),
        Variant(
            "PF-PPO, best and random",
            "The best response and one other.",
            "algorithm: {name: pf_ppo, keep: best_random}",
        ),
        Variant(
            "PF-PPO, best and worst",
            "The row's own choice.",
            "algorithm: {name: pf_ppo, keep: best_worst}",
        ),
        Variant(
            "Texts beside the roll-outs",
            "The pretraining mix of RLHF (ptx, 2203.02155); its weight may fall over the run.",
            "algorithm: ppo\n"
            "data: {auxiliary: {data: {source: hub, path: owner/texts}, coefficient: 0.1, final_coefficient: 0.0}}",
        ),
    ),
    "The trust region": (
        Variant(
            "Early stop",
            "No further update of a step beyond max_kl.",
            "algorithm: {name: ppo, trust: stop, max_kl: 0.02}",
        ),
        Variant(
            "Rollback",
            "An update that went beyond max_kl is undone.",
            "algorithm: {name: grpo, trust: rollback, max_kl: 0.02}",
        ),
        Variant(
            "Adaptive penalty on KL(old || new)",
            "PPO's second form, its coefficient doubled and halved (1707.06347).",
            "algorithm: {name: ppo, objective: kl_penalised, trust: penalty, max_kl: 0.02, trust_coefficient: 1.0}",
        ),
        Variant(
            "Fix-up",
            "The penalty, then steps on the KL alone until it is below max_kl (2312.05405).",
            "algorithm: {name: grpo, trust: fixup, max_kl: 0.02, fixup_steps: 5}",
        ),
    ),
}
