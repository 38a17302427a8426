"""A sequence classifier read as a reward model: which folder it is, and what it says of sequences of token ids.

Nothing here imports torch before a model is loaded, so that a recipe which names a reward model can be checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ModelError
from posttrain.models.location import locate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = "policy"
"""How a checkpoint calls the folder of the model it trains."""


def newest_checkpoint(path: str | Path, key: str = "path") -> Path:
    """The model folder a path means: a run folder's newest complete checkpoint, one checkpoint's model, or itself.

    Raises ModelError naming what is there instead.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if (folder / WEIGHTS / "config.json").is_file():
        return folder / WEIGHTS
    found = {
        int(match.group(1)): step / WEIGHTS
        for step in (folder / "checkpoints").glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", step.name))
        and (step / "manifest.json").is_file()
        and (step / WEIGHTS / "config.json").is_file()
    }
    if found:
        return found[max(found)]
    if (folder / "checkpoints").is_dir():
        raise ModelError(
            f"{key}: the run in {str(path)!r} has no complete checkpoint yet; let it reach one (run.save_every)"
        )
    file = locate(str(path), key).file
    raise ModelError(f"{key}: {str(path)!r} is {'a file' if file else 'no folder here'}; give a run or a model folder")


def outputs_of(folder: Path, key: str = "path") -> int:
    """How many numbers a reward model says of a state. Raises ModelError for a model that is none."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    if not any("SequenceClassification" in name for name in names):
        raise ModelError(
            f"{key}: {str(folder)!r} is a {', '.join(names) or 'model of an unknown kind'} without a head that scores; "
            "give a reward model, as the rows that train one write it"
        )
    # A configuration that does not say is written for two classes, the default of transformers.
    return len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))


def load_reward_model(folder: Path, dtype: torch.dtype, device: str, key: str = "path") -> Any:
    """A sequence classifier with the head its checkpoint holds, in fp32 at least, ready to be read and nothing else.

    Raises ModelError for a model without a head, or a head that is not in the checkpoint.
    """
    import torch

    from posttrain.models.checkpoint import load_scorer

    model = load_scorer(folder, outputs_of(folder, key), dtype, device, key=key)
    head = _stored_head(folder)
    if head is None or head.shape != model.score.weight.shape:
        found = "holds no score.weight" if head is None else f"has a head of {tuple(head.shape)}"
        raise ModelError(
            f"{key}: {str(folder)!r} {found} where {tuple(model.score.weight.shape)} is due; copy it whole"
        )
    # In bf16 a score would have two and a half digits.
    wide = torch.promote_types(dtype, torch.float32)
    model.score.weight = torch.nn.Parameter(head.to(device, wide))
    return model.eval().requires_grad_(False)


def load_language_model(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """A causal language model to be read and nothing else. Raises ModelError where the checkpoint does not fill it."""
    from posttrain.models.checkpoint import load_policy
    from posttrain.recipe import Model

    return load_policy(folder, Model(path=str(folder)), dtype, device).eval().requires_grad_(False)


def score_tokens(model: Any, sequences: Sequence[Sequence[int]], batch_tokens: int = 4096) -> Tensor:
    """`[S, B]`: what the head says of the state after each sequence's last token.

    A sequence's score does not depend on which others are read with it, up to rounding. Raises ModelError as `states`.
    """
    import torch

    if not sequences:
        return torch.zeros(0, model.score.weight.shape[0])
    with torch.no_grad():
        return read_head(model, torch.cat(states(model, sequences, [[len(s) - 1] for s in sequences], batch_tokens)))


def read_head(model: Any, hidden: Tensor) -> Tensor:
    """`[N, H]` states on the CPU to `[N, B]` outputs there, in fp32 at least."""
    import torch

    wide = torch.promote_types(hidden.dtype, torch.float32)
    return torch.nn.functional.linear(hidden.to(wide), model.score.weight.to("cpu", wide))


def states(
    model: Any, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], batch_tokens: int = 4096
) -> list[Tensor]:
    """`[P, H]` per sequence: its last hidden states after the tokens at its P positions, on the CPU.

    Sequences of like length are read together, padded on the right, at most `batch_tokens` positions at a time; where
    a sequence ends is known from its length, whatever the padding is. Raises ModelError for an empty sequence, one that
    is longer than the model reads, or a token it does not know.
    """
    import torch

    for sequence in sequences:
        check_readable(model, sequence)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, device = getattr(inner, inner.base_model_prefix), inner.score.weight.device
    out: list[Tensor] = [torch.empty(0)] * len(sequences)
    for rows in by_length([len(s) for s in sequences], batch_tokens):
        ids, mask = padded([sequences[i] for i in rows])
        with torch.no_grad():
            hidden = decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        for row, i in enumerate(rows):
            out[i] = hidden.last_hidden_state[row, torch.tensor(positions[i], dtype=torch.long)].cpu()
    return out


def by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of like length, longest first: at most `batch_tokens` positions each, padding included, or
    one sequence."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids `[S, L]`, zeros on the right, and 1 `[S, L]` where a sequence has a token."""
    import torch

    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences])
    return ids, (torch.arange(width) < lengths[:, None]).long()


def check_readable(model: Any, sequence: Sequence[int]) -> None:
    """Raises ModelError for a sequence of token ids that this model cannot read."""
    known = model.get_input_embeddings().num_embeddings
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not sequence:
        raise ModelError("a sequence without tokens has no state to score")
    if longest is not None and len(sequence) > longest:
        raise ModelError(f"a sequence of {len(sequence)} tokens is longer than the {longest} the reward model reads")
    if max(sequence) >= known:
        raise ModelError(f"token {max(sequence)} is unknown to the reward model, which has {known}")


def _stored_head(folder: Path) -> Tensor | None:
    """The head `[B, H]` as the checkpoint has it; None where it has none."""
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            if "score.weight" in list(stored.keys()):
                return stored.get_tensor("score.weight")
    for file in sorted(folder.glob("pytorch_model*.bin")):
        found = torch.load(file, map_location="cpu", weights_only=True).get("score.weight")
        if found is not None:
            return found
    return None
