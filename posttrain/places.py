"""Where things are kept on this machine that no run owns."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Dequantised models and kept verdicts: POSTTRAIN_CACHE, or posttrain under the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain"
    return Path(os.environ.get("POSTTRAIN_CACHE", default))
