"""Grading: from roll-outs to verdicts, by verifiers that run in worker processes which can be killed.

A wrong answer is worth 0. A grader that hangs, crashes or raises gives a verdict without a score, and is counted.
"""

from posttrain.rewards.grader import Grader
from posttrain.rewards.verifier import Verifier, VerifierSignature, load_verifier, signature_of

__all__ = ["Grader", "Verifier", "VerifierSignature", "load_verifier", "signature_of"]
