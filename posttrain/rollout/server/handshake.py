"""Meeting a server: whether it is the right one, can do what is asked of it, and what it can carry.

Everything that would make wrong numbers or fail in the middle of a run is refused here, naming the address, what was
found there and the way out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.errors import ModelError
from posttrain.models.checkpoint import expected_weights
from posttrain.rollout.server.bucket import Bucket
from posttrain.rollout.server.replica import GoneError, RefusedError, Replica

TRANSFER = (
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/weight_info",
    "/collective_rpc",
    "/update_weight_version",
)
GENERATE = "/inference/v1/generate"
START = "start it with `python -m posttrain.rollout.server MODEL`"


@dataclass(frozen=True)
class Wanted:
    """What the trainer's side needs: its model's names and shapes, its dtype, its longest sequence."""

    weights: Mapping[str, tuple[int, ...]]
    vocabulary: int
    dtype: str
    max_length: int


async def meet(replica: Replica, wanted: Wanted, seconds: float) -> None:
    """Raises ModelError for a server that cannot serve this run. Sets what it carries at one time."""
    if not (replica.address.local or replica.address.token):
        raise ModelError(
            f"servers: {replica.url} is asked without a token, so it would be open to everyone who reaches it; {START} "
            "--host HOST and give the token it prints"
        )
    try:
        await _routes(replica, seconds)
        found = await _described(replica, seconds)
        _compare(replica.url, found, wanted)
        replica.capacity = max(1, int(found.get("max_sequences") or 128))
        if replica.native:
            await _share(replica, wanted, seconds)
    except GoneError as gone:
        raise ModelError(
            f"servers: nothing answers at {replica.url} ({gone}); is the server running, and the address right?"
        ) from None


async def _routes(replica: Replica, seconds: float) -> None:
    status, text = await replica.status("GET", "/health", seconds=seconds)
    if status == 401:
        raise ModelError(f"servers: {replica.url} refuses the token; give the one its proxy was started with")
    if status == 503:
        raise ModelError(f"servers: the engine of {replica.url} is dead ({text[:200]}); restart that server")
    missing = []
    for path in (GENERATE, *TRANSFER):
        # A route that takes only POST answers GET with 405, one that is not there with 404.
        status, _ = await replica.status("GET", path, seconds=seconds)
        missing += [path] * (status == 404)
    if missing:
        raise ModelError(
            f"servers: {replica.url} has no {', '.join(missing)} (vLLM {await _version(replica, seconds)}); this needs "
            f'"vllm>=0.32" with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out; {START}'
        )


async def _version(replica: Replica, seconds: float) -> str:
    with contextlib.suppress(RefusedError, ValueError, KeyError, TypeError):
        return str((await replica.ask("GET", "/version", seconds=seconds))["version"])
    return "of unknown version"


async def _described(replica: Replica, seconds: float) -> dict[str, Any]:
    """What a server of ours says of itself; of another, what can be known."""
    try:
        answer = await replica.ask("POST", "/collective_rpc", {"method": "posttrain_describe"}, seconds)
        replica.native = True
        return dict(answer["results"][0])
    except RefusedError:
        replica.native = False
    if not replica.address.local:
        raise ModelError(
            f"servers: {replica.url} does not run posttrain's worker extension and is not on this machine, so weights "
            f"cannot be handed to it; {START}"
        )
    status, _ = await replica.status("POST", GENERATE, {}, seconds)
    if status == 403:
        raise ModelError(f"servers: {GENERATE} of {replica.url} is disabled; start it with --enable-scale-out")
    info = (await replica.ask("GET", "/server_info?config_format=json", seconds=seconds))["vllm_config"]
    model, scheduler = info["model_config"], info.get("scheduler_config", {})
    folder = Path(str(model.get("model")))
    return {
        "model": str(folder),
        "weights": expected_weights(folder) if (folder / "config.json").is_file() else None,
        "dtype": str(model.get("dtype", "")).removeprefix("torch."),
        "max_length": model.get("max_model_len"),
        "max_sequences": scheduler.get("max_num_seqs"),
        "logprobs": str(model.get("logprobs_mode", "")),
    }


def _compare(url: str, found: Mapping[str, Any], wanted: Wanted) -> None:
    if (theirs := found.get("posttrain")) not in (None, __version__):
        raise ModelError(
            f"servers: {url} runs posttrain {theirs}, this is {__version__}: weights might be read there otherwise "
            "than they are written here; install one version on both"
        )
    _same_model(url, found, wanted)
    if (dtype := found.get("dtype")) and dtype != wanted.dtype:
        raise ModelError(f"servers: {url} computes in {dtype}, hardware.dtype is {wanted.dtype}; make them the same")
    if (length := found.get("max_length")) and length < wanted.max_length:
        raise ModelError(
            f"servers: {url} takes {length} tokens, prompts and responses here have up to {wanted.max_length}; start "
            f"it with --max-model-len={wanted.max_length}, or lower max_tokens"
        )
    if (mode := found.get("logprobs")) and "processed_logprobs" not in mode.lower():
        raise ModelError(
            f"servers: {url} says log-probabilities before the temperature ({mode}); start it with "
            "--logprobs-mode=processed_logprobs"
        )


def _same_model(url: str, found: Mapping[str, Any], wanted: Wanted) -> None:
    wrong = []
    if found.get("vocabulary") not in (None, wanted.vocabulary):
        wrong.append(f"a vocabulary of {found['vocabulary']} tokens, not {wanted.vocabulary}")
    if (weights := found.get("weights")) is not None:
        theirs = {name: tuple(shape) for name, shape in weights.items()}
        differ = [n for n in sorted(theirs.keys() & wanted.weights.keys()) if theirs[n] != wanted.weights[n]]
        more, fewer = sorted(theirs.keys() - wanted.weights.keys()), sorted(wanted.weights.keys() - theirs.keys())
        wrong += [f"{n} of shape {theirs[n]}, not {wanted.weights[n]}" for n in differ[:1]]
        wrong += [f"{len(more)} tensors that this model has not ({more[0]}, ...)"] if more else []
        wrong += [f"none of {len(fewer)} tensors of this model ({fewer[0]}, ...)"] if fewer else []
    if wrong:
        raise ModelError(
            f"servers: {url} serves another model ({found.get('model')}): {'; '.join(wrong)}; start it with the "
            "recipe's model"
        )


async def _share(replica: Replica, wanted: Wanted, seconds: float) -> None:
    """Agree on what a complete set is, and prove that buckets are read there as they were written here."""
    import torch

    expected = {name: list(shape) for name, shape in wanted.weights.items()}

    async def begin(index: dict[str, Any]) -> None:
        body = {"init_info": {"expected": expected, "probe": index}}
        await replica.ask("POST", "/init_weight_transfer_engine", body, seconds)

    probe, why = Bucket(4096), []
    try:
        probe.put("probe", torch.tensor([1, 2, 3], dtype=torch.uint8))
        # A server on this machine may still live in a container with shared memory of its own.
        for shares in (True, False) if replica.address.local else (False,):
            replica.shares = shares
            try:
                return await replica.lend(probe, begin)
            except RefusedError as refused:
                why.append(str(refused))
    finally:
        probe.close()
    raise ModelError(
        f"servers: {replica.url} cannot take weights: {'; '.join(why)}. A server must see this machine's /dev/shm, or "
        f"be reached through the proxy that comes with it: {START}"
    )
