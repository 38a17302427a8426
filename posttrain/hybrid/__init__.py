"""Training and generation on one pool of devices: `Hybrid` and its phases, and the resharding `plan`, which is pure.

`Hybrid` is imported when it is first asked for, so that whoever only plans imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.hybrid.engine import Hybrid

__all__ = ["Hybrid"]


def __getattr__(name: str) -> Any:
    if name == "Hybrid":
        from posttrain.hybrid.engine import Hybrid

        return Hybrid
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
