"""A program that is loaded and called, one call after the other."""

from __future__ import annotations

import marshal
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from posttrain_verifiers.sandbox import values
from posttrain_verifiers.sandbox.limits import Ended, ProgramEndedError, ProgramError
from posttrain_verifiers.sandbox.program import Program

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_ROWS = (list, tuple, set, frozenset)


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls that are asked for together, encoded once. `last`: no other request follows them."""

    text: bytes = marshal.dumps([])
    count: int = 0
    last: bool = False

    @classmethod
    def of(cls, calls: Sequence[tuple[str, Sequence[Any], Mapping[str, Any]]], last: bool) -> Self:
        """From (name, arguments, keywords) of plain data without objects of a program. Raises TypeError for others."""
        rows = [(name, list(args), dict(keywords)) for name, args, keywords in calls]
        if not _is_plain(rows):
            raise TypeError("a call with arguments that are no literals")
        # Of version 2: no two arguments are the same object.
        return cls(marshal.dumps(rows, 2), len(rows), last)


class Session:
    """A loaded program. Its state lasts from call to call; closing it ends every process that it started.

    Values are those of `values`; what does not cross is a `Handle`, which can be passed, called, or asked for an
    attribute. What the program says is never believed but as the value of the call it was asked for: each request has a
    fresh nonce, and words that nothing was asked for end the program. An argument that the program changes is changed
    there only.
    """

    def __init__(self, start: Callable[[bytes, int], Program], source: str, calls: Calls) -> None:
        """`start` makes a program of a request and how many answers it is due; `calls` are asked for with it.

        Raises ProgramError where the program's top level raises, ProgramEndedError where it does not come back.
        """
        self._owner = os.getpid()
        self._handles: dict[int, values.Handle] = {}
        self._program = start(self._request(calls, "load", source), 1 + calls.count)
        try:
            self._answered()
        except BaseException:
            self.close()
            raise

    def ask(self, calls: Calls) -> None:
        """Ask for these calls; all that was asked for before must have been answered."""
        self._program.ask(self._request(calls, "calls"), calls.count)

    def next(self) -> Any:
        """The value of the next of the calls that were asked for together. Raises as `call` does."""
        return self._answered()

    def call(self, name: str | values.Handle, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """What the program's global, or a handle, gives for these arguments.

        Raises ProgramError with what the call raised (TooLargeError: a value too large to cross),
        ProgramEndedError where the program died, hung, or broke the protocol, and TypeError for an argument
        that is no plain data.
        """
        target = name if isinstance(name, str) else self._tree(name)
        return self._ask("call", target, self._tree(list(args)), self._tree(dict(kwargs or {})))

    def get(self, name: str) -> Any:
        """The value of a global of the program."""
        return self._ask("get", name)

    def attribute(self, handle: values.Handle, name: str) -> Any:
        return self._ask("attribute", self._tree(handle), name)

    def close(self) -> None:
        self._program.close()

    @property
    def ended(self) -> Ended | None:
        """How the program ended, if it has: `killed` where it was closed."""
        return self._program.ended

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_program") and self._owner == os.getpid():
            self.close()

    def _ask(self, action: str, *arguments: Any) -> Any:
        self._nonce, self._leaves = os.urandom(16).hex(), False
        self._program.ask(marshal.dumps((self._nonce, action, *arguments)))
        return self._answered()

    def _request(self, calls: Calls, *said: str) -> bytes:
        self._nonce, self._leaves = os.urandom(16).hex(), calls.last
        return marshal.dumps((self._nonce, *said, calls.text, calls.last))

    def _answered(self) -> Any:
        answer = self._program.answer(self._leaves)
        if isinstance(answer, Ended):
            raise ProgramEndedError(answer)
        try:
            echo, kind, *said = values.loads(answer)
            if echo != self._nonce or kind not in ("value", "raised"):
                raise values.MalformedError("the answer to another question")
            if kind == "value":
                (tree,) = said
                return values.decode(tree, self._found)
            name, message = said
        except (ValueError, TypeError):
            raise ProgramEndedError(self._program.end("killed")) from None
        raise ProgramError(str(name)[:200], str(message)[:4000])

    def _tree(self, value: Any) -> Any:
        return values.encode(value, self._held)

    def _held(self, value: Any) -> list[Any]:
        if not isinstance(value, values.Handle):
            raise TypeError(f"no value of type {type(value).__name__} can be passed to a program")
        if self._handles.get(value.id) is not value:
            raise ValueError(f"{value} is of another session")
        return ["handle", value.id]

    def _found(self, parts: list[Any]) -> values.Handle:
        place, name, shown = parts
        if type(place) is not int:
            raise values.MalformedError("a handle without a place")
        if place not in self._handles:
            self._handles[place] = values.Handle(place, str(name)[:200], str(shown)[:1000])
        return self._handles[place]


def _is_plain(value: Any) -> bool:
    """Whether it is data of Python's own types, which marshal keeps as they are."""
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return type(value) in _PLAIN or (type(value) in _ROWS and all(map(_is_plain, value)))
