"""Does a completion's program pass its tests? It runs in a sandbox that never sees what is due."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrain.errors import DataError
from posttrain.types import Verdict
from posttrain_verifiers.programs.calls import CallTests, assert_tests, check_tests
from posttrain_verifiers.programs.extraction import NoProgramError
from posttrain_verifiers.programs.outcome import BrokenTestsError
from posttrain_verifiers.programs.streams import StreamTests, ValueTests, read_tests
from posttrain_verifiers.sandbox import Limits, Sandbox, SandboxUnavailableError

Tests = CallTests | StreamTests | ValueTests


class Code:
    """1 where the program passes every test of its row, else 0; with mode `fraction`, the share that it passes.

    The row's columns say what a test is:

    - `test` and `entry_point` (HumanEval): `test` defines `check(candidate)`; the completion continues `prompt`, or is
      a whole program, bare or fenced. Each statement of `check` that is no preparation is one test, a loop too.
    - `test` alone: a script of tests. `test_list` with `test_setup_code` and `test_imports` (MBPP): assert statements;
      `challenge` adds those of `challenge_test_list`.
    - `tests` (competitions, LiveCodeBench): {"input", "output"} pairs, {"inputs", "outputs"}, or JSON text of either.
      Each is a run of the program with that stdin, or, where `fn_name` or `metadata` names a function, a call with the
      input's JSON lines as arguments.

    Test code runs here and the program in a sandbox; between them go plain data, so a program learns its arguments and
    nothing else. An argument that it changes is its own copy: a test that looks for the change fails. An object of its
    own type can be handed back to it, and equals only itself.

    Every failure of the program, hanging and crashing too, is a 0 with a reason. Tests that cannot be run give no
    score. Each grading worker has a sandbox, so `grading.workers` programs run at once; `timeout` must lie below
    `grading.timeout`, or a hanging program is counted as ungraded.
    """

    version = "1"
    memory_limit = None
    """The sandbox limits its programs."""

    def __init__(
        self,
        mode: Literal["all", "fraction"] = "all",
        timeout: float = 5.0,
        memory: int = 512 << 20,
        tolerance: float | None = 1e-6,
        challenge: bool = False,
        language: str = "python",
    ) -> None:
        """`timeout`: seconds for all tests of a program, loading included. `memory`: bytes. `tolerance`: of a decimal
        on stdout or in JSON, relative above 1 and absolute below; None compares stdout exactly.
        """
        if mode not in ("all", "fraction"):
            raise ValueError(f"mode is 'all' or 'fraction', not {mode!r}")
        if language != "python":
            raise ValueError(f"language is 'python', not {language!r}: no other is there yet")
        if not timeout > 0 or not memory > 0:
            raise ValueError(f"timeout and memory are above 0; timeout is {timeout}, memory {memory}")
        if tolerance is not None and not 0 <= tolerance < 1:
            raise ValueError(f"tolerance lies in [0, 1) or is None, not {tolerance}")
        self.mode, self.tolerance, self.challenge, self.language = mode, tolerance, challenge, language
        self.limits = Limits(seconds=timeout, memory=memory)
        self._sandbox: Sandbox | None = None

    def prepare(self) -> None:
        """Start the sandbox. Raises SandboxUnavailableError where programs cannot be kept apart."""
        if self._sandbox is None:
            self._sandbox = Sandbox(self.language, self.limits)

    def close(self) -> None:
        """End the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()
        self._sandbox = None

    def __call__(self, completion: str, **columns: Any) -> Verdict:
        """Status `unparsable`: with score 0 the completion holds no program, without one the tests cannot be run.
        Raises DataError where no column holds tests, SandboxUnavailableError where the sandbox failed.
        """
        try:
            tests = self._tests(columns)
        except BrokenTestsError as error:
            return Verdict(None, "unparsable", reason=f"the tests cannot be run: {error}")
        try:
            source = tests.program(completion)
        except NoProgramError as error:
            return Verdict(0.0, "unparsable", reason=f"no program found: {error}")
        self.prepare()
        assert self._sandbox is not None
        try:
            outcome = tests.run(self._sandbox, source, self.limits, self.mode == "all")
        except BrokenTestsError as error:
            return Verdict(None, "unparsable", reason=f"the tests cannot be run: {error}")
        except SandboxUnavailableError:
            self.close()
            raise
        # On a busy machine a right program may be late.
        lasting = "timeout" not in outcome.reason
        every = float(outcome.passed == outcome.total)
        if self.mode == "all":
            said = outcome.reason or f"passed {outcome.total} of {outcome.total}"
            return Verdict(every, reason=said, lasting=lasting)
        passed = f"passed {outcome.passed} of {outcome.total}"
        reason = f"{passed}; {outcome.reason}" if outcome.reason else passed
        return Verdict(outcome.passed / outcome.total, "ok", {"all": every}, reason, lasting=lasting)

    def _tests(self, columns: Mapping[str, Any]) -> Tests:
        if isinstance(test := columns.get("test"), str):
            entry_point, prompt = columns.get("entry_point"), columns.get("prompt")
            if entry_point:
                return check_tests(prompt if isinstance(prompt, str) else "", entry_point, test)
            return assert_tests((test,), columns.get("test_setup_code") or "", _texts(columns.get("test_imports")))
        if columns.get("tests") is not None:
            return read_tests(columns["tests"], _function(columns), self.tolerance)
        if columns.get("test_list") is not None:
            tests = _texts(columns["test_list"])
            if self.challenge:
                tests += _texts(columns.get("challenge_test_list"))
            return assert_tests(tests, columns.get("test_setup_code") or "", _texts(columns.get("test_imports")))
        raise DataError(
            f"Code finds no tests in the columns {', '.join(sorted(columns)) or '(none)'}: it reads test with "
            f"entry_point, test, test_list or tests. Name the right one in the data block: columns: {{tests: ...}}"
        )


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else (str(value),)


def _function(columns: Mapping[str, Any]) -> str | None:
    """The function that tests call: `fn_name`, or `func_name` of `metadata`, which may be JSON text."""
    metadata = columns.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            metadata = None
    inner = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return columns.get("fn_name") or inner or None
