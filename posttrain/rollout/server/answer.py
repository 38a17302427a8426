"""One request as the token-in, token-out route takes it, and its answer as a Rollout: ids in, ids out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.errors import ParityError, PosttrainError, SyncError, TrainingError
from posttrain.rollout import Request
from posttrain.types import Rollout, Sampling

NOTHING = -9999.0
"""What the server says for a log-probability that is not finite."""


def body(request: Request, sampling: Sampling, stops: Sequence[int], weights: str) -> dict[str, Any]:
    """The JSON of a request. `weights` names those that answer, as no other run names any."""
    return {
        "token_ids": list(request.prompt.tokens),
        # The salt keeps cached prefixes of other weights from ever being hit: no cache needs to be reset. The server
        # takes no slashes in it.
        "cache_salt": hashlib.blake2b(f"{weights}/{request.purpose}".encode(), digest_size=16).hexdigest(),
        "return_token_ids": True,
        "sampling_params": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed,
            "stop_token_ids": list(stops),
            "logprobs": 0,
            "detokenize": False,
        },
    }


class Reader:
    """Turns answers into Rollouts of one weight version."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, version: int) -> None:
        self.tokenizer, self.sampling, self.version = tokenizer, sampling, version

    def rollout(self, request: Request, answer: Mapping[str, Any]) -> Rollout:
        """Raises ParityError for other prompt ids, SyncError for other weights, TrainingError for broken numbers."""
        choice, asked = answer["choices"][0], request.prompt.tokens
        if tuple(answer["prompt_token_ids"]) != asked:
            raise ParityError(
                f"template: the engine was asked about {len(asked)} prompt tokens of {request.prompt.id} but saw "
                f"{len(answer['prompt_token_ids'])} others; ids must pass unchanged"
            )
        ids, content = tuple(choice["token_ids"]), choice["logprobs"]["content"]
        if [entry["token_id"] for entry in content] != list(ids):
            raise PosttrainError(f"the engine's log-probabilities of {request.prompt.id} are of other tokens")
        logprobs = tuple(entry["logprob"] for entry in content)
        if not all(NOTHING < value <= 1e-3 for value in logprobs):
            raise TrainingError(f"the engine gave non-finite log-probabilities for {request.prompt.id}")
        if choice["finish_reason"] not in ("stop", "length"):
            raise PosttrainError(f"the engine ended a response with reason {choice['finish_reason']!r}")
        before = len(asked)
        return Rollout(
            tokens=asked + ids,
            mask=(False,) * before + (True,) * len(ids),
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason=choice["finish_reason"],
            logprobs=(0.0,) * before + logprobs,
            versions=(-1,) * before + self._versions(choice, len(ids)),
            seed=request.seed,
            sampling=self.sampling,
        )

    def _versions(self, choice: Mapping[str, Any], count: int) -> tuple[int, ...]:
        """The weight version of each token, from the engine's own spans where it reports them."""
        spans = choice.get("weight_versions")
        if spans is None:
            return (self.version,) * count
        said = [span["version"] for span in spans for _ in range(span["start"], span["end"])]
        if len(said) != count:
            raise PosttrainError(f"the engine's weight-version spans cover {len(said)} of {count} tokens")
        if others := sorted({v for v in said if v != str(self.version)}):
            raise SyncError(
                f"the engine answered with weights {', '.join(others)}, but was given {self.version}; is another run "
                "publishing to the same server?"
            )
        return (self.version,) * count
