"""Mutants of the losses of a reward model."""

from mutants import Mutant

MUTANTS = [
    Mutant("scores", "-logsigmoid(gap), outputs", "-logsigmoid(-gap), outputs", "the worse is preferred"),
    Mutant("scores", "-logsigmoid(gap - margin)", "-logsigmoid(gap + margin)", "sign of the margin"),
    Mutant("scores", "margins = scores if offsets is None else offsets", "margins = scores", "offsets not read"),
    Mutant("scores", "+ centring * (r[i] + r[j])", "- centring * (r[i] + r[j])", "centring drives apart"),
    Mutant("scores", "+ centring * (r[i] + r[j])", "+ centring * (r[i] - r[j])", "centring of the gap"),
    Mutant("scores", "(s[:, None] > s).nonzero", "(s[:, None] >= s).nonzero", "ties become pairs"),
    Mutant(
        "scores",
        "logsigmoid(gap - threshold), logsigmoid(-gap - threshold)",
        "logsigmoid(gap + threshold), logsigmoid(-gap + threshold)",
        "ties: sign of the threshold",
    ),
    Mutant("scores", "math.log(tie_theta**2 - 1)", "math.log(tie_theta - 1)", "ties: scale of their share"),
    Mutant("scores", "left = (s[:, None] > s)", "left = (s[:, None] < s)", "Plackett-Luce from below"),
    Mutant(
        "scores",
        "(remaining.logsumexp(1) - r).sum(0)",
        "(remaining.logsumexp(1) - r).mean(0)",
        "Plackett-Luce: mean over ranks",
    ),
    Mutant(
        "scores",
        "logsigmoid(best) - logsigmoid(-worst)",
        "logsigmoid(best) - logsigmoid(worst)",
        "gap: the worst is the better one",
    ),
    Mutant("scores", "(r - s[:, None]).square()", "(r + s[:, None]).square()", "regression: sign of the score"),
    Mutant("scores", "with_logits(r, s[:, None]", "with_logits(-r, s[:, None]", "right and wrong swapped"),
    Mutant(
        "scores", "s, s, value_low, value_high, value_sigma)", "s, s, value_low, value_high, 0.75)", "bins: sigma fixed"
    ),
    Mutant("scores", 'reduction="none").mean(-1)', 'reduction="none").sum(-1)', "steps: sum over heads for mean"),
    Mutant(
        "scores", "contrast = best[goal] - worst[", "contrast = best[goal] + worst[", "contrast: drawn to the worst"
    ),
    Mutant("scores", "(len(best) + source) // 2", "(len(best) - source) // 2", "contrast: goal before the state"),
    Mutant("scores", "/ contrast_temperature)", "* contrast_temperature)", "contrast: temperature inverted"),
    Mutant("scores", "mask & (segment == name)", "segment == name", "contrast: mask lost"),
    Mutant("scores", "scores.detach().to(outputs.dtype)", "scores.to(outputs.dtype)", "gradient through the scores"),
]
