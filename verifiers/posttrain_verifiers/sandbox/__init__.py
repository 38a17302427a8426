"""Programs that may be hostile, isolated: run whole, or loaded and called. Where there is no isolation, an error."""

from posttrain_verifiers.sandbox.limits import Ended, Limits, ProgramEndedError, ProgramError, SandboxUnavailableError
from posttrain_verifiers.sandbox.session import Calls, Session
from posttrain_verifiers.sandbox.values import Handle, Iterated
from posttrain_verifiers.sandbox.warm import Sandbox

__all__ = [
    "Calls",
    "Ended",
    "Handle",
    "Iterated",
    "Limits",
    "ProgramEndedError",
    "ProgramError",
    "Sandbox",
    "SandboxUnavailableError",
    "Session",
]
