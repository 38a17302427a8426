"""The blocks of a recipe: at most twelve fields each, frozen, unknown keys refused, every default visible."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from posttrain.recipe.engines import Sampler
from posttrain.recipe.policies import Block, Critic, Model, Reference
from posttrain.recipe.sources import Source


class AlgorithmChoice(Block):
    """A row of the algorithm table by name, with any of its cells or their parameters replaced."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def overrides(self) -> dict[str, Any]:
        """Everything beside the name: checked against the row, where the keys are known."""
        return dict(self.__pydantic_extra__ or {})


class Auxiliary(Block):
    """Texts learnt beside the roll-outs, in the same optimiser steps: the pretraining mix of RLHF (2203.02155)."""

    data: Source
    """Rows with a completion or messages; what the assistant says is learnt."""
    coefficient: float = Field(0.1, ge=0)
    """Weight of their mean negative log-likelihood per token."""
    final_coefficient: float | None = Field(None, ge=0)
    """The weight at the last step, reached linearly; constant where empty."""
    examples_per_update: PositiveInt = 8


class Conditioning(Block):
    """Texts put before the question that say what the answer is worth, so that a good one can be asked for."""

    good: str = "[GOOD] "
    """Before a question whose answer scores `right_score` or more, and before every held-out one."""
    bad: str = "[BAD] "
    right_score: float = 0.5


class Data(Block):
    """Where prompts come from. Prompts that also stand in `eval` are taken out of `train` and counted."""

    train: Source | None = None
    """Left out where the recipe only evaluates."""
    eval: Source | None = None
    auxiliary: Auxiliary | None = None
    max_prompt_tokens: PositiveInt | None = None
    """Longer prompts are reported and skipped; what the model's length leaves beside the completion where empty."""
    max_faulty_share: float = Field(0.01, ge=0, le=1)
    """Stop when more than this share of the rows that bring answers teaches nothing: the kinds are counted."""
    conditioning: Conditioning | None = None
    contrast: Source | None = None
    """Rows of two similar questions with a response to each, on which a reward model's consistency is measured:
    question, response, other_question, other_response (2309.16155).
    """


class Reward(Block):
    """One grader and its share of the score."""

    verifier: str
    """package.module:Name of a function or class; TRL-style reward functions are taken as they stand."""
    weight: float = 1.0
    name: str | None = None
    """How metrics call it; the verifier's own name where empty."""
    settings: dict[str, Any] = Field({})
    """Keyword arguments of the verifier's class."""


class Grading(Block):
    """How graders run: in a pool of processes that can be killed."""

    workers: PositiveInt = 2
    timeout: float = Field(10.0, gt=0)
    """Wall-clock seconds for one verdict."""
    retries: int = Field(1, ge=0)
    """How often a crashed or raising grader is asked again before its roll-out leaves the group."""
    max_failure_rate: float = Field(0.5, gt=0, le=1)
    """Stop when more than this share of a step's verdicts failed for reasons that are not the policy's."""
    early: bool = True
    """Grade each group as soon as its responses are drawn, while others still are; the verdicts are the same."""
    cache: bool = True
    """Keep the verdicts of verifiers that state a version, and do not ask twice for the same response and columns."""


class Rollout(Block):
    """How groups are sampled. Filters such as top_p are left out on purpose: they bias on-policy ratios."""

    engine: Literal["vllm", "transformers"] = "vllm"
    group_size: PositiveInt = 8
    temperature: float = Field(1.0, gt=0)
    max_tokens: PositiveInt = 512
    """New tokens of a completion."""
    max_lag: int = Field(0, ge=0, le=1)
    """Steps by which the weights that draw may lie behind: 1 draws the next step's groups while this one is learnt."""


class Optimizer(Block):
    """AdamW on fp32 master weights; one optimiser step sees prompts_per_step / minibatches prompts."""

    learning_rate: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes from its peak to zero at the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps from zero to the peak."""
    prompts_per_step: PositiveInt = 16
    """Prompts whose groups make one step of the loop."""
    minibatches: PositiveInt = 1
    """Optimiser steps that share a step's roll-outs, once per epoch."""
    epochs: PositiveInt = 1
    """Passes over a step's roll-outs."""


class Run(Block):
    """How long, where to, and what is kept."""

    steps: int = Field(0, ge=0)
    """Left out where the recipe only evaluates."""
    folder: Path
    seed: int = 0
    evaluate_every: int = Field(0, ge=0)
    """Evaluate every so many steps; 0 evaluates before the first and after the last step only."""
    save_every: int = Field(0, ge=0)
    """Checkpoint every so many steps; 0 writes the last step only."""
    keep_checkpoints: PositiveInt | None = None
    """Remove all but the newest so many; none is removed where empty."""
    parity_every: PositiveInt = 1
    """Hold engine and trainer log-probabilities against their bound before the first update and every so many steps."""
    rollouts: bool = True
    """Write every response of every step down, token by token."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go beside metrics.jsonl and the console."""


class Evaluation(Block):
    """How held-out accuracy is measured."""

    samples: int = Field(8, ge=0)
    """Completions per problem for avg@k, pass@k and maj@k; 0 decodes greedily only."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    """Of the samples: draw from the likeliest tokens that have so much probability. Training never filters."""
    greedy: bool = True
    """Also decode each problem once at temperature 0."""
    max_tokens: PositiveInt | None = None
    """The roll-outs' limit where empty."""
    best_of: str | None = None
    """A grader's name: also measured is what the response is worth that it scores highest of n samples, to the others.
    """

    @model_validator(mode="after")
    def _measures_something(self) -> Evaluation:
        if not self.samples and not self.greedy:
            raise ValueError("evaluation.samples: 0 and evaluation.greedy: false measure nothing; change one of them")
        if not self.samples and self.best_of is not None:
            raise ValueError(f"evaluation.best_of: {self.best_of!r} chooses among samples; raise evaluation.samples")
        return self


class Learner(Block):
    """The training side."""

    strategy: Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "single"
    """How weights lie over the processes: ddp keeps all on each, fsdp2 cuts tensors into rows, zeroN is DeepSpeed's."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Under zero, what waits in the CPU's memory: the optimiser's state, or, with zero3, also the weights."""
    processes: PositiveInt = 1
    """Started on this machine, each with the whole loop; under torchrun or accelerate launch, it is theirs to say."""
    layout: Literal["auto", "tree", "rows", "packed"] = "auto"
    """How a micro-batch lies in attention: tree computes a prompt once for its group. Gradients do not depend on it."""
    attention: Literal["auto", "trees", "masked"] = "auto"
    """How attention is told what lies in a row: trees computes only what is allowed, and rows need no padding."""
    micro_batch_tokens: PositiveInt = 4096
    """Token positions of one forward pass, padding included; gradients do not depend on it."""
    logit_chunk: PositiveInt = 512
    """Tokens whose logits exist at one time."""
    skip_silent: bool = True
    """No backward pass for responses whose advantage is 0 everywhere, where nothing else of the row has a gradient."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    compile: bool | Literal["auto"] = False
    """Compile norms and MLPs: a fifth less of a layer on a CPU in bf16, 13 s more at the first start, 5 later. auto:
    where one process trains and the machine has a compiler.
    """

    @model_validator(mode="after")
    def _one_or_several(self) -> Learner:
        if self.compile is True and self.strategy != "single":
            raise ValueError(
                f"hardware.learner.compile: true, but under strategy {self.strategy} parameters come and go; use "
                "compile: false, or strategy single"
            )
        if self.strategy == "single" and self.processes > 1:
            raise ValueError(
                f"hardware.learner.processes: {self.processes}, but strategy single trains in one; use strategy ddp, "
                "fsdp2 or zero3"
            )
        able: dict[str, tuple[str, ...]] = dict.fromkeys(("zero1", "zero2"), ("none", "optimizer"))
        able["zero3"] = ("none", "optimizer", "parameters")
        if self.offload not in able.get(self.strategy, ("none",)):
            way = "zero3" if self.offload == "parameters" else "zero1, zero2 or zero3"
            raise ValueError(
                f"hardware.learner.offload: {self.offload}, but strategy {self.strategy} has no such thing; use {way}, "
                "or none"
            )
        return self


class Hardware(Block):
    """The only block that differs between a laptop and a cluster."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    patience: PositiveFloat = 1800.0
    """Seconds in which several processes must exchange something: beyond, each shows where it stands and ends."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "bfloat16"
    """Of compute, on both sides; master weights and optimiser state are fp32 (fp64 under float64). `auto` is bfloat16
    where the device multiplies faster in it than in float32, which is measured at the start and written down.
    """
    learner: Learner = Learner()
    sampler: Sampler = Sampler()

    @model_validator(mode="after")
    def _waits_longer_than_it_asks(self) -> Hardware:
        late = self.sampler.servers.answer_timeout
        if self.learner.processes > 1 and self.sampler.placement == "servers" and late >= self.patience:
            raise ValueError(
                f"hardware.sampler.servers.answer_timeout: {late:g}, but the other ranks wait for an answer only "
                f"hardware.patience: {self.patience:g} seconds; make the first one less"
            )
        return self


class Recipe(Block):
    """A complete run, or an evaluation: that has neither an algorithm, nor data.train, nor run.steps."""

    model: Model
    algorithm: AlgorithmChoice | None = None
    data: Data
    run: Run
    rewards: tuple[Reward, ...] = ()
    rollout: Rollout = Rollout()
    optimizer: Optimizer = Optimizer()
    grading: Grading = Grading()
    evaluation: Evaluation = Evaluation()
    hardware: Hardware = Hardware()
    critic: Critic = Critic()
    reference: Reference = Reference()

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("algorithm", mode="before")
    @classmethod
    def _algorithm_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Recipe:
        if self.optimizer.minibatches > self.optimizer.prompts_per_step:
            raise ValueError(
                f"optimizer.minibatches is {self.optimizer.minibatches} but a step has only "
                f"optimizer.prompts_per_step = {self.optimizer.prompts_per_step} prompts: lower it or add prompts"
            )
        return self
