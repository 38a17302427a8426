"""The learner of a reward model: a transformer with a linear head, read after the tokens that matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import Packing, pack
from posttrain.errors import TrainingError
from posttrain.learner import Policy
from posttrain.learner.accumulate import Passes, accumulate
from posttrain.learner.backbone import predictors
from posttrain.learner.computation import Computation, said_by, scattered
from posttrain.learner.layout import lay_out
from posttrain.learner.sharding import Reader, full
from posttrain.learner.sharing import read
from posttrain.learner.state import read_numbers, read_tensors, write_numbers, write_tensors
from posttrain.metrics import Report
from posttrain.models.checkpoint import export_scorer, merged_weights
from posttrain.recipe import Optimizer
from posttrain.types import Batch, Rollout, Sample, Scored


class ScorerLearner:
    """Implements `Learner` for a sequence classifier, whose head says `[B]` numbers of a state. What only a policy has,
    log-probabilities and roll-outs' weights, is refused.
    """

    temperature = 1.0

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        computation: Computation,
        total_updates: int,
    ) -> None:
        self.model, self.sharding = model, computation.sharding
        self.model.train()
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.decoder = getattr(inner, inner.base_model_prefix)
        self.head = _head(inner)
        self.tokenizer, self.computation = tokenizer, computation
        self.dtype = computation.dtype or next(self.decoder.parameters()).dtype
        # The optimiser's steps would be lost in bf16, unless it has masters.
        self.head.to(torch.promote_types(self.dtype, torch.float32))
        self.packing = Packing(
            budget=computation.micro_batch_tokens,
            share_prompts=computation.layout == "tree",
            dtype=torch.promote_types(self.dtype, torch.float32),
            ranks=self.sharding.world.size,
            layout=computation.layout,
            padded=not computation.flat,
        )
        self.reader = self.sharding.place(Reader(model), list(self.head.parameters()), optimizer)
        self.stepper = self.sharding.stepper(self.reader, optimizer, total_updates, "reward model")
        self.version = 0

    def outputs(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """`[B]` per rollout: what the head says after the last token the policy said, without gradient."""
        # Groups are found by prompt, so that a shared one is read once.
        prompts: dict[tuple[int, ...], int] = {}
        samples = []
        for rollout in rollouts:
            mask = torch.zeros(len(rollout.tokens), dtype=torch.bool)
            mask[torch.tensor(rollout.mask).nonzero()[-1:, 0]] = True
            group = prompts.setdefault(rollout.tokens[: rollout.mask.index(True)], len(prompts))
            samples.append(Sample(rollout, group, mask, torch.zeros(len(mask))))

        def said(batch: Batch) -> dict[int, Tensor]:
            values = self._said(batch)[1].cpu()
            order = batch.segment[batch.mask].tolist()
            return {int(batch.index[s]): values[i] for i, s in enumerate(order)}

        out: dict[int, Tensor] = {}
        with torch.no_grad():
            for part in read(self.sharding, list(pack(samples, self.packing)), said):
                out |= part
        self._release()
        return [out[i] for i in range(len(rollouts))]

    def _release(self) -> None:
        self.sharding.release(self.reader)

    def _said(self, batch: Batch, share: float = 0.0) -> tuple[Tensor, Tensor]:
        """`[M, H]`: the last hidden state after each masked token; and `[M, B]`: what the head says of it, of which a
        `share` is left out.
        """
        laid = lay_out(after(batch), self.computation.layout, self.computation.flat)

        def ask() -> tuple[Tensor, Tensor]:
            states = predictors(self.decoder, laid, self.head.weight.device)
            read = states
            if share:
                wide = states.to(torch.promote_types(states.dtype, torch.float32))
                read = wide * _kept(batch, states.shape[-1], share, self.version).to(wide)
            # The head too is inside the pass: where it is cut over the ranks, it is whole there alone.
            return states, said_by(self.head, read)

        return self.reader(ask)

    def _score(self, batch: Batch, algorithm: Algorithm) -> Scored:
        states, found = self._said(batch, algorithm.objective.settings.get("head_dropout", 0.0))
        outputs = scattered(found, batch).cpu()
        said, zeros = outputs.detach().mean(-1), torch.zeros(len(batch.tokens), dtype=outputs.dtype)
        kept = scattered(states, batch).cpu().to(outputs.dtype) if algorithm.needs.states else None
        return Scored(said, zeros, values=outputs, states=kept)

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
        norm, rate = self.stepper.step()
        self.version += 1
        return Report.value("learn/grad_norm", norm) + Report.value("learn/learning_rate", rate)

    def discard(self) -> None:
        self.stepper.discard()

    def snapshot(self) -> dict[str, Any]:
        return {"policy": self.stepper.state().copied(), "version": self.version}

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        self.stepper.load(snapshot["policy"])
        self.version = snapshot["version"]

    def _whole(self, tensor: Tensor) -> Tensor:
        # The head keeps the digits that it is trained with.
        return full(tensor.to(self.dtype) if self.sharding.lockstep and isinstance(tensor, DTensor) else tensor)

    def save(self, folder: Path) -> None:
        world, state = self.sharding.world, self.stepper.state()
        weights = merged_weights(self.model, self._whole, self.sharding.opened)
        export_scorer(self.model, weights, self.tokenizer, folder / "policy" if world.rank == 0 else None)
        write_tensors(folder / "learner", state.tensors, world)
        write_numbers(folder, {**state.numbers, "version": self.version, "rng": torch.get_rng_state()}, world)
        world.wait()

    def load(self, folder: Path) -> None:
        numbers = read_numbers(folder)
        room = self.stepper.room(numbers)
        read_tensors(folder / "learner", room.tensors, self.sharding.world)
        self.stepper.load(room)
        self.version = numbers["version"]
        torch.set_rng_state(numbers["rng"])

    def logprobs(self, rollouts: Sequence[Rollout], policy: Policy = "policy") -> list[Tensor]:
        raise TrainingError("a reward model says nothing of how likely a token is")

    def uniform(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        raise TrainingError("a reward model says nothing of how likely a token is")

    def values(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        raise TrainingError("a reward model has no critic beside it")

    def logits(self, rollout: Rollout, dtype: torch.dtype | None = None, head: Tensor | None = None) -> Tensor:
        raise TrainingError("a reward model says nothing of how likely a token is")

    def refresh_reference(self, decay: float, momentum: float = 0.0) -> None:
        raise TrainingError("a reward model has no reference")

    def reference_weights(self) -> Iterator[tuple[str, Tensor]]:
        raise TrainingError("a reward model has no reference")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        raise TrainingError("a reward model is not published to an engine")


def after(batch: Batch) -> Batch:
    """The same sequences with one token more, and the mask one token later: the state that predicts a token is the
    state after the one before it.
    """
    ends = batch.lengths.cumsum(0)
    starts = ends - batch.lengths
    tokens, mask = [], []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        # Nothing sees the further token, whatever it is.
        tokens.append(functional.pad(batch.tokens[start:end], (0, 1)))
        mask.append(functional.pad(batch.mask[start:end], (1, 0)))
    lengths = batch.lengths + 1
    return replace(
        batch,
        tokens=torch.cat(tokens),
        mask=torch.cat(mask),
        lengths=lengths,
        position=torch.cat([torch.arange(int(n)) for n in lengths]),
        segment=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
    )


def _head(model: Any) -> nn.Linear:
    """The `score` head, also where an adapter trains a copy of it."""
    head = model.score
    return head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head


def _kept(batch: Batch, width: int, share: float, version: int) -> Tensor:
    """`[M, H]`: dropout by sequence and update, the same however the update was cut."""
    rows = {}
    for s, index in enumerate(batch.index.tolist()):
        draw = torch.Generator().manual_seed(version * 1_000_003 + index)
        rows[s] = (torch.rand(width, generator=draw) >= share).double() / (1 - share)
    return torch.stack([rows[s] for s in batch.segment[batch.mask].tolist()])
