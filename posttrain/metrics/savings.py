"""What of a step's seconds could be saved, at most, and which key of the recipe would save it: rules over a profile.

A pass's positions are taken to cost the same each, and a backward pass, where there is one, twice a forward one. What
is less than `WORTH` of a step is not named as a thing to fix: then the largest phase is, with the key that says how
much work it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.metrics.timing import OTHER, Profile

WORTH = 0.05


@dataclass(frozen=True)
class Saving:
    """One thing that takes seconds and teaches nothing."""

    what: str
    seconds: float
    """Of a step in the mean, at most: as if it were gone altogether."""
    share: float
    """Of a step, with what is written and saved after it."""
    key: str | None
    """What to set in the recipe; None where no key changes it."""


def savings(profile: Profile, recipe: Mapping[str, Any]) -> list[Saving]:
    """Everything that could be saved, the largest first; nothing where there is no step after the first one."""
    whole = _whole(profile)
    if not whole:
        return []
    found = [Saving(what, seconds, seconds / whole, key) for what, seconds, key in _rules(profile, recipe)]
    return sorted((s for s in found if s.seconds > 0), key=lambda s: -s.seconds)


def sentence(profile: Profile, recipe: Mapping[str, Any]) -> str:
    """The largest thing to fix, in one sentence."""
    found = [s for s in savings(profile, recipe) if s.share >= WORTH]
    whole = _whole(profile)
    if not whole:
        return "Nothing can be told yet: there is no step after the first one, in which engines and kernels start."
    if found:
        s = found[0]
        size = f"at most {s.share:.0%} of a step ({s.seconds:.3g} of {whole:.3g} s)"
        way = f"{s.key} would change it" if s.key else "no key of the recipe changes it"
        return f"Largest thing to fix: {s.what}, {size}; {way}."
    work = {name: spent for name, spent in profile.phases.items() if name in LARGEST and spent.mean is not None}
    if not work:
        return "Nothing can be told: the run did not measure its phases."
    name, spent = max(work.items(), key=lambda each: each[1].mean or 0.0)
    return (
        f"Nothing that teaches nothing takes {WORTH:.0%} of a step; the most work is {spent.label}, "
        f"{(spent.mean or 0.0) / whole:.0%} of a step, and {LARGEST[name]} says how much it is."
    )


LARGEST = {
    "generate": "rollout.max_tokens",
    "grade": "grading.workers",
    "learn": "hardware.learner",
    "publish": "hardware.sampler.sync",
    "evaluate": "run.evaluate_every",
}
"""Phases of work, and the key that says how much of it there is, or how fast it goes."""


def _rules(profile: Profile, recipe: Mapping[str, Any]) -> Iterator[tuple[str, float, str | None]]:
    """(what, seconds of a step, key) of each rule that has something to say."""
    yield from _positions(profile, recipe)
    yield from _samples(profile, recipe)
    yield from _between(profile, recipe)
    learner, sampler = (_at(recipe, "hardware", block) or {} for block in ("learner", "sampler"))
    if sampler.get("sync") == "gathered" and learner.get("processes", 1) > 1:
        key = "hardware.sampler.sync: planned"
        yield "all weights brought together on every rank", _mean(profile, "publish"), key
    if profile.epochs > 1 and not _at(recipe, "reference", "cache") and _mean(profile, "generate") == 0:
        # The first time through the data the reference must be read all the same.
        again = 1 - 1 / profile.epochs
        yield "the reference read again in each epoch", _mean(profile, "reference") * again, "reference.cache: true"
    yield "what is idle or not timed", _mean(profile, OTHER), None


def _positions(profile: Profile, recipe: Mapping[str, Any]) -> Iterator[tuple[str, float, str | None]]:
    """Positions of the passes that teach nothing, in the shares that they have of all."""
    work, seconds = profile.work, _mean(profile, "pass")
    computed, first = work["computed"] or 0.0, work["first_pass"] or 0.0
    if not computed:
        return
    layout = _at(recipe, "hardware", "learner", "layout") or "auto"
    smaller, larger = (f"hardware.learner.micro_batch_tokens ({word})" for word in ("smaller", "larger"))
    # What teaches nothing may lie in what is read without a backward pass as well as in the rest.
    passes = 3 * computed - 2 * (work["silent_computed"] or 0.0)
    cost = passes + first
    each = passes / computed * seconds / cost
    key = "hardware.learner.layout: packed" if layout == "rows" else smaller
    yield "padding", (work["padding"] or 0.0) * each, key
    again = (work["repeated"] or 0.0) * each
    if layout in ("rows", "packed"):
        yield "prompts computed once for each response", again, "hardware.learner.layout: tree"
    elif work["shared"]:
        yield "prompts computed again, their groups being cut", again, larger
    yield "a first pass without gradient", first * seconds / cost, larger
    # Of the busiest rank's positions, the part that the others did not have.
    waiting = work["waiting"] or 0.0
    yield "ranks with fewer positions than the busiest", seconds * waiting / (waiting + computed), smaller


def _samples(profile: Profile, recipe: Mapping[str, Any]) -> Iterator[tuple[str, float, str | None]]:
    """Responses that were drawn, graded and computed for nothing."""
    drawn = _mean(profile, "generate") + _mean(profile, "grade")
    silent = profile.work["silent_share"]
    if silent:
        key = "data.train (problems neither solved always nor never) or rollout.group_size (larger)"
        yield "responses whose advantage is 0", silent * drawn + _silent_learning(profile, silent), key
    if profile.dropped:
        kept = _at(recipe, "optimizer", "prompts_per_step") or 0
        share = profile.dropped / (profile.dropped + kept)
        yield "groups drawn and dropped", share * drawn, "data.train (problems neither solved always nor never)"


def _silent_learning(profile: Profile, silent: float) -> float:
    """Seconds of learning that a share of its samples without an advantage takes: a third of the price where they are
    read without a backward pass, the full one where they share a row with others or nothing is skipped.
    """
    learn, passes = _mean(profile, "learn"), _mean(profile, "pass")
    computed, read = profile.work["computed"] or 0.0, profile.work["silent_computed"] or 0.0
    if not read:
        return silent * learn
    first = profile.work["first_pass"] or 0.0
    priced = read + 3 * max(0.0, silent * computed - read)
    return silent * (learn - passes) + passes * priced / (3 * computed - 2 * read + first)


def _between(profile: Profile, recipe: Mapping[str, Any]) -> Iterator[tuple[str, float, str | None]]:
    if profile.evaluated_between:
        yield "evaluations before the last step", profile.evaluated_between, "run.evaluate_every (larger)"
    yield "saving checkpoints", _mean(profile, "save"), "run.save_every (larger)"
    if _at(recipe, "run", "rollouts") is not False:
        yield "writing roll-outs and metrics", _mean(profile, "write"), "run.rollouts: false"


def _whole(profile: Profile) -> float:
    return _mean(profile, "step") + _mean(profile, "write") + _mean(profile, "save")


def _mean(profile: Profile, name: str) -> float:
    return profile.phases[name].mean or 0.0


def _at(recipe: Mapping[str, Any], *keys: str) -> Any:
    found: Any = recipe
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
