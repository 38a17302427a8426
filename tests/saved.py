"""What a checkpoint holds, read without the learner that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor


def saved(checkpoint: Path, who: str = "learner") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers and whole tensors of a checkpoint's learner, or of the `critic` beside it."""
    numbers = torch.load(checkpoint / f"{who}.pt", weights_only=True)
    folder = checkpoint / ("learner" if who == "learner" else f"{who}-learner")
    about = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in about.items()}
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return numbers, tensors


def equal(one: Path, other: Path, who: str = "learner") -> None:
    """Two checkpoints hold the same, bit for bit."""
    (numbers, tensors), (others, theirs) = saved(one, who), saved(other, who)
    assert numbers.keys() == others.keys()
    for name, value in numbers.items():
        assert torch.equal(value, others[name]) if isinstance(value, Tensor) else value == others[name], name
    assert tensors.keys() == theirs.keys()
    assert any(name.startswith("trained/") for name in tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, theirs[name]), name
