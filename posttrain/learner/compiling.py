"""torch.compile on what a transformers decoder repeats and does element by element: its norms and its MLPs.

Attention stays as it is, as what lies in a row changes with each micro-batch; products of matrices gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from posttrain.errors import ModelError

KINDS = ("RMSNorm", "LayerNorm", "MLP")
"""Ends of class names. Mixtures of experts are left out: who is asked depends on the data."""


def compilable(model: nn.Module) -> Iterator[nn.Module]:
    """Norms and MLPs of a model, adapters on them included."""
    return (module for module in model.modules() if type(module).__name__.endswith(KINDS))


def compile_parts(model: Any) -> int:
    """Compile, in place and for any number of tokens, norms and MLPs; how many. Each is compiled where it is first
    called, those of equal shape once. Raises ModelError where this machine cannot, or where there is none.
    """
    found = list(compilable(model))
    if not found:
        raise ModelError(
            f"hardware.learner.compile: {type(model).__name__} has nothing of the kind that is compiled "
            f"({', '.join(KINDS)}); use compile: false"
        )
    _prove_compiler(next(model.parameters()))
    for module in found:
        module.compile(dynamic=True)
    return len(found)


def _prove_compiler(like: torch.Tensor) -> None:
    """Compile something small, so that a machine without a compiler is found before anything is learnt."""
    probe = torch.ones(8, dtype=like.dtype, device=like.device, requires_grad=True)
    try:
        torch.compile(_probe, dynamic=True)(probe).sum().backward()
    # Compilers are missed in many ways, each by an error of its own.
    except Exception as error:
        said = str(error).strip().splitlines()[:1]
        raise ModelError(
            f"hardware.learner.compile: torch.compile does not work here ({type(error).__name__}: {' '.join(said)}); "
            "install a C++ compiler, or use compile: false"
        ) from None


def _probe(values: torch.Tensor) -> torch.Tensor:
    return values * torch.rsqrt(values.square().mean() + 1)
