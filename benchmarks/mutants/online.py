"""Mutants of the formulas that learn from what the policy samples."""

from mutants import Mutant

MUTANTS = [
    Mutant("advantages", "return scores - scores.mean()", "return scores + scores.mean()", "sign of the group's mean"),
    Mutant("advantages", "std = centred.square().mean().sqrt()", "std = scores.std()", "sample std, not population"),
    Mutant(
        "advantages", "len(scores) / (len(scores) - 1)", "(len(scores) - 1) / len(scores)", "leave one out inverted"
    ),
    Mutant("advantages", "(weights * scores).sum() / weights.sum()", "scores.mean()", "length weights lost"),
    Mutant("advantages", "return centred / scores.mean()", "return centred / scores.sum()", "sum for mean"),
    Mutant("advantages", "(missed - missed_with) / std", "(missed + missed_with) / std", "pass@k: sign for the wrong"),
    Mutant("advantages", "(normed * weights.to(normed.dtype)).sum(", "normed.mean(", "weights of graders lost"),
    Mutant("advantages", "return scores - greedy", "return greedy - scores", "sign against the greedy response"),
    Mutant("advantages", "return scores - baseline", "return scores + baseline", "sign of the outer baseline"),
    Mutant("advantages", "std = group_mean(scores).square()", "std = centred.square()", "spread in groups, not of all"),
    Mutant("returns", "float(trajectory.bootstrap.detach()))", "0.0)", "bootstrap lost"),
    Mutant(
        "returns", "gamma * values[1:] - values[:-1]\n    adv", "gamma * values[1:] + values[:-1]\n    adv", "GAE sign"
    ),
    Mutant("returns", "torch.full_like(errors, gamma * lam)", "torch.full_like(errors, lam)", "GAE without gamma"),
    Mutant("returns", "advantages + values[:-1])", "advantages)", "critic's target without its value"),
    Mutant("returns", "1 - 1 / (adaptive_alpha * length)", "1 - adaptive_alpha / length", "lam of the length"),
    Mutant(
        "returns", "_, returns = gae(trajectory, gamma, 1.0)", "_, returns = gae(trajectory, gamma, lam)", "VAPO target"
    ),
    Mutant("returns", "(values - whole)[ahead]", "(whole - values)[ahead]", "n-step: sign of the tail"),
    Mutant("returns", "_accumulate(errors, gamma * c, 0.0)", "_accumulate(errors, gamma * rho, 0.0)", "rho for c"),
    Mutant("returns", "gamma * targets[1:]", "gamma * values[1:]", "V-trace: value for target"),
    Mutant("whitening", "group_norm(advantages, std_floor=whiten_floor)", "batch_scale(advantages)", "not centred"),
    Mutant("whitening", "return advantages / std", "return advantages * std", "times the spread"),
    Mutant("whitening", "gap * gap * count * more / total", "gap * gap * more / total", "spread between steps"),
    Mutant("whitening", "mean + gap * more / total", "mean + gap * count / total", "shares of old and new swapped"),
    Mutant(
        "whitening", "math.sqrt(square / max(count, 1))", "math.sqrt(square / max(count - 1, 1))", "denominator n - 1"
    ),
    Mutant("surrogates", "return -(log_ratio - log", "return (log_ratio - log", "REINFORCE ascends the loss"),
    Mutant("surrogates", "-torch.minimum(ratio * advantages", "-torch.maximum(ratio * advantages", "optimistic clip"),
    Mutant(
        "surrogates", "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(1 - clip_high, 1 + clip_low)", "bounds"
    ),
    Mutant("surrogates", "torch.minimum(loss, -dual_clip", "torch.maximum(loss, -dual_clip", "dual clip from below"),
    Mutant(
        "surrogates", "return -sequence(clipped, ", "return -sequence(log_ratio, ", "geometric mean without its clip"
    ),
    Mutant("surrogates", "return -(4 / tau)", "return -(1 / tau)", "gate without its 4"),
    Mutant("surrogates", "weight = log_ratio.detach()", "weight = -log_ratio.detach()", "ratio inverted"),
    Mutant("surrogates", ".clamp(max=weight_cap)", ".clamp(min=weight_cap)", "cap from below"),
    Mutant(
        "surrogates", "advantages * log_ratio.detach() > 0", "advantages * log_ratio.detach() < 0", "inward for outward"
    ),
    Mutant("surrogates", "old.exp() * (old - new) + other", "new.exp() * (new - old) + other", "KL the other way"),
    Mutant("surrogates", "torch.where(advantages >= 0, positive, negative)", "-positive", "drift of the wrong sign"),
    Mutant("surrogates", "- ratio + 1) / step_size", "- ratio + 1) * step_size", "step size inverted"),
    Mutant("likelihoods", "return -advantages * tokens.logprobs", "return advantages * tokens.logprobs", "sign"),
    Mutant("likelihoods", "ratio <= 1 + clip_high, ratio >=", "ratio >= 1 + clip_high, ratio <=", "kept and dropped"),
    Mutant("likelihoods", "tokens) / (1 + temper)", "tokens) * (1 + temper)", "temper inverted"),
    Mutant("likelihoods", "advantages + shift, tokens", "advantages - shift, tokens", "shift of the wrong sign"),
    Mutant("likelihoods", "-negative_weight * advantages", "negative_weight * advantages", "bad responses are learnt"),
    Mutant("likelihoods", "advantages + rover_scale * tokens", "advantages - rover_scale * tokens", "Bellman target"),
    Mutant("covariance", "mean <= second_moment_budget", "mean >= second_moment_budget", "beyond the budget is kept"),
    Mutant("covariance", "* (logprobs - logprobs.mean())", "* (logprobs.mean() - logprobs)", "sign of the covariance"),
    Mutant(
        "covariance", "return max(int(fraction * total), 1)", "return max(int(total / fraction), 1)", "share inverted"
    ),
    Mutant("covariance", "(descending=True, stable=True)", "(stable=True)", "lowest covariance for highest"),
    Mutant("covariance", "+ penalty * log_ratio.abs()", "- penalty * log_ratio.abs()", "penalty that rewards"),
    Mutant("contrasts", "_pair_mean(lr / rebel_eta - r)", "_pair_mean(lr / rebel_eta + r)", "REBEL: sign of the score"),
    Mutant("contrasts", "* lr) / (2 * contrast_beta)", "* lr) / contrast_beta", "CoPG without its half"),
    Mutant("contrasts", "/ (len(lr) - 1) / contrast_beta", "/ len(lr) / contrast_beta", "biased variance"),
    Mutant("contrasts", "margin = contrast_beta", "margin = -contrast_beta", "the worst is preferred"),
    Mutant("contrasts", "* logsigmoid(-margin), r)", "* logsigmoid(margin), r)", "smoothing of the same label"),
    Mutant("contrasts", "1 / (2 * contrast_beta)).square()", "1 / contrast_beta).square()", "IPO margin doubled"),
    Mutant("contrasts", "(r.mean() - r) * lr", "(r - r.mean()) * lr", "Kimi: sign of the advantage"),
    Mutant("corrections", "return gap.detach()", "return -gap.detach()", "ratio inverted"),
    Mutant("corrections", "mask).clamp(max=importance_cap)", "mask).clamp(min=importance_cap)", "cap from below"),
    Mutant("corrections", "segment).clamp(max=importance_cap)", "segment).clamp(max=1.0)", "cap of a sequence fixed"),
    Mutant("corrections", "importance_low) | (ratio", "importance_low) & (ratio", "nothing is masked"),
    Mutant("corrections", "(total / count.clamp(min=1)).exp()", "total.exp()", "product for geometric mean"),
    Mutant("corrections", "weights.square().sum() * len(weights)", "weights.square().sum()", "share that is a count"),
    Mutant("penalties", "return policy - reference", "return reference - policy", "sign of k1"),
    Mutant("penalties", "(policy - reference).square() / 2", "(policy - reference).square()", "k2 without its half"),
    Mutant("penalties", "    d = reference - policy", "    d = policy - reference", "k3 of the other direction"),
    Mutant("penalties", "(policy.exp() * difference)", "(reference.exp() * difference)", "exact KL's expectation"),
    Mutant("penalties", "max(measured / target - 1", "max(target / measured - 1", "coefficient moves away"),
    Mutant("penalties", "rate if entropy < target", "rate if entropy > target", "entropy bonus moves away"),
    Mutant("values", "error = torch.maximum(error", "error = torch.minimum(error", "optimistic value clip"),
    Mutant("values", "return error / 2", "return error", "squared error without its half"),
    Mutant("values", "return -(target * logits", "return (target * logits", "sign of the cross-entropy"),
    Mutant("values", "(value_high - value_low) / bins", "(value_high - value_low)", "sigma not in bins"),
    Mutant("values", "/ (below[:, -1:] - below[:, :1])", "/ 2", "mass outside the support lost"),
    Mutant("values", "/ outputs.shape[-1] / 2", "/ outputs.shape[-1]", "centres off by half a bin"),
    Mutant("reductions", "max(total_tokens, 1)", "max(total_sequences, 1)", "token mean over sequences"),
    Mutant("reductions", "(total / count.clamp(min=1)).sum()", "total.sum()", "sequence mean without its length"),
    Mutant(
        "reductions", "dtype)).sum() / max(total_sequences, 1)", "dtype)).sum() / int(segment.max() + 1)", "micro-batch"
    ),
    Mutant("reductions", "constant_length * max(total_sequences, 1)", "constant_length", "constant without sequences"),
    Mutant("reductions", "loss.sum() / max(total_groups, 1)", "loss.mean()", "groups of the micro-batch"),
    Mutant(
        "ratios", "return (total / count.clamp(min=1))[segment]", "return total[segment]", "GSPO without its length"
    ),
    Mutant(
        "ratios", ".detach() + log_ratio - log_ratio.detach()", ".detach() - log_ratio + log_ratio.detach()", "sign"
    ),
    Mutant("ratios", "total, _ = per_segment(log_ratio", "total, _ = per_segment(-log_ratio", "sign of the sum"),
    Mutant("shaping", "return -overlong_penalty", "return overlong_penalty", "long responses are rewarded"),
    Mutant("shaping", "/ buffer, 1.0)", "/ max_tokens, 1.0)", "slope over the whole limit"),
]
