"""Reward models that were measured before they grade: the card beside a model, and the proof that it is still it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.models.location import locate
from posttrain.models.scoring import load_reward_model, newest_checkpoint, outputs_of, score_tokens
from posttrain_reward_models.reading import Reader

if TYPE_CHECKING:
    from torch import Tensor

CARD = "card.json"
STAGE = "stage:"
"""How a pipeline names what an earlier stage is going to make."""

TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""How far a score may lie from the one on the card, as a share of the largest one there. Scores of the same weights
differ by rounding, by which kernels ran and by what was read together: in bf16 by up to 3 % of the largest for a model
of 30 layers, in fp32 by parts in a million, or in a thousand where a GPU multiplies in TF32. Those of other weights
differ by about their spread.
"""


@dataclass(frozen=True)
class Demand:
    """What a recipe asks of a reward model before it may grade."""

    minimum_accuracy: float = 0.5
    """The lower end of the 95 % interval of its accuracy on held-out pairs must lie above this; 0 asks nothing."""
    allow_unmeasured: bool = False
    """Serve a model without a card, too."""


@dataclass(frozen=True)
class Measured:
    """A reward model that is known to be good enough, not loaded yet."""

    path: str
    folder: Path | None
    """None where it is not on this machine: a hub id, or a stage's model that is still to be made."""
    card: Mapping[str, Any] | None


@dataclass(frozen=True)
class Served:
    """A loaded model with its tokenizer."""

    model: Any
    reader: Reader


def measured(path: str, demand: Demand, key: str = "path") -> Measured:
    """Find a model and hold its card against what is asked. Reads two small files.

    Raises ValueError or ModelError where there is no model, no card, or one that is not good enough.
    """
    if path.startswith(STAGE):
        return Measured(path, None, None)
    expanded = Path(path).expanduser()
    folder = newest_checkpoint(path, key) if expanded.exists() or locate(path, key).kind != "hub" else None
    if folder is not None:
        outputs_of(folder, key)
    card = None if folder is None else _card(folder, path, key)
    if card is None or card.get("accuracy_low") is None:
        if not demand.allow_unmeasured:
            lack = "has no card.json" if card is None else "has a card without an accuracy on pairs"
            if folder is None:
                lack = "is no folder here, and a model of the hub has no card.json"
            raise ValueError(
                f"{key}: {path!r} {lack}, so nobody knows how often it is right; measure it on held-out pairs as the "
                "run that trains it does (data.eval), or set allow_unmeasured: true"
            )
    elif demand.minimum_accuracy > 0 and not float(card["accuracy_low"]) > demand.minimum_accuracy:
        raise ValueError(
            f"{key}: {path!r} is right on {float(card['accuracy']):.1%} of {card.get('pairs', '?')} held-out pairs (95 "
            f"% interval {float(card['accuracy_low']):.1%} to {float(card['accuracy_high']):.1%}), and the lower end "
            f"is not above minimum_accuracy: {demand.minimum_accuracy:g}; train it better, measure it on more pairs, "
            "or set minimum_accuracy: 0"
        )
    return Measured(path, folder, card)


def _card(folder: Path, path: str, key: str) -> dict[str, Any] | None:
    """The card of a model folder: in it, beside it in its checkpoint, or in the run that wrote that."""
    places = [folder := folder.resolve()]
    if folder.parent.parent.name == "checkpoints":
        places += [folder.parent, folder.parent.parent.parent]
    file = next((place / CARD for place in places if (place / CARD).is_file()), None)
    if file is None:
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        for name in ("accuracy", "accuracy_low", "accuracy_high"):
            if card.get(name) is not None:
                float(card[name])
        for entry in card.get("golden", ()):
            _golden(entry)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{key}: the card of {path!r}, {file.name}, is damaged ({error!r}); measure it again"
        ) from None
    return card


def serve(found: Measured, dtype: str, device: str, key: str = "path") -> Served:
    """Load a model and check that it says of the card's sequences what it said when it was measured.

    `dtype` is a name of torch's, `device` one of torch's or auto. Raises ValueError where it says something else.
    """
    import torch

    from posttrain.models.checkpoint import load_tokenizer
    from posttrain.models.gguf import checkpoint_folder

    if found.path.startswith(STAGE):
        raise ValueError(f"{key}: {found.path!r} is made by a stage of a pipeline; train the pipeline's own file")
    folder = found.folder or checkpoint_folder(found.path, key=key)
    model = load_reward_model(folder, getattr(torch, dtype), place(device), key)
    if found.card is not None:
        _prove(found, model, dtype, key)
    return Served(model, Reader(load_tokenizer(folder), repr(found.path)))


def place(device: str) -> str:
    """The device that `auto` means here."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def read_members(model: Any, outputs: Tensor) -> Tensor:
    """`[..., B]` outputs of a head to `[..., M]` scores: one per output, or the expected value where the configuration
    says that they are bins of a histogram from `value_low` to `value_high`.
    """
    import torch

    low, high = getattr(model.config, "value_low", None), getattr(model.config, "value_high", None)
    if low is None or high is None:
        return outputs
    half = (high - low) / outputs.shape[-1] / 2
    centres = torch.linspace(low + half, high - half, outputs.shape[-1], dtype=outputs.dtype)
    return (outputs.softmax(-1) * centres).sum(-1, keepdim=True)


def _golden(entry: Mapping[str, Any]) -> tuple[tuple[int, ...], list[float]]:
    """Token ids, and what was said after them."""
    said = entry["scores"] if "scores" in entry else entry["score"]
    scores = [float(score) for score in (said if isinstance(said, list) else [said])]
    return tuple(int(token) for token in entry["tokens"]), scores


def _prove(found: Measured, model: Any, dtype: str, key: str) -> None:
    """The golden scores again, head by head."""
    assert found.card is not None
    golden = [_golden(entry) for entry in found.card.get("golden") or ()]
    if not golden:
        raise ValueError(f"{key}: the card of {found.path!r} has no golden scores to know it by; measure it again")
    written = [scores for _, scores in golden]
    outputs = score_tokens(model, [tokens for tokens, _ in golden])
    members = read_members(model, outputs)
    said = (outputs if len(written[0]) == outputs.shape[-1] else members).tolist()
    # Scores of a card that does not say in what they were computed may have been rounded as much as any.
    noted = str(found.card["golden"][0].get("dtype", "bfloat16")).removeprefix("torch.")
    coarser = max(dtype, noted, key=lambda name: TOLERANCE.get(name, 0.0))
    allowed = TOLERANCE[coarser] * max(abs(score) for row in written for score in row)
    for i, (then, now) in enumerate(zip(written, said, strict=True)):
        gap = max((abs(a - b) for a, b in zip(then, now, strict=False)), default=0.0)
        if len(then) != len(now) or not gap <= allowed:
            raise ValueError(
                f"{key}: {found.path!r} is not what was measured: of golden sequence {i} its card says {then}, but "
                f"it says {now} now (difference {gap:.3g}, allowed in {coarser}: {allowed:.3g}); measure it again"
            )
