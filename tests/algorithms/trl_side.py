"""TRL's own methods beside a row: a stand-in for their `self`, and a step of ragged responses for both to read."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.loss import batch_loss
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import RowState, Terms
from posttrain.data.packing import Packing, pack
from posttrain.types import FinishReason, Rollout, Sample, Scored

SIZE = 4
LENGTHS = (5, 2, 7, 1, 3, 8, 1, 6, 4, 4, 2, 9)
TOOLS = {0: (1, 2), 5: (0, 3, 4), 11: (5, 6)}
"""Row: tokens of the response that a tool wrote."""
MAX_TOKENS = 9


class Model(SimpleNamespace):
    """A policy that says the log-probabilities `[B, T]` it was given. A token's id is its place in that table."""

    training, is_gradient_checkpointing = True, False

    def train(self) -> None: ...

    def said(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.logprobs.flatten()[ids], self.entropy.flatten()[ids]

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        logprobs, entropy = self.said(input_ids)
        return SimpleNamespace(log_probs=logprobs, entropy=entropy)


class Step:
    """Three groups of four ragged responses with tool spans. Tensors `[B, T]` in fp64, noise where nothing is."""

    def __init__(
        self, lengths: Sequence[int] = LENGTHS, tools: dict[int, Sequence[int]] = TOOLS, cut: Sequence[int] = ()
    ):
        self.lengths, self.cut, rows, width = lengths, cut, len(lengths), max(lengths)
        self.ids = torch.arange(rows * width).view(rows, width)
        self.present = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        self.mask = self.present.clone()
        for row, tokens in tools.items():
            self.mask[row, list(tokens)] = False
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(5, rows, width, generator=generator, dtype=torch.float64)
        self.logprobs, self.entropy = -2.5 + 0.4 * noise[0], 1 + 0.3 * noise[1].abs()
        self.previous, self.reference = self.logprobs + 0.5 * noise[2], self.logprobs + 0.4 * noise[3]
        # TRL makes fp32 tensors of what the engine said.
        self.behaviour = (self.previous + 0.5 * noise[4]).float().double()
        self.advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
        self.rollouts = [self._rollout(row) for row in range(rows)]

    def _rollout(self, row: int) -> Rollout:
        length, before = self.lengths[row], 2 + row // SIZE
        mask = (False,) * before + tuple(self.mask[row, :length].tolist())
        tokens = (0,) * before + tuple(self.ids[row, :length].tolist())
        said = (0.0,) * before + tuple((self.behaviour * self.mask)[row, :length].tolist())
        reason: FinishReason = "length" if row in self.cut else "stop"
        return Rollout(tokens=tokens, mask=mask, text="", finish_reason=reason, logprobs=said)

    def placed(self, row: int, table: Tensor) -> Tensor:
        """`[T]`: a row of a table, behind its prompt."""
        return torch.cat([table.new_ones(2 + row // SIZE), table[row, : self.lengths[row]]])

    def samples(self, moved: bool = True) -> list[Sample]:
        """The responses with the step's advantages. `moved`: there were updates since they were drawn."""
        out = []
        for row, rollout in enumerate(self.rollouts):
            mask = torch.tensor(rollout.mask)
            previous, reference = self.placed(row, self.previous), self.placed(row, self.reference)[:, None]
            given = {"previous": previous if moved else None, "reference": reference}
            score = float(self.advantages[row])
            out.append(Sample(rollout, row // SIZE, mask, score * mask.double(), score=score, **given))
        return out


def ours(algorithm: Algorithm, step: Step, model: Model, samples: Sequence[Sample], budget: int = 10**9) -> Tensor:
    """The loss of a step, all its micro-batches together."""
    coefficients = RowState.of(algorithm).coefficients(Terms(MAX_TOKENS))
    rows, total = [step.rollouts.index(s.rollout) for s in samples], torch.zeros((), dtype=torch.float64)
    for batch in pack(samples, Packing(budget, dtype=torch.float64)):
        order = [rows[i] for i in batch.index.tolist()]
        scored = Scored(*(torch.cat([step.placed(i, t) for i in order]) for t in (model.logprobs, model.entropy)))
        total = total + batch_loss(algorithm, scored, batch, coefficients)[0]
    return total


class StandIn(SimpleNamespace):
    """What a trainer's methods read of `self`: the defaults of TRL's config, one process, and a model's words."""

    def __init__(self, config: type, **changes: Any):
        known = {f.name: f.default for f in dataclasses.fields(config)}
        assert changes.keys() <= known.keys(), changes.keys() - known.keys()
        args = SimpleNamespace(**{**known, **changes})
        accumulated = args.gradient_accumulation_steps
        args.steps_per_generation = accumulated
        one, self_metrics = (lambda x, *_, **__: x), defaultdict(lambda: defaultdict(list))
        accelerator = SimpleNamespace(
            num_processes=1, process_index=0, device="cpu", sync_gradients=True, gather=one, gather_for_metrics=one
        )
        accelerator.reduce, accelerator.backward = one, lambda loss: loss.backward()
        super().__init__(args=args, accelerator=accelerator, _metrics=self_metrics, model=Model())
        self.current_gradient_accumulation_steps, self.aux_loss_enabled = accumulated, False
        self.epsilon_low = getattr(args, "epsilon", None)
        self.epsilon_high = self.epsilon_low if getattr(args, "epsilon_high", None) is None else args.epsilon_high
        adaptive = getattr(args, "use_adaptive_entropy", False)
        self._entropy_bonus_enabled = bool(getattr(args, "entropy_coef", 0.0)) or adaptive
        self._last_world_entropy, self._entropy_window_stats = float("inf"), None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.args, name)

    def _get_per_token_logps_and_entropies(
        self, model: Model, ids: Tensor, _: Tensor, keep: int, *__: Any, **___: Any
    ) -> tuple[Tensor, Tensor, None]:
        return *model.said(ids[:, -keep:]), None

    def _forward(self, model: Model, prompts: Tensor, _: Tensor, ids: Tensor, *__: Any) -> Tensor:
        return model.said(ids)[0]


def inputs(step: Step, rows: slice = slice(None), moved: bool = True) -> dict[str, Tensor]:
    """What TRL's loss is handed of some rows of a step."""
    whole = {
        "prompt_ids": torch.zeros(len(step.ids), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(step.ids), 1, dtype=torch.long),
        "completion_ids": step.ids,
        "completion_mask": step.present.long(),
        "tool_mask": (step.mask | ~step.present).long(),
        "advantages": step.advantages,
        "ref_per_token_logps": step.reference,
        "old_per_token_logps": step.previous,
    }
    chosen = {name: tensor[rows] for name, tensor in whole.items() if moved or name != "old_per_token_logps"}
    return {**chosen, "num_items_in_batch": step.mask.sum()}


def theirs(trainer: type, stand_in: StandIn, step: Step, model: Model, moved: bool = True) -> Tensor:
    """The loss of a step from the trainer's own `_compute_loss`, its micro-batches added up."""
    size = len(step.ids) // stand_in.current_gradient_accumulation_steps
    parts = [inputs(step, slice(at, at + size), moved) for at in range(0, len(step.ids), size)]
    return sum(trainer._compute_loss(stand_in, model, part) for part in parts)


def leaf(step: Step) -> Model:
    return Model(logprobs=step.logprobs.clone().requires_grad_(), entropy=step.entropy.clone().requires_grad_())


def gradient(loss: Tensor, model: Model) -> Tensor:
    return torch.autograd.grad(loss, model.logprobs, retain_graph=True)[0]


def same(found: Tensor, expected: Tensor, model: Model, tolerance: float = 1e-12) -> None:
    """One loss and one gradient. fp64 on both sides."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert float(gradient(expected, model).abs().max()) > 1e-3
    torch.testing.assert_close(gradient(found, model), gradient(expected, model), atol=tolerance, rtol=0)
