"""The composition root: a checked recipe to the objects that run it. The only place that knows all the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from posttrain.algorithms.state import RowState, Terms
from posttrain.build import companions
from posttrain.build.check import Checked
from posttrain.build.companions import Checkpoint
from posttrain.data.chat import Chat
from posttrain.data.sources import SourceReport, distinct, groups, hold_out, prompts
from posttrain.data.stream import PromptStream
from posttrain.errors import ModelError, PosttrainError
from posttrain.evaluation import Benchmark
from posttrain.hybrid import Hybrid
from posttrain.hybrid.parity import ParityGate
from posttrain.learner.backbone import prove_layout
from posttrain.learner.layout import Layout
from posttrain.learner.single import Companions, Computation, SingleLearner
from posttrain.loops.auxiliary import Auxiliary
from posttrain.loops.learning import Learning, Updates
from posttrain.loops.online import Online
from posttrain.metrics import RunFolder, Sink
from posttrain.models.checkpoint import load_policy, load_tokenizer, original_head, stop_tokens
from posttrain.models.gguf import checkpoint_folder
from posttrain.models.location import Location, context_length
from posttrain.recipe import Recipe
from posttrain.rewards import Grader
from posttrain.rollout import Sampler
from posttrain.rollout.collect import Draw
from posttrain.types import Group, Prompt, Sampling


@dataclass(frozen=True)
class Prompts:
    """Training and held-out prompts, disjoint, and what became of the sources' rows."""

    train: list[Prompt]
    evaluation: list[Prompt]
    reports: dict[str, SourceReport]
    max_length: int
    """Longest prompt plus completion."""
    auxiliary: list[Group] = field(default_factory=list)
    """Texts that are learnt beside the roll-outs."""


def open_checkpoint(recipe: Recipe, folder: Path | None = None) -> Checkpoint:
    """The recipe's model, or the one in `folder`, with its device and dtype. Raises ModelError."""
    device = recipe.hardware.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("hardware.device: cuda, but torch sees no such device here; use cpu or auto")
    folder = folder or checkpoint_folder(recipe.model.path, recipe.model.revision)
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    return Checkpoint(folder, tokenizer, device, getattr(torch, recipe.hardware.dtype))


def read_prompts(recipe: Recipe, checkpoint: Checkpoint) -> Prompts:
    """Both sources as prompts, made disjoint. Raises DataError."""
    chat = Chat(checkpoint.tokenizer, stop_tokens(checkpoint.folder, checkpoint.tokenizer))
    new = max(recipe.rollout.max_tokens, recipe.evaluation.max_tokens or 0)
    own = context_length(Location("folder", checkpoint.folder))
    room = recipe.model.max_length or own
    limit = recipe.data.max_prompt_tokens or (room - new if room else None)
    train, about = prompts(recipe.data.train, chat, "data.train", limit)
    reports = {"data.train": about}
    held: list[Prompt] = []
    if recipe.data.eval:
        found, about = prompts(recipe.data.eval, chat, "data.eval", limit)
        held, repeated = distinct(found)
        reports["data.eval"] = replace(about, kept=len(held), duplicates=repeated)
        train, removed = hold_out(train, held)
        reports["data.train"] = replace(reports["data.train"], kept=len(train), held_out=removed)
    texts: list[Group] = []
    if recipe.data.auxiliary:
        texts, about = groups(recipe.data.auxiliary.data, chat, "data.auxiliary.data", room)
        reports["data.auxiliary"] = about
    longest = max(len(p.tokens) for p in [*train, *held]) + new
    return Prompts(train, held, reports, min(longest, room) if room else longest, texts)


def make_learner(checked: Checked, checkpoint: Checkpoint) -> SingleLearner:
    """The learner of `hardware.learner`, its layout proven on this model."""
    recipe, settings = checked.recipe, checked.recipe.hardware.learner
    torch.manual_seed(recipe.run.seed)

    model = load_policy(
        checkpoint.folder, recipe.model, checkpoint.dtype, checkpoint.device, settings.gradient_checkpointing
    )
    layout: Layout = "tree" if settings.layout == "auto" else settings.layout
    if settings.layout == "auto":
        with contextlib.suppress(ModelError):
            prove_layout(model, layout)
            return _learner(checked, checkpoint, model, layout)
        layout = "rows"
    prove_layout(model, layout)
    return _learner(checked, checkpoint, model, layout)


def _learner(checked: Checked, checkpoint: Checkpoint, model: Any, layout: Layout) -> SingleLearner:
    recipe, optimizer = checked.recipe, checked.recipe.optimizer
    updates = recipe.run.steps * optimizer.epochs * optimizer.minibatches
    needs = checked.algorithm.needs
    return SingleLearner(
        model,
        checkpoint.tokenizer,
        optimizer,
        Computation(
            layout=layout,
            micro_batch_tokens=recipe.hardware.learner.micro_batch_tokens,
            logit_chunk=recipe.hardware.learner.logit_chunk,
            temperature=recipe.rollout.temperature,
        ),
        total_updates=updates,
        companions=Companions(
            references=companions.references(recipe, checkpoint) if needs.reference else None,
            critic=companions.critic(checked, checkpoint, model, updates) if needs.critic else None,
        ),
    )


def make_sampler(recipe: Recipe, checkpoint: Checkpoint, max_length: int) -> Sampler:
    """The engine of `rollout.engine`, holding no weights yet that it would generate from."""
    if recipe.rollout.engine == "vllm":
        from posttrain.rollout.vllm import EngineOptions, VllmSampler

        options = EngineOptions(
            device=checkpoint.device,
            dtype=recipe.hardware.dtype,
            max_length=max_length,
            hardware=recipe.hardware,
            trust_remote_code=recipe.model.trust_remote_code,
        )
        return VllmSampler(checkpoint.folder, checkpoint.tokenizer, options)
    from posttrain.rollout.local import LocalSampler

    plain = recipe.model.model_copy(update={"lora": None})
    model = load_policy(checkpoint.folder, plain, checkpoint.dtype, checkpoint.device)
    stops = stop_tokens(checkpoint.folder, checkpoint.tokenizer)
    return LocalSampler(model, checkpoint.tokenizer, stops, recipe.hardware.sampler.max_sequences)


def make_benchmark(recipe: Recipe, held: Sequence[Prompt], grader: Grader) -> Benchmark | None:
    """The recipe's held-out problems, graded as training is; None where it has none."""
    if not held:
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
    )


@contextlib.contextmanager
def wired(
    checked: Checked, folder: RunFolder, sinks: Sequence[Sink], data: Prompts, checkpoint: Checkpoint
) -> Iterator[Online]:
    """Everything an online run needs, and the end of its processes when it is over."""
    recipe = checked.recipe
    with Grader(recipe.rewards, recipe.grading) as grader:
        # The engine first: it decides how this process's threads are bound.
        sampler = make_sampler(recipe, checkpoint, data.max_length)
        learner = make_learner(checked, checkpoint)
        rollout, optimizer = recipe.rollout, recipe.optimizer
        sampling = Sampling(temperature=rollout.temperature, max_tokens=rollout.max_tokens)
        yield Online(
            learning=make_learning(checked, data, [s.name for s in grader.signatures]),
            engine=Hybrid(learner, sampler),
            stream=PromptStream(data.train, recipe.run.seed),
            grader=grader,
            draw=Draw(optimizer.prompts_per_step, rollout.group_size, sampling, recipe.run.seed),
            gate=ParityGate(learner, checkpoint.dtype, lambda: original_head(checkpoint.folder)),
            benchmark=make_benchmark(recipe, data.evaluation, grader),
            folder=folder,
            sinks=sinks,
            run=recipe.run,
            reference=recipe.reference,
        )


def make_learning(checked: Checked, data: Prompts, graders: Sequence[str]) -> Learning:
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
        auxiliary=None
        if auxiliary is None
        else Auxiliary(data.auxiliary, auxiliary, recipe.run.seed, recipe.run.steps),
    )


def newest_policy(folder: RunFolder) -> tuple[int, Path]:
    """Step and policy folder of a run's newest complete checkpoint. Raises PosttrainError where there is none."""
    steps = folder.checkpoints()
    if not steps:
        raise PosttrainError(f"{str(folder.path)!r} has no complete checkpoint to evaluate")
    return steps[-1], folder.checkpoint_path(steps[-1]) / "policy"
