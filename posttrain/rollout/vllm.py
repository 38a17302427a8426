"""The Sampler on vLLM, in the trainer's own process. Ids in, ids out; nothing is decoded and encoded again."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.errors import ModelError, ParityError, PosttrainError, SyncError, TrainingError
from posttrain.models.adapters import Form
from posttrain.models.checkpoint import expected_weights, stop_tokens
from posttrain.recipe import Hardware
from posttrain.rollout import Drawn, Parts, Piece, Request
from posttrain.rollout.adapters import Adapters, settings
from posttrain.rollout.intake import Intake, refusal
from posttrain.types import FinishReason, Rollout, Sampling

CPU_BLOCK = 32
"""Tokens per cache block on a CPU. The engine's own 128 is longer than most prompts, so that none would be shared."""

PROTOCOL = ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")
"""The four phases in which an engine takes new weights."""

BASE = -(2**31)
"""What an engine calls its weights between a base and its first adapter: no policy has this version."""


@dataclass(frozen=True)
class EngineOptions:
    """What the engine is started with beside the model."""

    device: str
    dtype: str
    max_length: int
    hardware: Hardware
    trust_remote_code: bool = False
    stops: tuple[int, ...] = ()
    """Ids that end a turn, beside the tokenizer's own and those of the generation defaults."""
    ranks: int = 1
    """Processes of the run: each has an engine, or a part of one."""
    adapter: Form | str = "no adapter is served beside the weights"
    """What this vLLM is to serve beside the weights, if it can; or why nothing is."""


class VllmSampler:
    """Implements `Sampler`. The engine starts without a version: it refuses to generate until weights were synced."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, options: EngineOptions) -> None:
        self.tokenizer = tokenizer
        self.version: int | None = None
        self.sleeps, self.asleep = options.device != "cpu", False
        self.expected = expected_weights(folder, options.trust_remote_code)
        self.stops = tuple(sorted({*stop_tokens(folder, tokenizer), *options.stops}))
        self.based, self.adapters = False, None
        self.unadapted: str | None = options.adapter if isinstance(options.adapter, str) else None
        extra: dict[str, Any] = {}
        if not isinstance(options.adapter, str):
            try:
                extra = settings(folder, options.adapter, options.trust_remote_code)
            except ModelError as error:
                self.unadapted = str(error)
        try:
            self.engine = _start(folder, options, extra)
        except ValueError as error:
            if not extra:
                raise
            # Whether every module can be wrapped is only seen with the model in memory.
            raise ModelError(
                f"hardware.sampler.adapters: the engine does not start with {extra}: {error}; use merged"
            ) from error
        self.engine.init_weight_transfer_engine({"init_info": {}})
        (own_head,) = set(self.engine.apply_model(_has_own_head))
        self.parts = Parts(options.hardware.sampler.tensor_parallel, own_head)
        if not isinstance(options.adapter, str) and self.unadapted is None:
            try:
                self.adapters = Adapters(self.engine, options.adapter)
            except ModelError as error:
                self.unadapted = str(error)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        return self.stream(requests, sampling, lambda index, rollout: None)

    def stream(self, requests: Sequence[Request], sampling: Sampling, drawn: Drawn) -> list[Rollout]:
        """As `Streaming` says it."""
        refusal(self.version)
        from vllm import SamplingParams

        # The salt keeps cached prefixes of older weights from ever being hit: no cache needs to be reset.
        prompts = [
            {"prompt_token_ids": list(r.prompt.tokens), "cache_salt": f"{self.version}/{r.purpose}"} for r in requests
        ]
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_tokens=sampling.max_tokens,
                seed=r.seed,
                stop_token_ids=list(self.stops),
                logprobs=0,
                detokenize=False,
            )
            for r in requests
        ]
        adapter = self.adapters.request if self.adapters is not None else None
        names = self.engine.enqueue(prompts, parameters, adapter, use_tqdm=False)
        # An output has the name without what makes it unique.
        places = {name.partition("-")[0]: index for index, name in enumerate(names)}
        found: dict[int, Rollout] = {}
        try:
            while self.engine.llm_engine.has_unfinished_requests():
                for output in self.engine.llm_engine.step():
                    if output.finished:
                        index = places[output.request_id]
                        found[index] = self._rollout(requests[index], output, sampling)
                        drawn(index, found[index])
        except BaseException:
            with suppress(Exception):
                # Or they would be drawn with the next ones.
                self.engine.llm_engine.abort_request(names, internal=True)
            raise
        return [found[index] for index in range(len(requests))]

    def _rollout(self, request: Request, output: Any, sampling: Sampling) -> Rollout:
        prompt, said = tuple(output.prompt_token_ids), output.outputs[0]
        if prompt != request.prompt.tokens:
            raise ParityError(
                f"template: the engine was asked about {len(request.prompt.tokens)} prompt tokens of "
                f"{request.prompt.id} but saw {len(prompt)} others; ids must pass unchanged"
            )
        ids = tuple(said.token_ids)
        logprobs = tuple(entry[token].logprob for token, entry in zip(ids, said.logprobs, strict=True))
        if any(value != value or value == float("-inf") for value in logprobs):
            raise TrainingError(f"the engine gave non-finite log-probabilities for {request.prompt.id}")
        before = len(prompt)
        return Rollout(
            tokens=prompt + ids,
            mask=(False,) * before + (True,) * len(ids),
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason=_finish(said.finish_reason),
            logprobs=(0.0,) * before + logprobs,
            versions=(-1,) * before + self._versions(said, len(ids)),
            seed=request.seed,
            sampling=sampling,
        )

    def _versions(self, said: Any, count: int) -> tuple[int, ...]:
        """The weight version of each token, from the engine's own spans where it reports them."""
        assert self.version is not None
        spans = getattr(said, "weight_versions", None)
        if spans is None:
            return (self.version,) * count
        versions = [int(span.version) for span in spans for _ in range(span.start, span.end)]
        if len(versions) != count:
            raise PosttrainError(f"the engine's weight-version spans cover {len(versions)} of {count} tokens")
        return tuple(versions)

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self._forget()
        intake = Intake(self.expected)
        self.engine.start_weight_update()
        self.engine.update_weights({"update_info": {"weights": intake(weights)}})
        intake.require_complete()
        self.engine.finish_weight_update(weight_version=str(version))
        self.version = version

    def fill(self, pieces: Iterator[Piece], version: int) -> None:
        """As `Fillable` says it."""
        self._forget()
        self.engine.start_weight_update()
        self.engine.update_weights({"update_info": {"pieces": pieces}})
        self.engine.finish_weight_update(weight_version=str(version))
        self.version = version

    def _forget(self) -> None:
        self.version, self.based = None, False
        if self.adapters is not None:
            self.adapters.forget()

    def hold(self, base: Iterator[tuple[str, Tensor]]) -> None:
        """As `Adaptable` says it."""
        self.load(base, BASE)
        self.version, self.based = None, True

    def attach(self, adapter: Iterator[tuple[str, Tensor]], version: int) -> None:
        """As `Adaptable` says it."""
        self.version = None
        if self.adapters is None or not self.based:
            raise SyncError(self.unadapted or "the engine holds no base for an adapter; sync its weights first")
        self.adapters.attach(adapter, version)
        self.engine.llm_engine.set_weight_version(str(version))
        self.version = version

    def sleep(self) -> None:
        """Free weights and cache on a GPU; a CPU engine has nothing to give back. A base that stays is moved to the
        CPU's memory.
        """
        if self.sleeps and not self.asleep:
            self.version, self.asleep = None, True
            self.engine.sleep(level=1 if self.based else 2)

    def wake(self) -> None:
        if self.asleep:
            self.engine.wake_up()
            self.asleep = False


def _has_own_head(model: Any) -> bool:
    # A tied head is named once, as the embedding; vLLM unties it where the checkpoint's own head is another.
    return any(name == "lm_head.weight" for name, _ in model.named_parameters())


def _finish(reason: str | None) -> FinishReason:
    if reason == "length":
        return "length"
    if reason == "stop":
        return "stop"
    raise PosttrainError(f"the engine ended a response with reason {reason!r}")


def _start(folder: Path, options: EngineOptions, adapters: dict[str, Any]) -> Any:
    """An in-process vLLM engine with neutral sampling defaults, whatever the model's own generation config says."""
    # Read by vLLM when it is imported. One process: deterministic scheduling, and tensors pass without a copy.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if options.device == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    try:
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        from posttrain.rollout.weight_transfer import register
    except ImportError as error:
        raise ModelError(
            f'rollout.engine: vllm cannot be imported ({error}); pip install "posttrain[vllm]" on a GPU machine, '
            "run `make install` on a CPU, or set rollout.engine: transformers"
        ) from None
    lacking = [name for name in PROTOCOL if not hasattr(LLM, name)]
    if lacking:
        raise ModelError(
            f"rollout.engine: this vLLM has no {', '.join(lacking)}, so weights cannot be published by its native "
            'protocol; pip install "vllm>=0.32"'
        )

    # A start collects garbage five times over, each time among all that was imported: from here on, only what is new.
    gc.collect()
    gc.freeze()
    sampler = options.hardware.sampler
    return LLM(
        str(folder),
        dtype=options.dtype,
        max_model_len=options.max_length,
        max_num_seqs=sampler.max_sequences,
        tensor_parallel_size=sampler.tensor_parallel,
        # Engines that span ranks are those ranks: the launcher has started the workers already.
        distributed_executor_backend="uni" if sampler.tensor_parallel == 1 else "external_launcher",
        worker_cls="posttrain.rollout.cpu_worker.Worker"
        if options.device == "cpu" and sampler.tensor_parallel > 1
        else "auto",
        enforce_eager=not sampler.compile,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        seed=0,
        weight_transfer_config=WeightTransferConfig(backend=register()),
        trust_remote_code=options.trust_remote_code,
        # Ids in, ids out: it needs no tokenizer, but where a model of several parts has a processor that wants one.
        skip_tokenizer_init="text_config" not in json.loads((folder / "config.json").read_text()),
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **_cached(options),
        **adapters,
    )


def _cached(options: EngineOptions) -> dict[str, Any]:
    """Settings of the key-value cache, and of what is batched."""
    memory = options.hardware.sampler.memory
    if options.device != "cpu":
        return {"gpu_memory_utilization": memory, "enable_sleep_mode": True}
    return {
        "kv_cache_memory_bytes": int(memory * 2**30),
        "block_size": CPU_BLOCK,
        # A partly prefilled, seeded request rewinds its generator by an offset, which CPU generators lack.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(options.max_length, 4096),
    }
