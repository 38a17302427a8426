"""The Learner on one device: transformers' model, accelerate's placement, AdamW on master weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, get_scheduler

from posttrain.algorithms.loss import batch_loss
from posttrain.algorithms.table import Algorithm
from posttrain.data.packing import Packing, pack
from posttrain.errors import TrainingError
from posttrain.learner import Policy
from posttrain.learner.backbone import Backbone
from posttrain.learner.layout import Layout, lay_out
from posttrain.learner.masters import Masters
from posttrain.metrics import Report
from posttrain.models.checkpoint import export_policy, merged_weights
from posttrain.recipe import Optimizer
from posttrain.types import Batch, Rollout, Sample


@dataclass(frozen=True)
class Computation:
    """How the learner computes. The first three change speed and memory only; the last two are the roll-outs' own."""

    layout: Layout
    micro_batch_tokens: int
    logit_chunk: int
    temperature: float
    max_tokens: int


class SingleLearner:
    """Implements `Learner` on one CPU or GPU.

    `model` is trained in the dtype it comes in. `reference` is a frozen copy, or None where an adapter's base is the
    reference or none is needed.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        computation: Computation,
        total_updates: int,
        reference: nn.Module | None = None,
    ) -> None:
        self.accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
        self.model: Any = self.accelerator.prepare_model(model)
        self.model.train()
        self.reference: Any = reference.eval() if reference is not None else None
        self.tokenizer, self.settings, self.computation = tokenizer, optimizer, computation
        self.backbone = Backbone(self.model)
        self.temperature, self.dtype = computation.temperature, next(model.parameters()).dtype
        self.packing = Packing(
            budget=computation.micro_batch_tokens,
            share_prompts=computation.layout == "tree",
            dtype=torch.promote_types(self.dtype, torch.float32),
        )
        self.masters = Masters(self.model)
        self.optimizer = torch.optim.AdamW(
            self.masters.parameters,
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        schedule = {"constant": "constant_with_warmup"}.get(optimizer.schedule, optimizer.schedule)
        self.scheduler = get_scheduler(schedule, self.optimizer, optimizer.warmup_steps, total_updates)
        self.version = 0

    def _forward(self, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """`[M]` log-probabilities and entropies of the Batch's masked tokens."""
        laid = lay_out(batch, self.computation.layout)
        hidden = backbone.hidden(laid)
        targets = batch.tokens[batch.mask].to(hidden.device)
        return backbone.chosen(hidden, targets, self.temperature, self.computation.logit_chunk)

    def _scattered(self, values: Tensor, batch: Batch) -> Tensor:
        """`[M]` values of masked tokens to `[N]`, 0 elsewhere."""
        return torch.zeros(len(batch.tokens), dtype=values.dtype, device=values.device).masked_scatter(
            batch.mask.to(values.device), values
        )

    @torch.no_grad()
    def logprobs(self, rollouts: Sequence[Rollout], policy: Policy = "policy") -> list[Tensor]:
        # Groups are found by prompt, so that the tree layout shares it here too.
        prompts: dict[tuple[int, ...], int] = {}
        samples = []
        for rollout in rollouts:
            mask = torch.tensor(rollout.mask)
            prompt = rollout.tokens[: int(mask.int().argmax())]
            group = prompts.setdefault(prompt, len(prompts))
            samples.append(Sample(rollout, group, mask, torch.zeros(len(mask))))
        out: list[Tensor] = [torch.zeros(len(r.tokens), dtype=self.packing.dtype) for r in rollouts]
        with self._as(policy) as backbone:
            for batch in pack(samples, self.packing):
                values = self._scattered(self._forward(batch, backbone)[0], batch).cpu()
                for index, part in zip(batch.index.tolist(), values.split(batch.lengths.tolist()), strict=True):
                    out[index] = part.clone()
        return out

    @torch.no_grad()
    def logits(self, rollout: Rollout, dtype: torch.dtype | None = None, head: Tensor | None = None) -> Tensor:
        model = self.model if dtype is None else copy.deepcopy(self.model).to(dtype)
        backbone = Backbone(model)
        mask = torch.tensor(rollout.mask)
        sample = Sample(replace(rollout, logprobs=None), 0, mask, torch.zeros(len(mask)))
        (batch,) = pack([sample], self.packing)
        weight = backbone.head.weight if head is None else head.to(backbone.head.weight)
        return (backbone.hidden(lay_out(batch, "rows")) @ weight.t()).float().cpu()

    @contextlib.contextmanager
    def _as(self, policy: Policy) -> Iterator[Backbone]:
        """The backbone of the policy or of its reference; an adapter's reference is its base."""
        if policy == "policy":
            yield self.backbone
        elif self.reference is not None:
            yield Backbone(self.reference)
        elif hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield self.backbone
        else:
            raise TrainingError("the algorithm needs a reference policy, but the learner was built without one")

    def accumulate(self, batch: Batch, algorithm: Algorithm) -> tuple[Report, Tensor]:
        chosen, entropy = self._forward(batch, self.backbone)
        logprobs = self._scattered(chosen, batch).cpu()
        loss, report = batch_loss(algorithm, logprobs, batch, self.computation.max_tokens)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(_non_finite(logprobs.detach(), batch))
        self.accelerator.backward(loss)
        count = int(batch.mask.sum())
        # Micro-batches of an update, and the updates of a step, add up.
        report += Report.sum("learn/loss", float(loss.detach()))
        report += Report.mean("learn/entropy", float(entropy.double().sum()), count)
        return report, logprobs.detach()

    def step(self) -> Report:
        norm = float(self.accelerator.clip_grad_norm_(self.masters.parameters, self.settings.clip_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient norm of update {self.version + 1} is {norm}; the weights were left as they are. "
                "Lower optimizer.learning_rate, or look at the step's roll-outs"
            )
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.masters.zero_grad()
        self.masters.publish()
        self.version += 1
        return Report.value("learn/grad_norm", norm) + Report.value("learn/learning_rate", rate)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from merged_weights(self.model)

    def save(self, folder: Path) -> None:
        export_policy(self.model, self.tokenizer, folder / "policy")
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "version": self.version,
            "trained": [p.detach() for p in self.masters.parameters],
            "rng": torch.get_rng_state(),
        }
        torch.save(state, folder / "learner.pt")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        state = torch.load(folder / "learner.pt", map_location="cpu", weights_only=True)
        for parameter, value in zip(self.masters.parameters, state["trained"], strict=True):
            parameter.copy_(value)
        self.masters.publish()
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.version = state["version"]
        torch.set_rng_state(state["rng"])


def _non_finite(logprobs: Tensor, batch: Batch) -> str:
    """Name what was not finite, and where, in a loss that was not."""
    for name, values in (("log-probability", logprobs), ("advantage", batch.advantages), ("engine", batch.behaviour)):
        wrong = (~torch.isfinite(values)).nonzero()[:, 0]
        if len(wrong):
            at = int(wrong[0])
            sample = int(batch.index[batch.segment[at]])
            return (
                f"the loss is not finite: {len(wrong)} {name} values, first at token {int(batch.position[at])} "
                f"(id {int(batch.tokens[at])}) of sample {sample}; nothing was updated"
            )
    return "the loss is not finite though its inputs are: lower optimizer.learning_rate; nothing was updated"
