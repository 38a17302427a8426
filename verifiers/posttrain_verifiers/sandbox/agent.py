"""What runs in a program's own process: executes it, calls it, sends values back.

Nothing here is trusted once the program runs: it may change any of this. It decides nothing and knows nothing but the
arguments of the calls.
"""

from __future__ import annotations

import atexit
import io
import linecache
import os
import random
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

from posttrain_verifiers.sandbox import frames, values

CHANNEL = 3
FILE = "program.py"
MOST_CHARACTERS = 2000
"""Of an exception's message."""
REPR_CHARACTERS = 200


def prepare() -> None:
    """Done once, before anything is forked."""
    sys.argv = [FILE]
    sys.path = [path for path in sys.path if path]


def main() -> NoReturn:
    try:
        channel = socket.socket(fileno=CHANNEL)
        _set_streams()
        os.environ.clear()
        random.seed()
        nonce, action, source = values.loads(frames.receive(channel))
        for name in [name for name in sys.modules if name.startswith("posttrain_verifiers")]:
            del sys.modules[name]
        if action == "run":
            channel.close()
            _run(source)
        _Server(channel).serve(nonce, source)
    except BaseException:
        os._exit(1)
    finally:
        os._exit(0)


def _set_streams() -> None:
    errors = {"stdin": "surrogateescape", "stdout": "surrogateescape", "stderr": "backslashreplace"}
    for number, (name, handling) in enumerate(errors.items()):
        raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
        buffer: Any = io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffer, "utf-8", handling, line_buffering=number == 2)
        stream.mode = raw.mode[0]  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _module(name: str, source: str) -> types.ModuleType:
    """The program as a module that has not been executed. Its lines are there for tracebacks."""
    module = types.ModuleType(name)
    module.__dict__.update({"__file__": FILE, "__builtins__": __builtins__})
    sys.modules[name] = module
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    return module


def _run(source: str) -> NoReturn:
    """The program as python itself runs one, its exit included."""
    module = _module("__main__", source)
    code = 0
    try:
        exec(compile(source, FILE, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as error:
        code = _exit_code(error.code)
    except BaseException as error:
        code = 1
        shown = error.__traceback__ and error.__traceback__.tb_next
        try:
            sys.excepthook(type(error), error.with_traceback(shown), shown)
        except BaseException:
            code = 1
    for finish in (threading._shutdown, atexit._run_exitfuncs, lambda: sys.stdout.flush(), lambda: sys.stderr.flush()):  # type: ignore[attr-defined]
        try:
            finish()
        except BaseException:
            code = code or 120
    os._exit(code & 0xFF)


def _exit_code(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code)
    print(code, file=sys.stderr)
    return 1


class _Server:
    """Answers the owner's requests, one after the other, until either end goes."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.kept: list[Any] = []
        self.places: dict[int, int] = {}
        self.globals: dict[str, Any] = {}

    def serve(self, nonce: str, source: str) -> NoReturn:
        pid = os.getpid()
        self.answer(nonce, lambda: self.load(source))
        while True:
            if os.getpid() != pid:
                os._exit(0)  # a fork of the program came back here
            nonce, action, *rest = values.loads(frames.receive(self.channel))
            self.answer(nonce, lambda: getattr(self, action)(*rest))  # noqa: B023

    def answer(self, nonce: str, action: Callable[[], Any]) -> None:
        try:
            text = values.dumps([nonce, "value", values.encode(action(), self.hold)])
        except BaseException as error:
            text = values.dumps([nonce, "raised", *_described(error)])
        self.channel.sendall(frames.framed(text))

    def load(self, source: str) -> None:
        sys.modules["__main__"] = types.ModuleType("__main__")
        module = _module("program", source)
        self.globals = module.__dict__
        exec(compile(source, FILE, "exec", dont_inherit=True), self.globals)

    def call(self, function: Any, arguments: Any, keywords: Any) -> Any:
        target = self.look_up(function) if isinstance(function, str) else values.decode(function, self.find)
        return target(*values.decode(arguments, self.find), **values.decode(keywords, self.find))

    def get(self, name: str) -> Any:
        return self.look_up(name)

    def attribute(self, handle: Any, name: str) -> Any:
        return getattr(values.decode(handle, self.find), name)

    def look_up(self, name: str) -> Any:
        if name not in self.globals:
            raise NameError(f"name {name!r} is not defined")
        return self.globals[name]

    def hold(self, value: Any) -> list[Any]:
        place = self.places.get(id(value))
        if place is None:
            place = self.places[id(value)] = len(self.kept)
            self.kept.append(value)
        try:
            shown = repr(value)[:REPR_CHARACTERS]
        except Exception as error:
            shown = f"<{type(error).__name__} in repr>"
        return ["handle", place, type(value).__name__, shown]

    def find(self, parts: list[Any]) -> Any:
        return self.kept[parts[0]]


def _described(error: BaseException) -> tuple[str, str]:
    try:
        message = str(error)[:MOST_CHARACTERS]
    except BaseException:
        message = ""
    return type(error).__name__, message
