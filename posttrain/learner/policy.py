"""The Learner of a policy: transformers' model, laid over the ranks in one way or another, AdamW on master weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import Packing, pack
from posttrain.errors import TrainingError
from posttrain.learner import Policy
from posttrain.learner.accumulate import Passes, accumulate
from posttrain.learner.backbone import Backbone
from posttrain.learner.computation import Computation, scattered
from posttrain.learner.critic import Critic
from posttrain.learner.layout import Laid, lay_out
from posttrain.learner.logprobs import Chosen, Extras, exact_kl
from posttrain.learner.references import References
from posttrain.learner.sharding import Asking, Reader, full
from posttrain.learner.shards import Shards, shards_of
from posttrain.learner.sharing import read
from posttrain.learner.state import read_numbers, read_tensors, write_numbers, write_tensors
from posttrain.metrics import Report
from posttrain.models.adapters import Adapter
from posttrain.models.checkpoint import export_policy, merged_weights
from posttrain.recipe import Optimizer
from posttrain.types import Batch, Rollout, Sample, Scored


@dataclass(frozen=True)
class Companions:
    """Models beside the policy, where the algorithm needs them."""

    references: References | None = None
    critic: Critic | None = None


class PolicyLearner:
    """Implements `Learner`. `model` computes in the dtype it comes in, or under a sharding in `computation.dtype`."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        computation: Computation,
        total_updates: int,
        companions: Companions | None = None,
    ) -> None:
        self.model, self.sharding = model, computation.sharding
        self.model.train()
        companions = companions or Companions()
        self.references, self.critic = companions.references, companions.critic
        self.tokenizer, self.computation = tokenizer, computation
        self.temperature, self.dtype = computation.temperature, computation.dtype or next(model.parameters()).dtype
        self.packing = Packing(
            budget=computation.micro_batch_tokens,
            share_prompts=computation.layout == "tree",
            dtype=torch.promote_types(self.dtype, torch.float32),
            ranks=self.sharding.world.size,
            layout=computation.layout,
            padded=not computation.flat,
        )
        self.backbone = Backbone(model)
        self.reader = self.sharding.place(Reader(model), settings=optimizer)
        if self.references is not None:
            self.references.place(self.sharding)
        self.stepper = self.sharding.stepper(self.reader, optimizer, total_updates)
        self.version = 0

    def logprobs(self, rollouts: Sequence[Rollout], policy: Policy = "policy") -> list[Tensor]:
        def references(batch: Batch) -> Tensor:
            return torch.stack([self._chosen(batch, *each).logprobs for each in self._references()], dim=-1)

        return self._read(rollouts, (lambda batch: self._own(batch).logprobs) if policy == "policy" else references)

    def uniform(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        return self._read(rollouts, lambda batch: self._own(batch, Extras(uniform=True)).uniform)

    def values(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        if self.critic is None:
            raise TrainingError("the algorithm needs values, but the learner was built without a critic")
        critic = self.critic

        def outputs(batch: Batch) -> Tensor:
            laid = self._laid(batch)
            return critic.outputs(laid, None if critic.own else self.reader(lambda: self.backbone.hidden(laid)))

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
        batches = list(pack(samples, self.packing))
        found = read(self.sharding, batches, lambda batch: scattered(function(batch), batch).cpu())
        self._release()
        for batch, values in zip(batches, found, strict=True):
            shape = tuple(values.shape[1:])
            for index, part in zip(batch.index.tolist(), values.split(batch.lengths.tolist()), strict=True):
                out[index] = part.clone()
        silent = [torch.zeros(len(r.tokens), *shape, dtype=self.packing.dtype) for r in rollouts]
        return [out.get(i, zeros) for i, zeros in enumerate(silent)]

    def _laid(self, batch: Batch) -> Laid:
        return lay_out(batch, self.computation.layout, self.computation.flat)

    def _own(self, batch: Batch, extras: Extras | None = None) -> Chosen:
        return self._chosen(batch, self.reader, self.backbone, extras)

    def _chosen(self, batch: Batch, reader: Asking, backbone: Backbone, extras: Extras | None = None) -> Chosen:
        laid, settings = self._laid(batch), self.computation

        def ask() -> Chosen:
            hidden = backbone.hidden(laid)
            targets = batch.tokens[batch.mask].to(hidden.device)
            return backbone.chosen(hidden, targets, self.temperature, settings.logit_chunk, extras)

        return reader(ask)

    def _references(self) -> Iterator[tuple[Asking, Backbone]]:
        if self.references is None:
            raise TrainingError("the algorithm needs a reference policy, but the learner was built without one")
        return self.references.each(self.model, self.reader, self.backbone)

    def _release(self) -> None:
        others = self.references.readers if self.references is not None else []
        critic = [self.critic.reader] if self.critic is not None and self.critic.own else []
        for reader in (self.reader, *others, *critic):
            self.sharding.release(reader)

    @torch.no_grad()
    def logits(self, rollout: Rollout, dtype: torch.dtype | None = None, head: Tensor | None = None) -> Tensor:
        model = self.model if dtype is None and not self.sharding.lockstep else self._copy().to(dtype or self.dtype)
        backbone = Backbone(model)
        mask = torch.tensor(rollout.mask)
        sample = Sample(replace(rollout, logprobs=None), 0, mask, torch.zeros(len(mask)))
        (batch,) = pack([sample], self.packing)
        weight = backbone.head.weight if head is None else head.to(backbone.head.weight)
        return (backbone.hidden(lay_out(batch, "rows")) @ weight.t()).float().cpu()

    def _copy(self) -> Any:
        """The policy as a model of its own, whole on every rank."""
        if not self.sharding.lockstep:
            return copy.deepcopy(self.model)
        config = self.model.config
        model = AutoModelForCausalLM.from_config(config, dtype=self.dtype, attn_implementation="sdpa")
        model.load_state_dict(dict(self.weights()))
        return model.to(self.backbone.head.weight.device)

    def _score(self, batch: Batch, algorithm: Algorithm) -> Scored:
        """The forward pass of training: what the row asks for of each masked token, and no more."""
        settings, needs = self.computation, algorithm.needs
        extras = Extras(algorithm.entropy.kind != "none", needs.uniform, needs.collision)
        laid = self._laid(batch)
        others: list[tuple[Tensor, Tensor]] = []
        if algorithm.kl.kind == "in_loss" and algorithm.kl["kl_estimator"] == "exact":
            with torch.no_grad():
                others = [(reader(partial(b.hidden, laid)), b.head.weight) for reader, b in self._references()]

        def ask() -> tuple[Chosen, Tensor, list[Tensor]]:
            hidden, weight = self.backbone.hidden(laid), self.backbone.head.weight
            targets = batch.tokens[batch.mask].to(hidden.device)
            found = self.backbone.chosen(hidden, targets, self.temperature, settings.logit_chunk, extras)
            each = [exact_kl(hidden, weight, *o, self.temperature, settings.logit_chunk) for o in others]
            return found, hidden, each

        found, hidden, each = self.reader(ask)
        kl = scattered(torch.stack(each, dim=-1), batch).cpu() if each else None
        values = None
        if self.critic is not None and (batch.returns is not None or algorithm.critic.kind == "joint"):
            values = scattered(self.critic.outputs(laid, hidden), batch).cpu()
        out = {name: scattered(f, batch).cpu() for name, f in found._asdict().items()}
        asked = {name: out[name] if getattr(extras, name) else None for name in ("uniform", "collision")}
        return Scored(out["logprobs"], out["entropy"], kl, values, **asked)

    def accumulate(
        self, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
    ) -> tuple[Report, list[Tensor]]:
        passes = Passes(
            lambda batch: self._score(batch, algorithm),
            partial(self.sharding.backward, self.reader),
            self.sharding,
            self._release,
            self.computation.skips,
        )
        return accumulate(passes, batches, algorithm, coefficients)

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
        return {"policy": self.stepper.state().copied(), "version": self.version}

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        self.stepper.load(snapshot["policy"])
        self.version = snapshot["version"]

    def refresh_reference(self, decay: float, momentum: float = 0.0) -> None:
        if self.references is None:
            return
        masters = self.stepper.masters
        if momentum:
            self.references.carry_on(masters, momentum)
            masters.publish()
            self.version += 1
            return
        self.references.refresh(masters, decay)

    def reference_weights(self) -> Iterator[tuple[str, Tensor]]:
        if self.references is None:
            raise TrainingError("an opponent is asked for, but the learner was built without a reference policy")
        yield from merged_weights(self.references.first(), self._whole, self.sharding.opened)

    def _whole(self, tensor: Tensor) -> Tensor:
        # Rounded first: half as much is sent.
        return full(tensor.to(self.dtype) if tensor.is_floating_point() else tensor)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from merged_weights(self.model, self._whole, self.sharding.opened)

    def shards(self) -> Shards:
        """What `weights` yields, as the ranks store it. Raises ModelError where they store something else."""
        return shards_of(self.model, self.dtype)

    def adapter(self) -> Adapter:
        """The adapter beside its base, as they are. Raises ModelError where it is none that could be served apart."""
        return Adapter(self.model, self._whole, self.sharding.opened)

    def save(self, folder: Path) -> None:
        world = self.sharding.world
        export_policy(self.model, self.weights(), self.tokenizer, folder / "policy" if world.rank == 0 else None)
        state = self.stepper.state()
        tensors, numbers = dict(state.tensors), {**state.numbers, "version": self.version}
        if self.references is not None:
            kept = self.references.state()
            tensors |= kept
            numbers["references"] = sorted(kept)
        write_tensors(folder / "learner", tensors, world)
        write_numbers(folder, {**numbers, "rng": torch.get_rng_state()}, world)
        if self.critic is not None:
            self.critic.save(folder)
        world.wait()

    def load(self, folder: Path) -> None:
        world, numbers = self.sharding.world, read_numbers(folder)
        room = self.stepper.room(numbers)
        kept = self.references.room(numbers["references"]) if self.references is not None else {}
        read_tensors(folder / "learner", {**room.tensors, **kept}, world)
        self.stepper.load(room)
        self.version = numbers["version"]
        if self.references is not None and kept:
            self.references.load(kept)
        if self.critic is not None:
            self.critic.load(folder)
        torch.set_rng_state(numbers["rng"])
