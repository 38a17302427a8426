"""What is asked of a verifier: one call for a roll-out or for a whole group, with the columns it takes."""

from __future__ import annotations

import pickle
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from posttrain.errors import DataError
from posttrain.rewards.cache import content_key
from posttrain.rewards.verifier import TRL_HOOKS, VerifierSignature
from posttrain.rewards.worker import ignore
from posttrain.types import Prompt, Rollout

Groups = Sequence[tuple[Prompt, Sequence[Rollout]]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A recipe's reward as its calls need it."""

    signature: VerifierSignature
    identity: bytes | None = None
    """What its verdicts are kept under beside a completion and its columns; None where none is kept."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of one verifier: for one roll-out of a group, or for all of them."""

    reward: int
    group: int
    members: tuple[int, ...]
    payload: bytes
    label: str
    """Verifier and prompt, for messages."""
    count: int | None
    """How many values are due; None for the one value of an item verifier."""
    key: bytes | None = None
    """Of the cache; None where the verdict is not kept."""

    @property
    def place(self) -> tuple[int, int, tuple[int, ...]]:
        """What tells it from all others of a call."""
        return self.reward, self.group, self.members


def missing_column(signature: VerifierSignature, columns: Container[str]) -> str | None:
    """The first column that a verifier needs and is not there."""
    return next((column for column in signature.required if column not in columns), None)


def jobs_of(asked: Sequence[Asked], group: int, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Job]:
    """All calls for one group. Raises DataError for columns that cannot be sent to a process."""
    return [job for i, one in enumerate(asked) for job in _jobs(one, (i, group), prompt, rollouts)]


def _jobs(asked: Asked, place: tuple[int, int], prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Job]:
    (reward, group), signature = place, asked.signature
    label = f"{signature.name} on prompt {prompt.id!r}"
    members = tuple(range(len(rollouts)))
    if not members:
        return []
    if signature.kind == "group":
        payload = _packed(reward, (), _group_arguments(signature, prompt, rollouts), label)
        return [Job(reward, group, members, payload, label, len(members))]
    columns = _columns(signature, prompt)
    if signature.kind == "pair":
        payload = _packed(reward, (tuple(rollout.text for rollout in rollouts),), columns, label)
        return [Job(reward, group, members, payload, label, len(members))]
    keys = content_key(asked.identity, columns)
    return [
        Job(reward, group, (k,), _packed(reward, (rollout.text,), columns, label), label, None, keys(rollout.text))
        for k, rollout in enumerate(rollouts)
    ]


def _packed(reward: int, positional: tuple[Any, ...], named: dict[str, Any], label: str) -> bytes:
    try:
        return pickle.dumps((reward, positional, named))
    except Exception as error:
        raise DataError(f"{label}: its columns cannot be sent to a process: {error}") from None


def _columns(signature: VerifierSignature, prompt: Prompt) -> dict[str, Any]:
    """The columns an item verifier takes, without one that has the name of its first parameter."""
    wanted = prompt.columns if signature.takes_all else (*signature.required, *signature.optional)
    taken = signature.arguments
    return {name: prompt.columns[name] for name in wanted if name in prompt.columns and name not in taken}


def _group_arguments(signature: VerifierSignature, prompt: Prompt, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What TRL would pass: parallel lists, and completions as messages where the prompt is a conversation."""
    count = len(rollouts)
    chat, asked = _conversation(prompt), prompt.columns.get("prompt")
    said = [tuple(t for t, own in zip(r.tokens, r.mask, strict=True) if own) for r in rollouts]
    own: dict[str, Any] = {
        "prompts": [chat or (asked if isinstance(asked, str) else prompt.text)] * count,
        "completions": [[{"role": "assistant", "content": r.text}] if chat else r.text for r in rollouts],
        "completion_ids": [list(ids) for ids in said],
        "prompt_ids": [
            prompt.tokens if r.tokens == prompt.tokens + ids else None for r, ids in zip(rollouts, said, strict=True)
        ],
        "prompt_texts": [prompt.text] * count,
        "trainer_state": None,
    } | {name: ignore for name in TRL_HOOKS if name != "trainer_state"}
    reserved = {*own, "prompt", "completion"} - {*signature.required}
    wanted = prompt.columns if signature.takes_all else (*signature.required, *signature.optional)
    columns = {n: [prompt.columns[n]] * count for n in wanted if n in prompt.columns and n not in reserved}
    return columns | {name: own[name] for name in signature.arguments}


def _conversation(prompt: Prompt) -> list[Any] | None:
    """The messages a row asks with, where it has them: without the answer that a row of messages may end in."""
    asked, whole = prompt.columns.get("prompt"), prompt.columns.get("messages")
    if _is_chat(asked):
        return list(asked)
    if _is_chat(whole):
        return list(whole[:-1] if whole[-1]["role"] == "assistant" else whole)
    return None


def _is_chat(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and "role" in value[0]
