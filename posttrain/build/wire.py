"""The composition root: a checked recipe to the objects that run it. The only place that knows all the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from posttrain.algorithms.state import RowState, Terms
from posttrain.build import companions
from posttrain.build.check import Checked
from posttrain.build.companions import Checkpoint
from posttrain.build.engines import make_hybrid, make_sampler
from posttrain.build.heading import header
from posttrain.build.learners import make_learner, make_scorer
from posttrain.build.machine import device_of
from posttrain.build.reading import Read
from posttrain.data.stream import GroupStream, PromptStream
from posttrain.errors import ModelError, PosttrainError
from posttrain.evaluation import Benchmark, evaluate, items
from posttrain.hybrid import Hybrid
from posttrain.hybrid.parity import ParityGate
from posttrain.hybrid.publishing import Planned
from posttrain.learner import Learner
from posttrain.learner.scorer import ScorerLearner
from posttrain.loops.ahead import Ahead
from posttrain.loops.auxiliary import Auxiliary
from posttrain.loops.held_out import HeldOutAnswers, HeldOutPairs
from posttrain.loops.learning import Learning, Updates
from posttrain.loops.offline import Offline
from posttrain.loops.online import Online
from posttrain.loops.opponents import Opponents
from posttrain.loops.progress import Keeper, Measure, Progress
from posttrain.loops.reference_cache import ReferenceCache
from posttrain.loops.sampled_kl import SampledKl
from posttrain.metrics import Report, RunFolder, Sink
from posttrain.metrics.results import Results, results_path, write
from posttrain.models.checkpoint import load_tokenizer, original_head
from posttrain.models.gguf import checkpoint_folder
from posttrain.recipe import Recipe
from posttrain.rewards import Grader
from posttrain.rollout import Sampler
from posttrain.rollout.collect import Draw, Grades, Ungraded
from posttrain.rollout.shared import SharedGrader
from posttrain.types import Group, Prompt, Sampling
from posttrain.world import ALONE, World


def open_checkpoint(recipe: Recipe, folder: Path | None = None, world: World | None = None) -> Checkpoint:
    """The recipe's model, or the one in `folder`, with who computes it, on what device and in what dtype. Raises
    ModelError.
    """
    world = world or ALONE
    # One rank fetches or dequantises; the others find it done.
    folder = folder or world.shared(lambda: checkpoint_folder(recipe.model.path, recipe.model.revision))
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    return Checkpoint(folder, tokenizer, device_of(recipe), getattr(torch, recipe.hardware.dtype), world)


def make_benchmark(recipe: Recipe, held: Sequence[Prompt], grader: Grades) -> Benchmark | None:
    """The recipe's held-out problems, graded as training is; None where it has none, or no rewards."""
    if not held or not recipe.rewards:
        return None
    settings = recipe.evaluation
    return Benchmark(
        prompts=held,
        grader=grader,
        samples=settings.samples,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens or recipe.rollout.max_tokens,
        greedy=settings.greedy,
        seed=recipe.run.seed,
        best_of=settings.best_of,
        top_p=settings.top_p,
        # Twice what the engine decodes at one time: it is never short of work before the end of such a part.
        at_once=2 * recipe.hardware.sampler.max_sequences,
    )


def keeper(
    recipe: Recipe, checkpoint: Checkpoint, folder: RunFolder, benchmark: Benchmark | None
) -> Callable[[int, Sequence[Group]], None]:
    """Writes the results of a step's evaluation into the run."""

    def keep(step: int, groups: Sequence[Group]) -> None:
        assert benchmark is not None
        found = Results(header(recipe, checkpoint, benchmark.prompts, step), items(benchmark, groups))
        write(results_path(folder.path, step), found)

    return keep


@contextlib.contextmanager
def wired_online(
    checked: Checked, folder: RunFolder, sinks: Sequence[Sink], data: Read, checkpoint: Checkpoint
) -> Iterator[Online]:
    """Everything an online run needs, and the end of its processes when it is over."""
    recipe = checked.recipe
    with _grading(recipe, checkpoint.world) as grader:
        # The engine first: it decides how this process's threads are bound.
        sampler = make_sampler(recipe, checkpoint, data.max_length, folder.path / "servers")
        learner = make_learner(checked, checkpoint)
        rollout, optimizer = recipe.rollout, recipe.optimizer
        engine = make_hybrid(recipe, learner, sampler, checkpoint.world)
        sampling = Sampling(temperature=rollout.temperature, max_tokens=rollout.max_tokens)
        learning = make_learning(checked, data, checked.graders)
        stream = PromptStream(data.train, recipe.run.seed)
        ahead = _ahead(recipe, sampler)
        opponents = int(checked.algorithm.opponent.settings.get("opponent_responses", 0))
        benchmark = make_benchmark(recipe, data.held_prompts, grader)
        measures = generated(engine, benchmark)
        if data.held:
            measures.append(HeldOutAnswers(learner, checked.algorithm, data.held, learning.terms.references))
        _await(grader)
        yield Online(
            learning=learning,
            engine=engine,
            stream=stream,
            grader=grader,
            draw=Draw(optimizer.prompts_per_step, rollout.group_size, sampling, recipe.run.seed, opponents),
            gate=ParityGate(learner, checkpoint.dtype, lambda: original_head(checkpoint.folder)),
            progress=Progress(
                folder,
                sinks,
                recipe.run,
                learner,
                keepers(stream, learning) | ({"ahead": ahead} if ahead is not None else {}),
                measures,
                _published(engine),
                keeper(recipe, checkpoint, folder, benchmark),
                world=checkpoint.world,
            ),
            reference=recipe.reference,
            given={group.prompt.id: group for group in data.given},
            opponents=Opponents(checked.algorithm, engine, folder.path / "opponents", recipe.run.seed, checkpoint.world)
            if opponents
            else None,
            ahead=ahead,
        )


def _ahead(recipe: Recipe, sampler: Sampler) -> Ahead | None:
    if recipe.rollout.max_lag == 0:
        return None
    if getattr(sampler, "sleeps", False):
        raise ModelError(
            f"rollout.max_lag: {recipe.rollout.max_lag}, but the engine shares its device with the learner and sleeps "
            "while it learns; use hardware.sampler.placement: servers, or 0"
        )
    return Ahead()


@contextlib.contextmanager
def wired_offline(
    checked: Checked, folder: RunFolder, sinks: Sequence[Sink], data: Read, checkpoint: Checkpoint
) -> Iterator[Offline]:
    """Everything a run on given responses needs; an engine only where something is sampled."""
    recipe, algorithm = checked.recipe, checked.algorithm
    samples = algorithm.needs.sampler or bool(recipe.rewards and data.held_prompts)
    with _grading(recipe, checkpoint.world) as grader:
        sampler = make_sampler(recipe, checkpoint, data.max_length, folder.path / "servers") if samples else None
        learner = make_scorer(checked, checkpoint) if algorithm.needs.scorer else make_learner(checked, checkpoint)
        learning = make_learning(checked, data, checked.graders)
        engine = make_hybrid(recipe, learner, sampler, checkpoint.world) if sampler is not None else None
        if recipe.reference.cache:
            learning = replace(learning, cache=_cache(checked, folder, data, checkpoint, learner))
        benchmark = make_benchmark(recipe, data.held_prompts, grader)
        measures = generated(engine, benchmark)
        if data.held and isinstance(learner, ScorerLearner):
            measures.append(HeldOutPairs(learner, algorithm, data.held))
        elif data.held:
            measures.append(HeldOutAnswers(learner, algorithm, data.held, learning.terms.references))
        sampled_kl = None
        if algorithm.kl.kind == "online":
            assert engine is not None
            rollout = recipe.rollout
            sampling = Sampling(temperature=rollout.temperature, max_tokens=rollout.max_tokens)
            size = int(algorithm.kl["kl_responses"])
            draw = Draw(recipe.optimizer.prompts_per_step, size, sampling, recipe.run.seed)
            coefficient = algorithm.kl["kl_coefficient"]
            sampled_kl = SampledKl(engine, draw, coefficient, learning.terms.references)
            learning = replace(learning, beside=(*learning.beside, sampled_kl))
        stream = GroupStream(data.given, recipe.run.seed)
        _await(grader)
        yield Offline(
            learning=learning,
            stream=stream,
            progress=Progress(
                folder,
                sinks,
                recipe.run,
                learner,
                keepers(stream, learning),
                measures,
                _published(engine),
                keeper(recipe, checkpoint, folder, benchmark),
                world=checkpoint.world,
            ),
            reference=recipe.reference,
            groups_per_step=recipe.optimizer.prompts_per_step,
            sampled_kl=sampled_kl,
            engine=engine,
        )


def generated(engine: Hybrid | None, benchmark: Benchmark | None) -> list[Measure]:
    """Held-out accuracy of what the present policy says; nothing without an engine or a benchmark."""
    if engine is None or benchmark is None:
        return []

    def measure() -> tuple[Report, Sequence[Group]]:
        with engine.generating() as sampler:
            result = evaluate(sampler, benchmark)
        return Report.of(result.metrics), result.groups

    return [measure]


def keepers(stream: PromptStream, learning: Learning) -> dict[str, Keeper]:
    """Everything of a run, beside the learner, that a checkpoint keeps."""
    found: dict[str, Keeper] = {"stream": stream, "row": learning.state}
    for beside in learning.beside:
        if isinstance(beside, Auxiliary):
            found["auxiliary"] = beside
    return found


@contextlib.contextmanager
def _grading(recipe: Recipe, world: World) -> Iterator[Grades]:
    """The recipe's graders at work, on the first rank for all, or what stands for them where it has none."""
    if not recipe.rewards:
        yield Ungraded()
        return
    with contextlib.ExitStack() as stack:
        own = Grader(recipe.rewards, recipe.grading) if world.rank == 0 else None
        if own is not None:
            # They load their verifiers while this process loads its engine.
            stack.callback(own.close)
            own.begin()
        yield own if own is not None and world.size == 1 else SharedGrader(own, world)


def _await(grader: Grades) -> None:
    """Until this rank's grading workers are there: whether they can be is known before anything is drawn."""
    own = grader.own if isinstance(grader, SharedGrader) else grader
    if isinstance(own, Grader):
        own.wait()


def _published(engine: Hybrid | None) -> Callable[[], Report]:
    """What publishing weights cost since the last step; present in every line, also where nothing was published."""
    if engine is None:
        return Report
    publishing = engine.publishing
    names = ("sync/seconds", *(("sync/bytes_received", "sync/bytes_bound") * isinstance(publishing, Planned)))
    nothing = sum((Report.sum(name, 0.0) for name in names), Report())
    # Which step a version is published in depends on what was killed; what a publication sends does not.
    return lambda: engine.take_report() + nothing + Report.maximum("sync/bytes", publishing.sent)


def _cache(checked: Checked, folder: RunFolder, data: Read, checkpoint: Checkpoint, learner: Learner) -> ReferenceCache:
    """The references' log-probabilities of all given responses."""
    recipe = checked.recipe
    policies = [p.model_dump(mode="json") for p in recipe.reference.policies]
    model = recipe.model.model_dump(mode="json")
    what = f"{model}{policies}{checkpoint.dtype}{learner.temperature}"
    place = folder.path / "reference"
    place.mkdir(parents=True, exist_ok=True)
    compute = partial(learner.logprobs, policy="reference")
    return ReferenceCache(place, data.given, what, compute, checkpoint.world)


def make_learning(checked: Checked, data: Read, graders: Sequence[str]) -> Learning:
    """The row with this run's numbers in it; `graders` are the names of the recipe's rewards."""
    recipe, optimizer = checked.recipe, checked.recipe.optimizer
    auxiliary = recipe.data.auxiliary
    return Learning(
        algorithm=checked.algorithm,
        updates=Updates(optimizer.minibatches, optimizer.epochs, recipe.critic.warmup_steps),
        terms=Terms(
            max_tokens=recipe.rollout.max_tokens,
            weights={name: reward.weight for name, reward in zip(graders, recipe.rewards, strict=True)},
            references=companions.shares(recipe.reference),
        ),
        state=RowState.of(checked.algorithm),
        beside=() if auxiliary is None else (Auxiliary(data.auxiliary, auxiliary, recipe.run.seed, recipe.run.steps),),
    )


def newest_policy(folder: RunFolder) -> tuple[int, Path]:
    """Step and policy folder of a run's newest complete checkpoint. Raises PosttrainError where there is none."""
    steps = folder.checkpoints()
    if not steps:
        raise PosttrainError(f"{str(folder.path)!r} has no complete checkpoint to evaluate")
    return steps[-1], folder.checkpoint_path(steps[-1]) / "policy"
