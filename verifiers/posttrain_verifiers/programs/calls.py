"""Tests that call a program's functions: HumanEval's `check(candidate)`, MBPP's assert statements, plain test scripts.

The test code is the data set's and runs here, in the grading process; what only the program defines stands in it as a
proxy. So expected values never reach the program, and every comparison is between plain data.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from posttrain.errors import PosttrainError
from posttrain_verifiers.programs import extraction
from posttrain_verifiers.programs.ahead import ANSWER, NOTHING, Ahead
from posttrain_verifiers.programs.names import SCOPES, Names
from posttrain_verifiers.programs.outcome import BrokenTestsError, Outcome, cut
from posttrain_verifiers.programs.proxies import LostError, Named, Program, RaisedError
from posttrain_verifiers.programs.watch import TooLongError, busy_for
from posttrain_verifiers.sandbox import Calls, Limits, ProgramEndedError, ProgramError, Sandbox

_CANDIDATE = "candidate"
_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of the tests."""

    code: CodeType
    node: ast.stmt
    counts: bool
    """Whether it is a test; the others prepare tests."""
    names: Names

    @property
    def text(self) -> str:
        return cut(ast.unparse(self.node))

    @property
    def due(self) -> str:
        """What an equality compares with, as written; empty for other statements."""
        test = self.node.test if isinstance(self.node, ast.Assert) else None
        if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.Eq) or len(test.ops) > 1:
            return ""
        return f", due {cut(ast.unparse(test.comparators[0]))}"


@dataclass(frozen=True, slots=True)
class CallTests:
    """Statements to run in order, and where their names come from."""

    trusted: tuple[CodeType, ...]
    """Code of the data set that comes first: a prompt's functions, set-up."""
    statements: tuple[Statement, ...]
    called: frozenset[str]
    """The program's names that the tests only call or look into."""
    fetched: frozenset[str]
    """The program's names whose value the tests use."""
    modules: frozenset[str]
    """Of the standard library, named by tests that do not import them."""
    ahead: Ahead = NOTHING
    """The calls of the first statements."""
    candidate: str = ""
    """What `candidate` stands for."""
    prompt: str = ""
    head: str = ""
    """Imports of the tests, on which a program may rely."""

    @property
    def total(self) -> int:
        return sum(s.counts for s in self.statements)

    def program(self, completion: str) -> str:
        """The source to run. Raises extraction.NoProgramError."""
        if self.prompt:
            return extraction.continued(completion, self.prompt, self.candidate)
        return extraction.module(completion, self.called | self.fetched, self.head)

    def run(self, sandbox: Sandbox, source: str, limits: Limits, stop: bool) -> Outcome:
        """Raises BrokenTestsError where the tests are at fault; ends at the first failure where `stop` is set."""
        try:
            asked = self.ahead.rounds.get(0, Calls())
            with sandbox.open(source, limits, asked) as session, busy_for(limits.seconds):
                return self._run(Program(session, self.ahead), stop)
        except ProgramError as error:
            return Outcome(0, self.total, cut(f"the program does not load: {error.kind}: {error.message}"))
        except ProgramEndedError as error:
            return Outcome(0, self.total, f"{error.ended.how} while the program loaded")
        except TooLongError:
            return Outcome(0, self.total, "the tests did not come to an end")

    def _run(self, program: Program, stop: bool) -> Outcome:
        space: dict[str, Any] = {"__builtins__": builtins, "__name__": "tests"}
        passed, first, failures, tainted = 0, "", 0, set[str]()
        problem = self._prepared(program, space)
        if problem:
            return Outcome(0, self.total, problem)
        for statement in self.statements:
            before = program.answers
            stands = statement.names.read & tainted
            problem = _failure(program, statement, space, not stands)
            if program.answers > before or stands:
                tainted |= statement.names.bound
            passed += statement.counts and not problem
            failures += bool(problem)
            if problem and not first:
                number = passed + failures
                first = f"test {number} of {self.total}, {statement.text!r}: {problem}"
            if problem and (stop or program.ended is not None or not statement.counts):
                break
        return Outcome(passed, self.total, first)

    def _prepared(self, program: Program, space: dict[str, Any]) -> str:
        """Fill the tests' names; returns what the program did wrong meanwhile, if it did."""
        space |= {name: importlib.import_module(name) for name in self.modules}
        space |= {name: Named(program, name) for name in self.called} | {ANSWER: program.answer}
        try:
            for code in self.trusted:
                exec(code, space)
                # The prompt's own stub of the function gives way to the program's.
                space |= {name: Named(program, name) for name in self.called & {self.candidate}}
            space |= {name: program.get(name) for name in self.fetched}
        except LostError:
            return _lost(program)
        except TooLongError:
            return "the tests' set-up did not come to an end"
        except RaisedError as error:
            return cut(f"{error.kind}: {error.message}")
        except PosttrainError:
            raise  # the sandbox failed, nobody is to blame
        except (Exception, SystemExit) as error:
            if program.answers:
                return cut(f"the set-up cannot use what came: {type(error).__name__}: {error}")
            raise BrokenTestsError(f"their set-up raises {type(error).__name__}: {error}") from None
        if self.candidate:
            space[_CANDIDATE] = Named(program, self.candidate)
        return ""


def _failure(program: Program, statement: Statement, space: dict[str, Any], alone: bool) -> str:
    """Why a statement fails, empty where it does not. `alone`: it stands on no earlier answer of the program's."""
    before = program.answers
    try:
        exec(statement.code, space)
    except RaisedError as error:
        return cut(f"{error.kind}: {error.message}")
    except AssertionError:
        return program.said() + statement.due
    except TooLongError:
        return f"the test did not come to an end; {program.said()}"
    except LostError:
        pass
    except PosttrainError:
        raise  # the sandbox failed, nobody is to blame
    except (Exception, SystemExit) as error:
        fault = f"{type(error).__name__}: {error}"
        if isinstance(error, NameError | ImportError) or (alone and program.answers == before):
            raise BrokenTestsError(cut(f"{statement.text!r} raises {fault}")) from None
        return cut(f"the test cannot use what came, {fault}; {program.said()}")
    return _lost(program) if program.ended is not None else ""


def _lost(program: Program) -> str:
    how = program.ended.how if program.ended else "killed"
    code = f" with code {program.ended.code}" if program.ended and how == "exited" else ""
    return f"{how}{code} in {program.said().partition(' gave ')[0]}"


@functools.lru_cache(maxsize=256)
def check_tests(prompt: str, entry_point: str, test: str) -> CallTests:
    """HumanEval's: `test` defines `check(candidate)`, whose statements are the tests. Raises BrokenTestsError."""
    body = _parsed(test, "test")
    check = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "check"), None)
    if check is None or len(check.args.args) != 1:
        raise BrokenTestsError("test defines no check(candidate)")
    before = [n for n in body if n is not check and not _calls(n, "check")]
    statements: Sequence[ast.stmt] = check.body
    leaves = "return" in test or "yield" in test
    if check.args.args[0].arg != _CANDIDATE or (leaves and any(map(_leaves, _own(check)))):
        before, statements = [*before, check], _parsed(f"check({_CANDIDATE})", "test")
    trusted = [*_trusted_prompt(prompt), *before]
    return _tests(trusted, statements, frozenset({entry_point}), candidate=entry_point, prompt=prompt)


@functools.lru_cache(maxsize=256)
def assert_tests(tests: tuple[str, ...], setup: str = "", imports: tuple[str, ...] = ()) -> CallTests:
    """MBPP's: each text is one or more assert statements, or a whole script of tests. Raises BrokenTestsError."""
    before = [*(n for text in imports for n in _parsed(text, "test_imports")), *_parsed(setup, "test_setup_code")]
    statements = [n for text in tests for n in _parsed(text, "test_list")]
    return _tests(before, statements, frozenset(), head=_imports([*before, *statements]))


def _imports(nodes: Sequence[ast.stmt]) -> str:
    """The imports among them for a program, which need not have every package that the tests have."""
    found = [ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    return "".join(f"try:\n    {line}\nexcept ImportError:\n    pass\n" for line in found)


def _tests(
    trusted: Sequence[ast.stmt], statements: Sequence[ast.stmt], known: frozenset[str], **fields: Any
) -> CallTests:
    """The tests compiled, every name in them given its source. `known` is of the program whatever else says so."""
    named = [(node, Names.of(node)) for node in statements]
    if not any(_counts(node) for node in statements):
        raise BrokenTestsError("there are none")
    tests = Names.union(names for _, names in named)
    before = [(node, Names.of(node)) for node in trusted]
    whole = Names.union([tests, *(names for _, names in before)])
    bound = whole.bound | {_CANDIDATE} if fields.get("candidate") else whole.bound
    free = whole.read - bound - _BUILTINS
    modules = free & (whole.bases - whole.called - whole.values) & sys.stdlib_module_names - known
    theirs = (free - modules) | known
    if not theirs:
        # A task may ask for a function that is called like a built-in one: then the tests call no other.
        theirs = tests.called - bound
        if len(theirs) != 1:
            raise BrokenTestsError("they name nothing that the program could define")
    fetched = whole.values & theirs - known
    own = {name: name for name in theirs} | ({_CANDIDATE: fields["candidate"]} if fields.get("candidate") else {})
    # What comes before the tests may not call the program after it was asked for theirs.
    early = any(names.read & set(theirs) for node, names in before if not isinstance(node, SCOPES))
    ahead = NOTHING if fetched or early else Ahead.of(statements, own, (_BUILTINS - whole.bound - set(own)) | modules)
    run = [*ahead.statements, *statements[len(ahead.statements) :]]
    compiled = tuple(
        Statement(_compiled(code), node, _counts(node), names) for code, (node, names) in zip(run, named, strict=True)
    )
    codes, called = tuple(map(_compiled, trusted)), frozenset(theirs - fetched)
    return CallTests(codes, compiled, called, frozenset(fetched), frozenset(modules), ahead, **fields)


def _counts(node: ast.stmt) -> bool:
    """Whether a statement is a test; others prepare tests."""
    prepares = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Import | ast.ImportFrom | ast.Pass)
    words = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return not (prepares or words or isinstance(node, SCOPES))


def _parsed(source: str, column: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise BrokenTestsError(f"{column} is not Python: {error}") from None


def _compiled(node: ast.stmt) -> CodeType:
    try:
        return compile(ast.Module([node], []), "<tests>", "exec")
    except (SyntaxError, ValueError) as error:
        raise BrokenTestsError(f"they are not Python: {error}") from None


def _trusted_prompt(prompt: str) -> list[ast.stmt]:
    """The prompt as code of its own: a function of which only the docstring stands is one."""
    for source in (prompt, prompt.rstrip() + "\n    pass\n", prompt.rstrip() + " pass\n"):
        try:
            return ast.parse(source).body
        except SyntaxError:
            continue
    return []


def _calls(node: ast.stmt, name: str) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == name


def _leaves(node: ast.AST) -> bool:
    return isinstance(node, ast.Return | ast.Yield)


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function that are not in another function."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, SCOPES):
            waiting += ast.iter_child_nodes(node)
