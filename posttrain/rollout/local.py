"""The Sampler on plain transformers: for machines without vLLM, and as the slow reference vLLM is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from posttrain.errors import TrainingError
from posttrain.rollout import Drawn, Request
from posttrain.rollout.intake import Intake, refusal
from posttrain.types import Rollout, Sampling


class LocalSampler:
    """Implements `Sampler` over a copy of the model of its own."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], batch_size: int = 64
    ) -> None:
        self.model, self.tokenizer, self.stops, self.batch_size = model.eval(), tokenizer, list(stops), batch_size
        self.version: int | None = None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        return self.stream(requests, sampling, lambda index, rollout: None)

    def stream(self, requests: Sequence[Request], sampling: Sampling, drawn: Drawn) -> list[Rollout]:
        """As `Streaming` says it: a batch's responses are there together."""
        refusal(self.version)
        out: list[Rollout] = []
        for start in range(0, len(requests), self.batch_size):
            out += self._batch(requests[start : start + self.batch_size], sampling)
            for index in range(start, len(out)):
                drawn(index, out[index])
        return out

    @torch.no_grad()
    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        width = max(len(r.prompt.tokens) for r in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long, device=self.model.device)
        attention = torch.zeros_like(ids)
        for i, r in enumerate(requests):
            ids[i, width - len(r.prompt.tokens) :] = torch.tensor(r.prompt.tokens)
            attention[i, width - len(r.prompt.tokens) :] = 1
        draw = _Draw([r.seed for r in requests], sampling)
        filler = self.stops[0] if self.stops else 0
        generation = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=self.stops or None,
            pad_token_id=filler,
            bos_token_id=None,
        )
        # The model's own defaults (penalties, top-k) would be merged into this call otherwise.
        self.model.generation_config = GenerationConfig(pad_token_id=filler)
        said = self.model.generate(
            ids, attention_mask=attention, generation_config=generation, logits_processor=LogitsProcessorList([draw])
        )[:, width:].tolist()
        logprobs = torch.stack(draw.logprobs, dim=1).tolist()
        return [self._rollout(r, said[i], logprobs[i], sampling) for i, r in enumerate(requests)]

    def _rollout(self, request: Request, ids: list[int], logprobs: list[float], sampling: Sampling) -> Rollout:
        assert self.version is not None
        end = next((i + 1 for i, token in enumerate(ids) if token in self.stops), None)
        ids = ids[: len(ids) if end is None else end]
        if not all(value > float("-inf") for value in logprobs[: len(ids)]):
            raise TrainingError(f"the engine gave non-finite log-probabilities for {request.prompt.id}")
        before = len(request.prompt.tokens)
        return Rollout(
            tokens=request.prompt.tokens + tuple(ids),
            mask=(False,) * before + (True,) * len(ids),
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason="length" if end is None else "stop",
            logprobs=(0.0,) * before + tuple(logprobs[: len(ids)]),
            versions=(-1,) * before + (self.version,) * len(ids),
            seed=request.seed,
            sampling=sampling,
        )

    @torch.no_grad()
    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.version = None
        own = self.model.state_dict()
        intake = Intake({name: tuple(tensor.shape) for name, tensor in own.items()})
        for name, tensor in intake(weights):
            own[name].copy_(tensor)
        self.version = version

    def sleep(self) -> None:
        """Keeps its copy."""

    def wake(self) -> None:
        """Always ready."""


class _Draw(LogitsProcessor):
    """Draws each row's token with the row's own generator and leaves it as the only choice.

    Adding Gumbel noise and taking the largest draws from the softmax, so that generation can stay greedy. Keeps the
    log-probability, under the tempered and filtered distribution, of what was drawn.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.sampling = sampling
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.sampling.temperature == 0:
            table = wide.log_softmax(-1)
            chosen = table.argmax(-1)
        else:
            table = _filtered((wide / self.sampling.temperature).log_softmax(-1), self.sampling)
            uniform = torch.stack([torch.rand(table.shape[1], generator=g, dtype=table.dtype) for g in self.generators])
            chosen = (table - (-uniform.clamp_min(1e-20).log()).log().to(table.device)).argmax(-1)
        self.logprobs.append(table.gather(1, chosen[:, None])[:, 0].cpu())
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)


def _filtered(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """`[B, V]` log-probabilities renormalised over what top-k, top-p and min-p keep."""
    if sampling.top_k == 0 and sampling.top_p == 1.0 and sampling.min_p == 0.0:
        return logprobs
    ordered, order = logprobs.sort(-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    keep &= ordered.exp().cumsum(-1) - ordered.exp() < sampling.top_p
    keep &= ordered >= ordered[:, :1] + torch.tensor(max(sampling.min_p, 1e-38)).log()
    kept = torch.zeros_like(keep).scatter_(1, order, keep)
    return logprobs.masked_fill(~kept, float("-inf")).log_softmax(-1)
