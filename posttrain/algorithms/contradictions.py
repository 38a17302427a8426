"""What is wrong with a row's cells taken together. Imports no torch."""

from __future__ import annotations

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.row import Algorithm


def contradictions(algorithm: Algorithm) -> list[str]:
    """What is wrong with a row's cells taken together, each with a way out."""
    found = []
    objective, sets = algorithm.objective, algorithm.objective.entry.level in ("set", "scorer")
    if sets != (algorithm.reduction.entry.level == "set"):
        way = "group_mean" if sets else ", ".join(k for k, e in CATALOGUE["reduction"].items() if e.level != "set")
        found.append(
            f"algorithm.reduction: {algorithm.reduction.kind}, but objective: {objective.kind} makes a loss for each "
            f"{'group' if sets else 'token'}; use reduction: {way}"
        )
    sets = objective.entry.level == "set"
    if sets and algorithm.ratio.kind not in ("sequence", "sequence_sum", "discounted_sum", "desensitised"):
        found.append(
            f"algorithm.ratio: {algorithm.ratio.kind}, but objective: {objective.kind} compares whole sequences; use "
            "ratio: sequence_sum, or sequence for log-ratios by length"
        )
    if objective.kind in ("binary_tv", "binary_kl", "bellman") and algorithm.ratio.kind != "token":
        found.append(
            f"algorithm.ratio: {algorithm.ratio.kind}, but objective: {objective.kind} reads the probability of each "
            "token; use ratio: token"
        )
    if sets and algorithm.correction.kind != "none":
        found.append(
            f"algorithm.correction: {algorithm.correction.kind} weighs tokens, but objective: {objective.kind} needs "
            "no importance weights; use correction: none"
        )
    if sets and (algorithm.credit.kind != "score" or algorithm.keep.kind != "all"):
        found.append(
            f"algorithm.credit: {algorithm.credit.kind}, keep: {algorithm.keep.kind}, but objective: {objective.kind} "
            "compares the scores of whole groups itself; use credit: score and keep: all"
        )
    if algorithm.needs.critic != (algorithm.critic.kind != "none"):
        asker = next((c for c in algorithm.cells.values() if "critic" in c.entry.asks), algorithm.credit)
        way = "squared, hl_gauss, frozen or joint" if algorithm.needs.critic else "none"
        found.append(
            f"algorithm.critic: {algorithm.critic.kind}, but {asker.column}: {asker.kind} "
            f"{'needs' if algorithm.needs.critic else 'reads no'} values; use critic: {way}"
        )
    if algorithm.anchor.kind == "behaviour" and algorithm.correction.kind != "none":
        found.append(
            f"algorithm.correction: {algorithm.correction.kind} would weigh the gap to the engine a second time beside "
            "anchor: behaviour; use correction: none"
        )
    if algorithm.trust.kind in ("penalty", "fixup") and algorithm.anchor.kind != "previous":
        found.append(f"algorithm.trust: {algorithm.trust.kind} bounds KL(old || new), so it needs anchor: previous")
    return found + _of_source(algorithm) + _of_sets(algorithm) + _of_credit(algorithm) + _bounds(algorithm)


def _of_source(algorithm: Algorithm) -> list[str]:
    """What was sampled by nobody has no engine's log-probabilities, and what learns nothing from others needs none."""
    found, source, needs = [], algorithm.source.kind, algorithm.needs
    if source in ("given", "conditioned", "joined"):
        for column in ("correction", "anchor", "credit"):
            cell = getattr(algorithm, column)
            if "behaviour" in cell.entry.asks:
                way = {"correction": "none", "anchor": "reference"}.get(column, "gae")
                found.append(
                    f"algorithm.{column}: {cell.kind} reads the log-probabilities under which a response was sampled, "
                    f"but source: {source} brings responses without any; use {column}: {way}"
                )
        if algorithm.kl.kind == "in_reward":
            found.append(
                f"algorithm.kl: in_reward rewards what the policy samples, but source: {source} brings responses it "
                "did not sample; use kl: in_loss or online"
            )
        if needs.greedy:
            found.append(f"algorithm.source: {source}, but the row asks for greedy responses; use source: sampled")
    if algorithm.kl.kind == "online" and source != "given":
        found.append(
            f"algorithm.kl: online samples beside given responses, but source: {source} samples; use kl: in_loss"
        )
    if algorithm.opponent.kind != "none" and source not in ("sampled", "joined"):
        found.append(f"algorithm.opponent: {algorithm.opponent.kind}, but source: {source} samples nothing; use joined")
    if algorithm.objective.kind in ("spin", "spac") and source != "joined":
        found.append(
            f"algorithm.source: {source}, but objective: {algorithm.objective.kind} holds the data's answers against "
            "sampled ones; use source: joined"
        )
    if algorithm.objective.kind == "xpo" and algorithm.opponent.kind == "none":
        found.append("algorithm.opponent: none, but objective: xpo needs responses of the reference; use reference")
    if algorithm.selection.kind in ("mixed", "dynamic", "steady_spread") and source in ("given", "conditioned"):
        found.append(
            f"algorithm.selection: {algorithm.selection.kind} chooses among samples, but source: {source} draws "
            "none; use selection: all or implicit_margin"
        )
    if needs.scorer and source != "given":
        found.append(f"algorithm.source: {source}, but a reward model learns from given responses; use source: given")
    return found


def _of_sets(algorithm: Algorithm) -> list[str]:
    """Columns that only a loss of whole groups reads, or only a reward model does."""
    objective, level = algorithm.objective, algorithm.objective.entry.level
    plain = {"divergence": "reverse_kl", "weighting": "none", "cloning": "none"} if level != "set" else {}
    if level == "set" and not objective.entry.differences:
        # Elsewhere the divergence's constant does not cancel, and the log-ratio itself is what the loss means.
        plain["divergence"] = "reverse_kl"
    if objective.kind in ("aot", "aot_unpaired"):
        # Their losses are in the order of the sorted ratios, not of the groups.
        plain["weighting"] = "none"
    if level == "set" and (objective.kind == "sppo" or "right_score" in objective.settings):
        # Scores are held against a number of the objective's own.
        plain["scaling"] = "none"
    if level != "scorer":
        plain["contrast"] = "none"
    if algorithm.needs.scorer:
        plain |= {"kl": "none", "entropy": "none", "trust": "none", "correction": "none", "anchor": "none"}
        plain |= {"scaling": "none", "shaping": "none", "whitening": "none", "keep": "all", "selection": "all"}
        plain |= {"credit": "score", "ratio": "token", "truncated": "train"}
    return _of_log_ratios(algorithm) + [
        f"algorithm.{column}: {getattr(algorithm, column).kind}, but objective: {objective.kind} reads none; "
        f"use {column}: {kind}"
        for column, kind in plain.items()
        if getattr(algorithm, column).kind != kind
    ]


def _of_log_ratios(algorithm: Algorithm) -> list[str]:
    """Log-ratios that would not mean what the objective takes them for."""
    objective, level, ratio = algorithm.objective, algorithm.objective.entry.level, algorithm.ratio.kind
    wants: dict[str, str] = {}
    if ratio == "desensitised" and level != "set":
        wants["ratio"] = "token"
    if objective.kind in ("regressed", "step_regression"):
        wants["ratio"] = "token"
    if objective.kind in ("aot", "kto"):
        wants["ratio"] = "sequence_sum"
    if objective.kind in ("orpo", "alphapo"):
        wants |= {"ratio": "sequence", "anchor": "none"}
    found = [
        f"algorithm.{column}: {getattr(algorithm, column).kind}, but objective: {objective.kind} takes log-ratios of "
        f"another kind; use {column}: {kind}"
        for column, kind in wants.items()
        if getattr(algorithm, column).kind != kind
    ]
    if algorithm.anchor.kind == "none" and level != "set" and not algorithm.needs.scorer:
        found.append(
            f"algorithm.anchor: none, but objective: {objective.kind} reads a ratio to a policy; use anchor: previous"
        )
    joint = objective.kind == "dro"
    if joint != (algorithm.critic.kind == "joint"):
        way = "trains the values itself; use critic: joint" if joint else "trains no values; use squared or none"
        found.append(f"algorithm.critic: {algorithm.critic.kind}, but objective: {objective.kind} {way}")
    return found


def _of_credit(algorithm: Algorithm) -> list[str]:
    """Cells before the loss that would do nothing, or the same thing twice."""
    found, credit = [], algorithm.credit
    if credit.kind == "v_trace" and algorithm.correction.kind != "none":
        found.append(
            f"algorithm.correction: {algorithm.correction.kind} would weigh the gap to the engine a second time beside "
            "credit: v_trace; use correction: none"
        )
    if algorithm.truncated.kind == "bootstrap" and "critic" not in credit.entry.asks:
        found.append(f"algorithm.truncated: bootstrap, but credit: {credit.kind} reads no values; use credit: gae")
    if algorithm.whitening.kind != "none" and algorithm.objective.entry.level == "set":
        found.append(
            f"algorithm.whitening: {algorithm.whitening.kind}, but objective: {algorithm.objective.kind} reads scores, "
            "not advantages; use whitening: none"
        )
    if algorithm.needs.parts:
        plain = {"shaping": "none", "scaling": "none", "kl": "none", "truncated": "penalise"}
        for column, kind in plain.items():
            present = getattr(algorithm, column).kind
            if (present == kind) if kind == "penalise" else (present not in (kind, "in_loss")):
                found.append(
                    f"algorithm.{column}: {present} changes the score, but credit: {credit.kind} reads each grader's "
                    f"own; make it a grader, or use credit: group_norm"
                )
    if "greedy" in credit.entry.takes and algorithm.scaling.kind != "none":
        found.append(
            f"algorithm.scaling: {algorithm.scaling.kind} would scale the responses but not the greedy one they are "
            "held against; use scaling: none"
        )
    return found


def _bounds(algorithm: Algorithm) -> list[str]:
    """Two ends of a range must be in order."""
    found = []
    for settings in (c.settings for c in algorithm.cells.values()):
        for name in ("value", "importance", "geometric", "cov"):
            low, high = settings.get(f"{name}_low"), settings.get(f"{name}_high")
            if low is not None and high is not None and low >= high:
                found.append(f"algorithm.{name}_low: {low} is not below algorithm.{name}_high: {high}")
    return found
