"""A policy that was trained on preferences, and its reference, as the reward model they are together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain.errors import PosttrainError
from posttrain.models.scoring import by_length, check_readable, padded
from posttrain.types import Verdict
from posttrain_reward_models.asked import found, language_model
from posttrain_reward_models.classifier import check_dtype
from posttrain_reward_models.reading import Read, Reader, Response, responses

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = 2048
CHUNK = 256
"""Tokens whose log-probabilities over the whole vocabulary exist at one time."""


@dataclass(eq=False)
class Implicit:
    """beta * sum over the response of log pi - log reference: the reward whose best policy is pi (2305.18290).

    It has no card: a policy's accuracy as a judge is not measured when it is trained. Raises ValueError or ModelError
    where one of the two is not there.
    """

    policy: str
    """A run's folder (its newest checkpoint), or whatever `model.path` may be."""
    reference: str
    beta: float = 0.1
    """The `contrast_beta` the policy was trained with."""
    per_token: bool = False
    """Give each token its own term, which is Q*(state, token) - V*(state) (2404.12358), rather than all to the last."""
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "float32"
    """Of compute: what is read is a small difference of large numbers."""

    memory_limit: ClassVar[int | None] = None
    alone = True
    _models: list[Any] = field(init=False, repr=False, default_factory=list)
    _reader: Reader = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if not self.beta > 0:
            raise ValueError(f"beta: {self.beta:g} must be above 0")
        for key in ("policy", "reference"):
            found(getattr(self, key), key)

    def prepare(self) -> None:
        """Load both models. Raises ValueError where their tokenizers differ."""
        tokenizers = []
        for key in ("policy", "reference"):
            model, tokenizer = language_model(getattr(self, key), self.dtype, self.device, key)
            self._models.append(model)
            tokenizers.append(tokenizer)
        if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
            raise ValueError(
                f"reference: {self.reference!r} has another vocabulary than {self.policy!r}, so the two do not speak "
                "of the same tokens; give the model that the policy was trained from"
            )
        self._reader = Reader(tokenizers[0], repr(self.policy))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_ids: Sequence[Sequence[int] | None],
        prompt_texts: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """One verdict per response; an error where its words cannot be put into the models' tokens."""
        if not self._models:
            self.prepare()
        asked = responses(prompts, completions, completion_ids, prompt_ids, prompt_texts)
        reads = [self._read(response) for response in asked]
        readable = [read for read in reads if isinstance(read, Read)]
        said, expected = (token_logprobs(model, readable) for model in self._models)
        terms = iter([self.beta * (a - b) for a, b in zip(said, expected, strict=True)])
        return [
            self._verdict(next(terms).tolist()) if isinstance(read, Read) else Verdict(None, "error", reason=read)
            for read in reads
        ]

    def _read(self, response: Response) -> Read | str:
        try:
            read = self._reader.sampled(response) if self.per_token else self._reader.read(response)
            if not read.start:
                raise ValueError("the prompt has no token after which the response's first one could be expected")
            for model in self._models:
                check_readable(model, read.ids)
        except (ValueError, PosttrainError) as error:
            return str(error)
        return read

    def _verdict(self, terms: list[float]) -> Verdict:
        return Verdict(math.fsum(terms), steps=tuple(enumerate(terms)) if self.per_token else ())


def token_logprobs(model: Any, reads: Sequence[Read]) -> list[Tensor]:
    """`[R]` per response: the log-probability of each of its tokens, in fp64, from a log-softmax in fp32 at least."""
    import torch

    out: list[Tensor] = [torch.zeros(0)] * len(reads)
    for rows in by_length([len(read.ids) for read in reads], BATCH_TOKENS):
        ids, mask = padded([reads[i].ids for i in rows])
        with torch.no_grad():
            logits = model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        for row, i in enumerate(rows):
            start, end = reads[i].start, len(reads[i].ids)
            parts = [torch.zeros(0, dtype=torch.float64)]
            for at in range(start, end, CHUNK):
                stop = min(at + CHUNK, end)
                # What the state after token t - 1 expects of token t.
                table = logits[row, at - 1 : stop - 1]
                table = table.to(torch.promote_types(table.dtype, torch.float32)).log_softmax(-1).cpu()
                parts.append(table.gather(1, ids[row, at:stop, None])[:, 0].double())
            out[i] = torch.cat(parts)
    return out
