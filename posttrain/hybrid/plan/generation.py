"""The engine's side: how many ranks in how many replicas, and where they live."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Generation:
    """The target layout: vLLM rank `replica * tensor + t`."""

    tensor: int = 1
    replicas: int = 1
    colocated: bool = True
    """Engine rank i lives in the process of training rank i, and copies what that stores. Else the ranks are others."""
    per_machine: int | None = None
    """Colocated ranks of one machine: neighbours in number. None where the way to every rank is the same."""

    @property
    def ranks(self) -> int:
        return self.tensor * self.replicas

    def near(self, rank: int, holders: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the training ranks `holders` that an engine rank should receive from."""
        if not self.colocated or not self.per_machine:
            return holders
        machine = rank // self.per_machine
        return tuple(h for h in holders if h // self.per_machine == machine) or holders

    def __str__(self) -> str:
        where = "colocated" if self.colocated else "apart"
        return f"{self.ranks} engine ranks ({self.replicas} x tensor parallel {self.tensor}, {where})"
