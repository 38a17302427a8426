"""The Learner on one device: transformers' model, accelerate's placement, AdamW on master weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import Packing, pack
from posttrain.errors import TrainingError
from posttrain.learner import Policy
from posttrain.learner.accumulate import accumulate
from posttrain.learner.backbone import Backbone
from posttrain.learner.computation import Computation, scattered
from posttrain.learner.critic import Critic
from posttrain.learner.layout import lay_out
from posttrain.learner.logprobs import Chosen, Extras, exact_kl
from posttrain.learner.references import References
from posttrain.learner.stepper import Stepper
from posttrain.metrics import Report
from posttrain.models.checkpoint import export_policy, merged_weights
from posttrain.recipe import Optimizer
from posttrain.types import Batch, Rollout, Sample, Scored


@dataclass(frozen=True)
class Companions:
    """Models beside the policy, where the algorithm needs them."""

    references: References | None = None
    critic: Critic | None = None


class SingleLearner:
    """Implements `Learner` on one CPU or GPU. `model` is trained in the dtype it comes in."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        computation: Computation,
        total_updates: int,
        companions: Companions | None = None,
    ) -> None:
        self.accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
        self.model: Any = self.accelerator.prepare_model(model)
        self.model.train()
        companions = companions or Companions()
        self.references, self.critic = companions.references, companions.critic
        self.tokenizer, self.computation = tokenizer, computation
        self.backbone = Backbone(self.model)
        self.temperature, self.dtype = computation.temperature, next(model.parameters()).dtype
        self.packing = Packing(
            budget=computation.micro_batch_tokens,
            share_prompts=computation.layout == "tree",
            dtype=torch.promote_types(self.dtype, torch.float32),
        )
        self.stepper = Stepper(self.model, optimizer, total_updates)
        self.version = 0

    def logprobs(self, rollouts: Sequence[Rollout], policy: Policy = "policy") -> list[Tensor]:
        def own(batch: Batch) -> Tensor:
            return self._chosen(batch, self.backbone).logprobs

        def references(batch: Batch) -> Tensor:
            return torch.stack([self._chosen(batch, b).logprobs for b in self._references()], dim=-1)

        return self._read(rollouts, own if policy == "policy" else references)

    def uniform(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        return self._read(rollouts, lambda batch: self._chosen(batch, self.backbone, Extras(uniform=True)).uniform)

    def values(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        if self.critic is None:
            raise TrainingError("the algorithm needs values, but the learner was built without a critic")
        critic = self.critic

        def outputs(batch: Batch) -> Tensor:
            laid = lay_out(batch, self.computation.layout)
            return critic.outputs(laid, None if critic.own else self.backbone.hidden(laid))

        # A further token at the end, never seen by any other, is predicted by the state after the last one.
        ended = [
            replace(r, tokens=(*r.tokens, 0), mask=(*r.mask, True), logprobs=None, versions=None) for r in rollouts
        ]
        return self._read(ended, outputs)

    @torch.no_grad()
    def _read(self, rollouts: Sequence[Rollout], function: Callable[[Batch], Tensor]) -> list[Tensor]:
        """`[M, ...]` figures of masked tokens to one `[T, ...]` tensor per rollout, without gradient."""
        # Groups are found by prompt, so that the tree layout shares it here too.
        prompts: dict[tuple[int, ...], int] = {}
        samples = []
        for rollout in rollouts:
            mask = torch.tensor(rollout.mask)
            prompt = rollout.tokens[: int(mask.int().argmax())]
            group = prompts.setdefault(prompt, len(prompts))
            samples.append(Sample(rollout, group, mask, torch.zeros(len(mask))))
        out: dict[int, Tensor] = {}
        shape: tuple[int, ...] = ()
        for batch in pack(samples, self.packing):
            values = scattered(function(batch), batch).cpu()
            shape = tuple(values.shape[1:])
            for index, part in zip(batch.index.tolist(), values.split(batch.lengths.tolist()), strict=True):
                out[index] = part.clone()
        silent = [torch.zeros(len(r.tokens), *shape, dtype=self.packing.dtype) for r in rollouts]
        return [out.get(i, zeros) for i, zeros in enumerate(silent)]

    def _chosen(self, batch: Batch, backbone: Backbone, extras: Extras | None = None) -> Chosen:
        hidden = backbone.hidden(lay_out(batch, self.computation.layout))
        targets = batch.tokens[batch.mask].to(hidden.device)
        return backbone.chosen(hidden, targets, self.temperature, self.computation.logit_chunk, extras)

    def _references(self) -> Iterator[Backbone]:
        if self.references is None:
            raise TrainingError("the algorithm needs a reference policy, but the learner was built without one")
        return self.references.each(self.model, self.backbone)

    @torch.no_grad()
    def logits(self, rollout: Rollout, dtype: torch.dtype | None = None, head: Tensor | None = None) -> Tensor:
        model = self.model if dtype is None else copy.deepcopy(self.model).to(dtype)
        backbone = Backbone(model)
        mask = torch.tensor(rollout.mask)
        sample = Sample(replace(rollout, logprobs=None), 0, mask, torch.zeros(len(mask)))
        (batch,) = pack([sample], self.packing)
        weight = backbone.head.weight if head is None else head.to(backbone.head.weight)
        return (backbone.hidden(lay_out(batch, "rows")) @ weight.t()).float().cpu()

    def _score(self, batch: Batch, algorithm: Algorithm) -> Scored:
        """The forward pass of training: what the row asks for of each masked token, and no more."""
        settings = self.computation
        needs = algorithm.needs
        extras = Extras(algorithm.entropy.kind != "none", needs.uniform, needs.collision)
        laid = lay_out(batch, settings.layout)
        hidden = self.backbone.hidden(laid)
        targets = batch.tokens[batch.mask].to(hidden.device)
        found = self.backbone.chosen(hidden, targets, self.temperature, settings.logit_chunk, extras)
        kl = values = None
        if algorithm.kl.kind == "in_loss" and algorithm.kl["kl_estimator"] == "exact":
            with torch.no_grad():
                others = [(b.hidden(laid), b.head.weight) for b in self._references()]
            weight = self.backbone.head.weight
            each = [exact_kl(hidden, weight, *o, self.temperature, settings.logit_chunk) for o in others]
            kl = scattered(torch.stack(each, dim=-1), batch).cpu()
        if self.critic is not None and (batch.returns is not None or algorithm.critic.kind == "joint"):
            values = scattered(self.critic.outputs(laid, hidden), batch).cpu()
        out = {name: scattered(f, batch).cpu() for name, f in found._asdict().items()}
        asked = {name: out[name] if getattr(extras, name) else None for name in ("uniform", "collision")}
        return Scored(out["logprobs"], out["entropy"], kl, values, **asked)

    def accumulate(
        self, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
    ) -> tuple[Report, list[Tensor]]:
        return accumulate(
            lambda batch: self._score(batch, algorithm), self.accelerator.backward, batches, algorithm, coefficients
        )

    def step(self, policy: bool = True) -> Report:
        report = Report()
        if self.critic is not None and self.critic.stepper is not None:
            norm, rate = self.critic.stepper.step()
            report += Report.value("learn/critic_grad_norm", norm) + Report.value("learn/critic_learning_rate", rate)
        if not policy:
            self.stepper.discard()
            return report
        norm, rate = self.stepper.step()
        self.version += 1
        return report + Report.value("learn/grad_norm", norm) + Report.value("learn/learning_rate", rate)

    def discard(self) -> None:
        self.stepper.discard()
        if self.critic is not None and self.critic.stepper is not None:
            self.critic.stepper.discard()

    def snapshot(self) -> dict[str, Any]:
        return {"policy": self.stepper.snapshot(), "version": self.version}

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        self.stepper.load(snapshot["policy"])
        self.version = snapshot["version"]

    def refresh_reference(self, decay: float, momentum: float = 0.0) -> None:
        if self.references is None:
            return
        if momentum:
            self.references.carry_on(self.stepper.masters, momentum)
            self.stepper.masters.publish()
            self.version += 1
            return
        self.references.refresh(self.stepper.masters, decay)

    def reference_weights(self) -> Iterator[tuple[str, Tensor]]:
        if self.references is None:
            raise TrainingError("an opponent is asked for, but the learner was built without a reference policy")
        yield from merged_weights(self.references.first())

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from merged_weights(self.model)

    def save(self, folder: Path) -> None:
        export_policy(self.model, self.tokenizer, folder / "policy")
        state = {**self.stepper.state(), "version": self.version, "rng": torch.get_rng_state()}
        if self.references is not None and self.references.average is not None:
            state["reference"] = self.references.average
        if self.references is not None and self.references.learnt is not None:
            state["learnt"] = self.references.learnt
        torch.save(state, folder / "learner.pt")
        if self.critic is not None:
            self.critic.save(folder)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "learner.pt", map_location="cpu", weights_only=True)
        self.stepper.load(state)
        self.version = state["version"]
        if "reference" in state and self.references is not None:
            self.references.load(state["reference"])
            self.references.learnt = state.get("learnt")
        if self.critic is not None:
            self.critic.load(folder)
        torch.set_rng_state(state["rng"])
