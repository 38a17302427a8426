"""The learner of a reward model: a transformer with a linear head, read after the tokens that matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import Packing, pack
from posttrain.errors import TrainingError
from posttrain.learner import Policy
from posttrain.learner.accumulate import accumulate
from posttrain.learner.backbone import predictors
from posttrain.learner.computation import Computation, scattered
from posttrain.learner.layout import lay_out
from posttrain.learner.stepper import Stepper
from posttrain.metrics import Report
from posttrain.models.checkpoint import export_scorer
from posttrain.recipe import Optimizer
from posttrain.types import Batch, Rollout, Sample, Scored


class ScorerLearner:
    """Implements `Learner` for a sequence classifier, whose head says `[B]` numbers of a state. What only a policy has,
    log-probabilities and roll-outs' weights, is refused.
    """

    temperature = 1.0

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        computation: Computation,
        total_updates: int,
    ) -> None:
        self.accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
        self.model: Any = self.accelerator.prepare_model(model)
        self.model.train()
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.decoder = getattr(inner, inner.base_model_prefix)
        self.head = _head(inner)
        self.tokenizer, self.computation = tokenizer, computation
        self.dtype = next(self.decoder.parameters()).dtype
        # In bf16 a score would have two and a half digits.
        self.head.to(torch.promote_types(self.dtype, torch.float32))
        self.packing = Packing(
            budget=computation.micro_batch_tokens,
            share_prompts=computation.layout == "tree",
            dtype=torch.promote_types(self.dtype, torch.float32),
        )
        self.stepper = Stepper(self.model, optimizer, total_updates, "reward model")
        self.version = 0

    def outputs(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """`[B]` per rollout: what the head says after the last token the policy said, without gradient."""
        # Groups are found by prompt, so that a shared one is read once.
        prompts: dict[tuple[int, ...], int] = {}
        samples = []
        for rollout in rollouts:
            said = torch.tensor(rollout.mask).nonzero()[:, 0]
            mask = torch.zeros(len(rollout.tokens), dtype=torch.bool)
            mask[said[-1:]] = True
            group = prompts.setdefault(rollout.tokens[: rollout.mask.index(True)], len(prompts))
            samples.append(Sample(rollout, group, mask, torch.zeros(len(mask))))
        out: dict[int, Tensor] = {}
        with torch.no_grad():
            for batch in pack(samples, self.packing):
                states = self._states(batch)
                values = functional.linear(states.to(self.head.weight.dtype), self.head.weight).cpu()
                order = batch.segment[batch.mask].tolist()
                out |= {int(batch.index[s]): values[i] for i, s in enumerate(order)}
        return [out[i] for i in range(len(rollouts))]

    def _states(self, batch: Batch) -> Tensor:
        """`[M, H]`: the last hidden state after each masked token."""
        laid = lay_out(after(batch), self.computation.layout)
        return predictors(self.decoder, laid, self.head.weight.device)

    def _score(self, batch: Batch, algorithm: Algorithm) -> Scored:
        states = self._states(batch)
        share = algorithm.objective.settings.get("head_dropout", 0.0)
        read = states.to(self.head.weight.dtype)
        if share:
            read = read * _kept(batch, read.shape[-1], share, self.version).to(read)
        outputs = scattered(functional.linear(read, self.head.weight), batch).cpu()
        said, zeros = outputs.detach().mean(-1), torch.zeros(len(batch.tokens), dtype=outputs.dtype)
        kept = scattered(states, batch).cpu().to(outputs.dtype) if algorithm.needs.states else None
        return Scored(said, zeros, values=outputs, states=kept)

    def accumulate(
        self, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
    ) -> tuple[Report, list[Tensor]]:
        return accumulate(
            lambda batch: self._score(batch, algorithm), self.accelerator.backward, batches, algorithm, coefficients
        )

    def step(self, policy: bool = True) -> Report:
        norm, rate = self.stepper.step()
        self.version += 1
        return Report.value("learn/grad_norm", norm) + Report.value("learn/learning_rate", rate)

    def discard(self) -> None:
        self.stepper.discard()

    def snapshot(self) -> dict[str, Any]:
        return {"policy": self.stepper.snapshot(), "version": self.version}

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        self.stepper.load(snapshot["policy"])
        self.version = snapshot["version"]

    def save(self, folder: Path) -> None:
        export_scorer(self.model, self.tokenizer, folder / "policy")
        state = {**self.stepper.state(), "version": self.version, "rng": torch.get_rng_state()}
        torch.save(state, folder / "learner.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "learner.pt", map_location="cpu", weights_only=True)
        self.stepper.load(state)
        self.version = state["version"]
        torch.set_rng_state(state["rng"])

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
