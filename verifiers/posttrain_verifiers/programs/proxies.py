"""A program as trusted tests see it: names that send plain data to its process and get plain data back."""

from __future__ import annotations

import builtins
import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain_verifiers.programs.ahead import NOTHING, Ahead
from posttrain_verifiers.programs.outcome import shown
from posttrain_verifiers.sandbox import Ended, Handle, ProgramEndedError, ProgramError, Session

LARGEST = 1 << 20
"""Bits of an integer that a program may hand to a test: a power of a larger one would keep the test busy for ever."""


class RaisedError(Exception):
    """The program raised; also a subclass of the built-in exception of that name, so that tests can expect it."""

    def __init__(self, kind: str, message: str) -> None:
        Exception.__init__(self, message)
        self.kind, self.message = kind, message


class LostError(BaseException):
    """The program ended while a test waited for it; no `except` of a test hides it, since later calls end so too."""


class Program:
    """One side of a session, with what a reason needs: the last call, and how the program ended if it did."""

    def __init__(self, session: Session, ahead: Ahead = NOTHING) -> None:
        """`ahead`: calls of which the session was asked for the first round."""
        self.session, self._ahead = session, ahead
        self._taken = 0
        self._asked_for = ahead.rounds[0].count if ahead.rounds else 0
        self.ended: Ended | None = None
        self.answers = 0
        """How many values came from the program."""
        self.last: tuple[str, Sequence[Any], Any] | None = None
        self.objects = False
        """Whether the tests may hold objects of the program's."""

    def call(self, target: str | Handle, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.objects:
            args, kwargs = _sent(list(args)), _sent(dict(kwargs))
        name = target if isinstance(target, str) else target.type_name
        self.last = (name, args, None)
        value = self._asked(functools.partial(self._live, self.session.call, target, args, kwargs))
        self.last = (name, args, value)
        return value

    def answer(self, number: int) -> Any:
        """What the call of this number gives, of those that are asked for ahead."""
        call = self._ahead.calls[number]
        self.last = (call.name, call.args, None)
        value = self._asked(functools.partial(self._next, number))
        self.last = (call.name, call.args, value)
        return value

    def _next(self, number: int) -> Any:
        if number >= self._asked_for:
            self._skip(self._asked_for)
            first = max(start for start in self._ahead.rounds if start <= number)
            self.session.ask(self._ahead.rounds[first])
            self._taken, self._asked_for = first, first + self._ahead.rounds[first].count
        self._skip(number)
        self._taken = number + 1
        return self.session.next()

    def _skip(self, number: int) -> None:
        """Take the answers before this one, which a statement that failed did not come to."""
        while self._taken < number:
            self._taken += 1
            with contextlib.suppress(ProgramError):
                self.session.next()

    def _live(self, question: Callable[..., Any], *arguments: Any) -> Any:
        self._skip(self._asked_for)
        return question(*arguments)

    def get(self, name: str) -> Any:
        return self._asked(functools.partial(self._live, self.session.get, name))

    def attribute(self, target: Handle, name: str) -> Any:
        return self._asked(functools.partial(self._live, self.session.attribute, target, name))

    def said(self) -> str:
        """The last call and what it gave."""
        if self.last is None:
            return "nothing was called"
        name, args, value = self.last
        return f"{name}({', '.join(map(shown, args))}) gave {shown(value)}"

    def _asked(self, question: functools.partial[Any]) -> Any:
        if self.ended is not None:
            raise LostError
        try:
            value = question()
        except ProgramError as error:
            raise _raised(error.kind)(error.kind, error.message) from None
        except ProgramEndedError as error:
            self.ended = error.ended
            raise LostError from None
        self.answers += 1
        return self._received(value)

    def _received(self, value: Any) -> Any:
        if isinstance(value, Handle):
            self.objects = True
            return Opaque(self, value)
        if type(value) is int and value.bit_length() > LARGEST:
            raise RaisedError("OverflowError", f"an integer of {value.bit_length()} bits, more than {LARGEST}")
        return value


class Named:
    """A function or class of the program, by its name."""

    def __init__(self, program: Program, name: str) -> None:
        self._program, self._name = program, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.call(self._name, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program.get(self._name), name)


class Opaque:
    """An object of the program's own type. It can be called, read, written and handed back; it equals only itself, and
    what its type says of its truth, order or length is not asked.
    """

    def __init__(self, program: Program, handle: Handle) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_handle", handle)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.call(self._handle, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.attribute(self._handle, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setter = self._program.attribute(self._handle, "__setattr__")
        self._program.call(setter._handle, (name, value), {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self._handle == other._handle

    def __hash__(self) -> int:
        return hash(self._handle)

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is of the program's own type, whose truth is not asked")

    def __repr__(self) -> str:
        return f"<{self._handle.type_name} of the program: {self._handle.repr[:80]}>"


def _sent(value: Any) -> Any:
    """The value with the program's objects named by their handles."""
    if isinstance(value, Opaque):
        return value._handle
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_sent, value))
    if type(value) is dict:
        return {_sent(key): _sent(inner) for key, inner in value.items()}
    return value


@functools.lru_cache(maxsize=128)
def _raised(kind: str) -> type[RaisedError]:
    base = getattr(builtins, kind, None)
    if not (isinstance(base, type) and issubclass(base, Exception)) or issubclass(base, ExceptionGroup):
        return RaisedError
    return RaisedError if base is Exception else type(kind, (RaisedError, base), {})
