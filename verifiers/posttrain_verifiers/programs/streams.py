"""Tests of values that are given and due: whole programs over stdin and stdout, and functions over JSON arguments."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain_verifiers.programs import extraction
from posttrain_verifiers.programs.ahead import NOTHING, Ahead, Call, in_rounds, text_of
from posttrain_verifiers.programs.outcome import BrokenTestsError, Outcome, cut, shown
from posttrain_verifiers.programs.proxies import LostError, Program, RaisedError
from posttrain_verifiers.sandbox import Calls, Limits, ProgramEndedError, ProgramError, Sandbox

_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_INTEGER = re.compile(r"[+-]?\d+")
_METHODS = "Solution"
"""The class whose method a task may ask for, as LiveCodeBench's functional tests do."""


@dataclass(frozen=True, slots=True)
class StreamTests:
    """Pairs of stdin and the stdout that is due."""

    pairs: tuple[tuple[str, str], ...]
    tolerance: float | None

    @property
    def total(self) -> int:
        return len(self.pairs)

    def program(self, completion: str) -> str:
        """The source to run. Raises extraction.NoProgramError."""
        return extraction.script(completion)

    def run(self, sandbox: Sandbox, source: str, limits: Limits, stop: bool) -> Outcome:
        """Run the program once for each test, all within `limits.seconds`; `stop` ends it at the first failure."""
        passed, first, until = 0, "", time.monotonic() + limits.seconds
        for number, (given, due) in enumerate(self.pairs, 1):
            left = until - time.monotonic()
            problem = "timeout: no time was left" if left <= 0 else ""
            if not problem:
                ended = sandbox.run(source, given, replace(limits, seconds=left))
                if ended.how != "exited":
                    problem = ended.how
                elif not same_output(ended.stdout, due, self.tolerance):
                    problem = f"wrote {cut(ended.stdout)!r}, due {cut(due)!r}"
                if not problem.startswith("timeout") and ended.code:
                    last = ended.stderr.strip().rpartition("\n")[2]
                    problem = f"{problem}{'; ' if problem else ''}exit code {ended.code}: {cut(last)}"
            passed += not problem
            if problem and not first:
                first = f"test {number} of {self.total}: {problem}"
            if problem and (stop or left <= 0):
                break
        return Outcome(passed, self.total, first)


@dataclass(frozen=True, slots=True)
class ValueTests:
    """A function's arguments and the value that is due."""

    name: str
    cases: tuple[tuple[tuple[Any, ...], Any], ...]
    tolerance: float | None

    @property
    def total(self) -> int:
        return len(self.cases)

    def program(self, completion: str) -> str:
        """The source to run. Raises extraction.NoProgramError."""
        return extraction.module(completion, (self.name, _METHODS))

    def run(self, sandbox: Sandbox, source: str, limits: Limits, stop: bool) -> Outcome:
        """Call the function for each test in one process, within `limits.seconds`."""
        passed, first = 0, ""
        try:
            ahead = self._ahead(source)
            with sandbox.open(source, limits, ahead.rounds.get(0, Calls())) as session:
                program = Program(session, ahead)
                method = None if ahead.calls else getattr(program.call(_METHODS, (), {}), self.name)
                for number in range(1, self.total + 1):
                    problem = self._problem(program, method, number - 1)
                    passed += not problem
                    if problem and not first:
                        first = f"test {number} of {self.total}: {problem}"
                    if problem and (stop or program.ended is not None):
                        break
        except ProgramError as error:
            first = cut(f"the program does not load: {error.kind}: {error.message}")
        except ProgramEndedError as error:
            first = f"{error.ended.how} while the program loaded"
        except RaisedError as error:
            first = cut(f"{error.kind}: {error.message}")
        except LostError:
            first = f"it ended while {_METHODS} was made"
        return Outcome(passed, self.total, first)

    def _ahead(self, source: str) -> Ahead:
        """All calls, where the program defines the function, and no class that the task asks for."""
        defined = re.search(rf"^(?:async\s+)?def\s+{re.escape(self.name)}\b|^{re.escape(self.name)}\s*=", source, re.M)
        if defined or not re.search(rf"^class\s+{_METHODS}\b", source, re.M):
            calls = tuple(Call(self.name, given, {}) for given, _ in self.cases)
            return Ahead(calls, (), in_rounds(calls, [text_of(due) for _, due in self.cases], True))
        return NOTHING

    def _problem(self, program: Program, method: Any, number: int) -> str:
        """`method`: what is called, where the calls are not asked for ahead."""
        given, due = self.cases[number]
        try:
            value = program.answer(number) if method is None else method(*given)
        except RaisedError as error:
            return cut(f"{error.kind}: {error.message}")
        except LostError:
            return program.ended.how if program.ended else "killed"
        return "" if same_value(value, due, self.tolerance) else f"gave {shown(value)}, due {shown(due)}"


def read_tests(tests: Any, function: str | None, tolerance: float | None) -> StreamTests | ValueTests:
    """Tests as a list of {"input", "output"}, one mapping of {"inputs": […], "outputs": […]}, or JSON text of either.

    They call `function` (or what a mapping names `fn_name`) where there is one, unless their `testtype` is "stdin".
    Raises BrokenTestsError.
    """
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError as error:
            raise BrokenTestsError(f"tests is no JSON: {error}") from None
    rows = list(_rows(tests))
    if not rows:
        raise BrokenTestsError("there are none")
    if isinstance(tests, Mapping):
        function = tests.get("fn_name") or function
    kinds = {row.get("testtype") or ("functional" if function else "stdin") for row in rows}
    if kinds == {"stdin"}:
        return StreamTests(tuple((_text(r["input"]), _text(r["output"])) for r in rows), tolerance)
    if kinds != {"functional"} or not function:
        raise BrokenTestsError(f"testtype {sorted(map(str, kinds))} with function {function!r}")
    return ValueTests(function, tuple((_arguments(r["input"]), _json(r["output"])) for r in rows), tolerance)


def _rows(tests: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(tests, Mapping):
        inputs, outputs = tests.get("inputs"), tests.get("outputs")
        if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or len(inputs) != len(outputs):
            raise BrokenTestsError("inputs and outputs are not two lists of one length")
        yield from ({"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True))
        return
    for row in tests if isinstance(tests, Sequence) else [tests]:
        if not (isinstance(row, Mapping) and "input" in row and "output" in row):
            raise BrokenTestsError(f"a test has no input and output: {shown(row)}")
        yield row


def _text(value: Any) -> str:
    """What is written to stdin or due on stdout; a list is its lines."""
    if isinstance(value, str):
        return value
    return "\n".join(map(str, value)) if isinstance(value, Sequence) else str(value)


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _arguments(value: Any) -> tuple[Any, ...]:
    """One JSON value a line, or a list that is the arguments."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, Sequence) else (value,)
    try:
        return tuple(json.loads(line) for line in value.splitlines() if line.strip())
    except ValueError as error:
        raise BrokenTestsError(f"an argument is no JSON: {error}") from None


def same_output(came: str, due: str, tolerance: float | None) -> bool:
    """Whether two texts have the same tokens: the same characters, or for a number that is due with a point or an
    exponent a decimal within `tolerance` x max(1, |due|). None compares the texts themselves, but for space at the end
    of lines and of the text.
    """
    if tolerance is None:
        return _stripped(came) == _stripped(due)
    ours, theirs = came.split(), due.split()
    return len(ours) == len(theirs) and all(_same_token(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))


def _stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_token(came: str, due: str, tolerance: float) -> bool:
    if came == due:
        return True
    if _INTEGER.fullmatch(due) or not (_DECIMAL.fullmatch(due) and _DECIMAL.fullmatch(came)):
        return False
    return _near(float(came), float(due), tolerance)


def _near(came: float, due: float, tolerance: float) -> bool:
    return math.isfinite(due) and abs(came - due) <= tolerance * max(1.0, abs(due))


def same_value(came: Any, due: Any, tolerance: float | None) -> bool:
    """Equality of plain data where a tuple is a list, as in JSON, and a float that is due has the tolerance."""
    if isinstance(due, list):
        return (
            type(came) in (list, tuple)
            and len(came) == len(due)
            and all(same_value(a, b, tolerance) for a, b in zip(came, due, strict=True))
        )
    if isinstance(due, dict):
        return (
            isinstance(came, dict)
            and {str(key) for key in came} == set(due)
            and all(same_value(value, due[str(key)], tolerance) for key, value in came.items())
        )
    if isinstance(due, float) and type(came) in (int, float) and tolerance is not None:
        return came == due or _near(float(came), due, tolerance)
    return bool(type(came) in (bool, int, float, str, type(None)) and came == due)
