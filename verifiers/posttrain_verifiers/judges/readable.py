"""The part of a judge that needs no server, as a verifier of a judge's own answers: is there a score to be read?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.types import Verdict
from posttrain_verifiers.judges.scale import Parse, Scale


class Readable:
    """1 where an answer of a judge ends in a score, and in the one it is said to be; 0 where `Judge` would read none.

    The settings are those of `Judge`. For answers that were written down: how often does a model keep to the form?
    """

    version = "1"

    def __init__(
        self,
        parse: Parse = "number",
        scale: tuple[float, float] = (1.0, 10.0),
        words: Mapping[str, float] | None = None,
        mark: str = "Score",
        bound: bool = True,
    ) -> None:
        """Raises ValueError as `Judge` does."""
        low, high = scale
        self.scale = Scale(parse, float(low), float(high), words or {}, mark, bound)

    def __call__(
        self, completion: str, *, nonce: str = "", judged: Sequence[str] = (), said: float | None = None
    ) -> Verdict:
        """`nonce`: the word the judge was asked to repeat; `judged`: the texts it was shown."""
        value = self.scale.read(completion, nonce, judged)
        if value is None:
            return Verdict(0.0, "unparsable", reason="no score at its end")
        return Verdict(float(said is None or value == said), parts={"said": value}, reason=f"says {value:g}")
