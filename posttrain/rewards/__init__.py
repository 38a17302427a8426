"""Grading: from roll-outs to verdicts, by verifiers that run in worker processes which can be killed.

A wrong answer is worth 0. A grader that hangs, crashes or raises gives a verdict without a score, and is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.rewards.verifier import Verifier, VerifierSignature, load_verifier, signature_of

if TYPE_CHECKING:
    from posttrain.rewards.grader import Grader

__all__ = ["Grader", "Verifier", "VerifierSignature", "load_verifier", "signature_of"]


def __getattr__(name: str) -> Any:
    # A worker imports this package for its verifiers: what hands out the questions would be most of its start.
    if name == "Grader":
        from posttrain.rewards.grader import Grader

        return Grader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
