"""Math-Verify's opinion of what exact arithmetic cannot decide, made symmetric and held against numbers."""

from __future__ import annotations

import logging
import re
from typing import Any

# Math-Verify warns that it runs without a timeout. It must: its own needs the main thread's alarm, and the grading pool
# ends a worker that takes too long.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.ERROR)

ROUNDING = 1e-12
"""Relative, where a decimal is among the numbers, which Math-Verify rounds to 15 digits. Its own tolerance is absolute,
so to it all tiny numbers are equal.
"""


def agree(found: str, gold: str) -> bool | None:
    """Math-Verify's opinion, which must be the same in both orders; it is not symmetric. None: `gold` is unreadable."""
    from math_verify import verify  # with SymPy a third of a second to import: see Math.prepare

    theirs = parsed(gold)
    if theirs is None:
        return None
    ours = parsed(found)
    if ours is None:
        return False
    both = all(verify(a, b, timeout_seconds=None) for a, b in ((theirs, ours), (ours, theirs)))
    return both and _close(ours, theirs)


def parsed(text: str) -> Any:
    """What Math-Verify reads in a formula; None where it reads nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # An upright e or i is lost in Math-Verify's normalisation, together with what stands behind it.
    text = re.sub(r"\\(?:mathrm|operatorname)\{([ei])\}", r"\1", text.strip().strip("$"))
    targets = [LatexExtractionConfig(), ExprExtractionConfig()]
    found = parse(f"${text}$", targets, fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def _close(ours: Any, theirs: Any) -> bool:
    """Whether two numbers agree relatively, at two precisions; True for what is not a number."""
    if not (getattr(ours, "is_number", False) and getattr(theirs, "is_number", False)):
        return True
    rounded = any(atom.is_Float for value in (ours, theirs) for atom in value.atoms())
    for digits in (20, 50):
        difference = abs((ours - theirs).evalf(digits))
        scale = max(abs(ours.evalf(digits)), abs(theirs.evalf(digits)))
        if not difference.is_finite:
            return bool(ours == theirs)  # two infinities
        if not bool(difference <= (ROUNDING if rounded else 10.0 ** (5 - digits)) * scale):
            return False
    return True
