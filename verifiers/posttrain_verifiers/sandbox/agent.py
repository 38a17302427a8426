"""What runs in a program's own process: executes it, calls it, sends values back.

Nothing here is trusted once the program runs: it may change any of this. It decides nothing and knows nothing but the
arguments of the calls.
"""

from __future__ import annotations

import atexit
import io
import marshal
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from posttrain_verifiers.sandbox import frames, values

CHANNEL = 3
FILE = "program.py"
MOST_CHARACTERS = 2000
"""Of an exception's message."""
REPR_CHARACTERS = 200
_NONE = marshal.dumps([])


def prepare() -> None:
    """Done once, before anything is forked."""
    sys.argv = [FILE]
    sys.path = [path for path in sys.path if path]
    os.environ.clear()
    for name in [name for name in sys.modules if name.startswith("posttrain_verifiers")]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
    _rehearse()


def _rehearse() -> None:
    """Do once what every program's process does, so that what Python makes at a first time is there."""
    server = _Server()
    server.load("from typing import List\ndef f(x: List[int], y: float = 0.5) -> str: return [x, y, 'é', f'{x}']")
    value = values.encode(server.call("f", ["list", ["list", 1, 2]], ["dict"]), server.hold)
    frames.unframed(frames.framed(values.dumps(["", "value", value])))
    marshal.loads(marshal.dumps(["", ("f", [1, 2], {})]))
    del sys.modules["program"]


def set_streams() -> None:
    """Python's streams over 0, 1 and 2, which a program's process puts its own descriptors under."""
    errors = {"stdin": "surrogateescape", "stdout": "surrogateescape", "stderr": "backslashreplace"}
    ends = os.pipe()  # as a program's are: a stream asks once whether it can go back
    for number, (name, handling) in enumerate(errors.items()):
        if number:
            os.dup2(ends[1], number)
        raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
        buffer: Any = io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffer, "utf-8", handling, line_buffering=number == 2)
        stream.mode = raw.mode[0]  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for end in ends:
        os.close(end)


def main() -> NoReturn:
    try:
        nonce, action, source, *rest = marshal.loads(frames.receive(CHANNEL))
        if action == "run":
            os.close(CHANNEL)
            _run(source)
        _Server().serve(nonce, source, *rest)
    except BaseException:
        os._exit(1)
    finally:
        os._exit(0)


class _Lines:
    """A program's loader, as those know it that show a program's lines, in tracebacks say."""

    def __init__(self, source: str) -> None:
        self.source = source

    def get_source(self, _name: str) -> str:
        return self.source


def _module(name: str, source: str) -> types.ModuleType:
    """The program as a module that has not been executed."""
    module = types.ModuleType(name)
    module.__dict__.update({"__file__": FILE, "__builtins__": __builtins__, "__loader__": _Lines(source)})
    sys.modules[name] = module
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
    for finish in (_end_threads, atexit._run_exitfuncs, lambda: sys.stdout.flush(), lambda: sys.stderr.flush()):
        try:
            finish()
        except BaseException:
            code = code or 120
    os._exit(code & 0xFF)


def _end_threads() -> None:
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()


def _exit_code(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code)
    print(code, file=sys.stderr)
    return 1


class _Server:
    """Answers the owner's requests, one after the other, until either end goes."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.kept: list[Any] = []
        self.places: dict[int, int] = {}
        self.globals: dict[str, Any] = {}

    def serve(self, nonce: str, source: str, calls: bytes, leaves: bool) -> NoReturn:
        """`leaves`: these calls are the last, unless one of them gives an object that stays here."""
        if not self.answer(nonce, lambda: self.load(source)):
            os._exit(0)
        while True:
            for name, arguments, keywords in marshal.loads(calls):
                self.answer(nonce, lambda: self.look_up(name)(*arguments, **keywords))  # noqa: B023
            if leaves and not self.kept:
                os._exit(0)
            nonce, action, *rest = marshal.loads(frames.receive(CHANNEL))
            calls, leaves = rest if action == "calls" else (_NONE, False)
            if action != "calls":
                self.answer(nonce, lambda: getattr(self, action)(*rest))  # noqa: B023

    def answer(self, nonce: str, action: Callable[[], Any]) -> bool:
        """Whether it was done without an exception."""
        done = True
        try:
            text = values.dumps([nonce, "value", values.encode(action(), self.hold)])
        except BaseException as error:
            text = values.dumps([nonce, "raised", *_described(error)])
            done = False
        if os.getpid() != self.pid:
            os._exit(0)  # a fork of the program came back here
        frames.send(CHANNEL, text)
        return done

    def load(self, source: str) -> None:
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
