"""IFEval (2311.07911): does a completion follow the instructions of its prompt that a program can check?"""

from posttrain_verifiers.ifeval.verifier import IFEval

__all__ = ["IFEval"]
