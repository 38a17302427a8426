"""Which of the engine's parameters a tensor lands in, for a degree of tensor parallelism, or why it cannot be cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from posttrain.errors import ModelError, RecipeError
from posttrain.hybrid.plan.boxes import Shape
from posttrain.hybrid.plan.cuts import Cut, Part
from posttrain.hybrid.plan.families import AN_EXPERT_A_RANK, VOCABULARY_PADDING, Architecture


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the checkpoint: its name there, its whole shape, bytes of an element as it is sent."""

    name: str
    shape: Shape
    itemsize: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True, slots=True)
class Landing:
    """A tensor's place in the engine: the parameter, the cut, and its index in the parameter's leading dimension where
    that counts experts.
    """

    parameter: str
    cut: Cut
    slot: int | None = None
    slots: int = 0

    def local(self, shape: Shape) -> Shape:
        """One rank's shape of the parameter."""
        cut = self.cut.local(shape)
        return cut if self.slot is None else (self.slots, *cut)


class _MisfitError(Exception):
    """A size that the degree does not fit."""


def land(tensor: Tensor, architecture: Architecture, degree: int) -> Landing:
    """The tensor's place under tensor parallelism of `degree`. Raises ModelError for a tensor without a rule or of a
    shape that the config does not have, _MisfitError where the degree does not divide what it must.
    """
    rule, match = architecture.rule(tensor.name)
    if architecture.family in AN_EXPERT_A_RANK and architecture.experts < degree:
        raise _MisfitError(f"num_experts is {architecture.experts}, fewer than the ranks")
    cut = _cut(rule.kind.format(*match.groups()), tensor, architecture, degree)
    parameter = rule.parameter.format(*match.groups())
    expert = match.groupdict().get("expert")
    if expert is None:
        return Landing(parameter, cut)
    if int(expert) >= architecture.experts:
        raise ModelError(f"{tensor.name}: expert {expert} of a model whose config says {architecture.experts} experts")
    return Landing(parameter, cut, int(expert), architecture.experts)


def _cut(kind: str, tensor: Tensor, architecture: Architecture, degree: int) -> Cut:
    shape = tensor.shape
    if not shape:
        raise ModelError(f"{tensor.name}: a tensor without dimensions cannot be cut as {kind}")
    last = len(shape) - 1
    # Stacked experts have one more dimension in front.
    rows = 1 if len(shape) == 3 else 0
    match kind:
        case "whole":
            return Cut(0, (Part(shape[0], shape[0], degree),))
        case "input":
            return Cut(last, (_even(shape[last], degree, f"the input of {_short(tensor.name)}"),))
        case "gate" | "up":
            part = _even(shape[rows], degree, f"the intermediate size of {_short(tensor.name)}")
            return Cut(rows, (part, part), 0 if kind == "gate" else 1)
        case "gate_up":
            size = _share(tensor, shape[rows], 2, "halves")
            part = _even(size, degree, f"the intermediate size of {_short(tensor.name)}")
            return Cut(rows, (part, part), 0, 2)
        case "vocabulary":
            return Cut(0, (_vocabulary(tensor, architecture, degree),))
        case _:
            return _attention(kind, tensor, architecture, degree)


def _attention(kind: str, tensor: Tensor, architecture: Architecture, degree: int) -> Cut:
    """Queries, keys and values of a rank stacked; keys and values are copied where their heads are fewer than ranks."""
    heads, kv = architecture.heads, architecture.kv_heads
    count = {"q": heads, "k": kv, "v": kv, "qkv": heads + 2 * kv}[kind]
    width = _share(tensor, tensor.shape[0], count, "heads")
    queries = _even(heads, degree, "num_attention_heads")
    if max(kv, degree) % min(kv, degree):
        raise _MisfitError(f"num_key_value_heads is {kv}, neither a multiple nor a divisor of it")
    copies = max(1, degree // kv)
    keys = Part(kv * width, kv * width * copies // degree, copies)
    parts = (Part(heads * width, queries.shard * width), keys, keys)
    return Cut(0, parts, {"q": 0, "k": 1, "v": 2, "qkv": 0}[kind], 3 if kind == "qkv" else 1)


def _vocabulary(tensor: Tensor, architecture: Architecture, degree: int) -> Part:
    size = tensor.shape[0]
    if size != architecture.vocabulary:
        raise ModelError(
            f"{tensor.name}: {size} rows, but vocab_size of the config is {architecture.vocabulary}; the engine takes "
            "only a checkpoint in which they agree"
        )
    padded = -(-size // VOCABULARY_PADDING) * VOCABULARY_PADDING
    shard = _even(padded, degree, f"vocab_size {size}, padded to a multiple of {VOCABULARY_PADDING},").shard
    return Part(size, shard)


def _even(size: int, degree: int, what: str) -> Part:
    if size % degree:
        raise _MisfitError(f"{what} is {size}")
    return Part(size, size // degree)


def _share(tensor: Tensor, size: int, count: int, what: str) -> int:
    if size % count:
        raise ModelError(f"{tensor.name}: its {size} rows cannot be {count} {what} of equal size")
    return size // count


def _short(name: str) -> str:
    words = [part for part in name.split(".") if part not in ("weight", "bias") and not part.isdecimal()]
    return ".".join(words[-2:])


def land_all(tensors: Iterable[Tensor], architecture: Architecture, degree: int) -> list[Landing]:
    """Every tensor's place. Raises RecipeError with each size that `degree` does not fit, and the degrees that fit."""
    tensors = list(tensors)
    found, misfits = [], set()
    for tensor in tensors:
        try:
            found.append(land(tensor, architecture, degree))
        except _MisfitError as misfit:
            misfits.add(str(misfit))
    if not misfits:
        return found
    fitting = ", ".join(map(str, degrees(tensors, architecture)))
    raise RecipeError(
        [
            f"tensor_parallel: {degree} does not divide this {architecture.family} model "
            f"({'; '.join(sorted(misfits))}); what does: {fitting}"
        ],
        "generation layout",
    )


def degrees(tensors: Iterable[Tensor], architecture: Architecture) -> list[int]:
    """Every degree of tensor parallelism that fits the model."""
    kinds = {(architecture.rule(t.name)[0], t.shape): t for t in tensors}
    return [n for n in range(1, architecture.heads + 1) if _fits(kinds.values(), architecture, n)]


def _fits(tensors: Iterable[Tensor], architecture: Architecture, degree: int) -> bool:
    try:
        for tensor in tensors:
            land(tensor, architecture, degree)
    except _MisfitError:
        return False
    return True
