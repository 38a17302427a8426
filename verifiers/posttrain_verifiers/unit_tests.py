"""How well is a generated Python unit test written? Read from its syntax tree, never run (RLSQM, 2310.02368)."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

from posttrain.types import Verdict

LONGEST = 50_000
"""Characters; a longer text is no unit test."""
WEIGHTS: Mapping[str, float] = {
    "syntax": 1.0,
    "assertion": 1.0,
    "focal_call": 1.0,
    "no_duplicate_assertion": 1.0,
    "no_conditional": 1.0,
    "no_exception_handling": 1.0,
    "no_print": 1.0,
    "descriptive_name": 1.0,
    "comment": 0.0,
}
"""Every check and its part of the score: what a test needs, then the smells it should not have, then good practice."""
REQUIRED = ("syntax", "assertion", "focal_call")

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*$", re.MULTILINE)
_CONDITIONALS = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.Match)
_HANDLING = (ast.Try, ast.TryStar, ast.Raise)
_CHECKING = re.compile(r"assert\w*|raises|warns|deprecated_call")
_OF_ONE = ("assertTrue", "assertFalse", "assertIsNone", "assertIsNotNone", "assert_")
"""Assertions of one value; what follows is the message."""
_LEAVING = ("skip", "skipTest", "xfail", "exit", "_exit", "fail")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class UnitTest:
    """The weighted share of RLSQM's static checks that a test passes; 0 where one of `required` fails.

    The code is the last fenced block of the completion, which must be closed, or the whole of it. It must hold a
    function `test…`, alone or in a class; a check must hold for all of them. The column `focal` names what is tested,
    `add` or `Cart.add`. Each check is a part:
    `syntax`: it parses and holds a test. `assertion`: one that could fail, in a test that is not skipped: not one of
    constants, nor of a thing and itself. `focal_call`: the focal function is called, and not written anew beside the
    test. `no_duplicate_assertion`: no two alike in one test. `no_conditional`: no `if`, loop or `match`.
    `no_exception_handling`: no `try` or `raise`; `with raises` is an assertion. `no_print`. `descriptive_name`: at
    least `name_words` different words behind `test`. `comment`: one, or a docstring.
    What stands behind a `return` or a skip, under `if False`, or in a function that the test only defines counts for
    nothing.
    """

    version = "1"

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        required: Sequence[str] = REQUIRED,
        name_words: int = 2,
    ) -> None:
        self.weights = {**WEIGHTS, **(weights or {})}
        self.required, self.name_words = tuple(required), name_words
        if unknown := (set(self.weights) | set(self.required)) - set(WEIGHTS):
            raise ValueError(f"no check is called {', '.join(sorted(unknown))}; there is: {', '.join(WEIGHTS)}")
        if min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
            raise ValueError(f"weights are 0 or above, and one is above 0, not {self.weights}")

    def __call__(self, completion: str, *, focal: str) -> Verdict:
        """Score 0 and `unparsable` where there is no Python; no score where the row names no focal function."""
        name = focal.rpartition(".")[2].strip() if isinstance(focal, str) else ""
        if not name.isidentifier():
            return Verdict(None, "unparsable", reason=f"the focal function is {focal!r}")
        parts: dict[str, float | None] = dict.fromkeys(WEIGHTS, 0.0)
        try:
            code = _code(completion)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the test's own, about its escapes
                tree = ast.parse(code)
            tests = list(_tests(tree))
            if not tests:
                return Verdict(0.0, parts=parts, reason="there is no function test…")
            parts["syntax"] = 1.0
            parts |= self._checks(tree, tests, name)
        except (SyntaxError, ValueError) as error:
            return Verdict(0.0, "unparsable", parts, reason=f"no Python: {error!s:.120}")
        except (RecursionError, MemoryError):
            return Verdict(0.0, "unparsable", dict.fromkeys(WEIGHTS, 0.0), reason="nested too deeply")
        parts["comment"] = float(bool(re.search(r"(?m)^[^'\"#\n]*#\s*\w", code)) or any(map(ast.get_docstring, tests)))
        failed = [check for check, value in parts.items() if not value]
        total = sum(self.weights.values())
        score = sum(self.weights[check] for check in WEIGHTS if check not in failed) / total
        if set(failed) & set(self.required):
            score = 0.0
        return Verdict(score, parts=parts, reason=f"failed: {', '.join(failed)}" if failed else "")

    def _checks(self, tree: ast.Module, tests: list[Function], focal: str) -> dict[str, float | None]:
        bodies = [list(_reached(test)) for test in tests]
        written = any(focal in _names_made(node) for node in ast.walk(tree))
        checks: dict[str, Callable[[Function, list[ast.AST]], bool]] = {
            "assertion": lambda test, body: not _skipped(test) and any(_could_fail(node) for node in body),
            "focal_call": lambda _, body: not written and any(_called(node) == focal for node in body),
            "no_duplicate_assertion": lambda _, body: not _duplicates(body),
            "no_conditional": lambda _, body: not any(isinstance(node, _CONDITIONALS) for node in body),
            "no_exception_handling": lambda _, body: not any(isinstance(node, _HANDLING) for node in body),
            "no_print": lambda _, body: not any(_called(node) == "print" for node in body),
            "descriptive_name": lambda test, _: len(_words(test.name)) >= self.name_words,
        }
        return {
            name: float(all(holds(test, body) for test, body in zip(tests, bodies, strict=True)))
            for name, holds in checks.items()
        }


def _code(completion: str) -> str:
    """The last block, or the whole text where there is none. Raises ValueError for too long a text or an open block."""
    if len(completion) > LONGEST:
        raise ValueError(f"{len(completion)} characters")
    marks = list(_FENCE.finditer(completion))
    if len(marks) % 2:
        raise ValueError("a block is not closed")
    return completion[marks[-2].end() : marks[-1].start()] if marks else completion


def _tests(tree: ast.Module) -> Iterator[Function]:
    """The test functions of the module and of its classes."""
    for node in tree.body:
        for member in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(member, Function) and member.name.startswith("test"):
                yield member


def _reached(test: Function) -> Iterator[ast.AST]:
    """What a call of the test may run: nothing behind a return, nothing of functions and classes that it defines."""
    waiting: list[ast.AST] = list(_until_end(test.body))
    while waiting:
        node = waiting.pop()
        yield node
        never = isinstance(node, (ast.If, ast.While)) and isinstance(node.test, ast.Constant) and not node.test.value
        for name, value in ast.iter_fields(node):
            if name == "body" and never:
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                waiting += _until_end(value)
                continue
            children = value if isinstance(value, list) else [value]
            # A lambda that is handed to a call may be run, as by `assertRaises`; one that is kept is not.
            waiting += [
                child
                for child in children
                if isinstance(child, ast.AST) and (isinstance(node, ast.Call) or not isinstance(child, ast.Lambda))
            ]


def _until_end(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement
        ends = isinstance(statement, ast.Expr) and _called(statement.value) in _LEAVING
        if ends or isinstance(statement, (ast.Return, ast.Break, ast.Continue, ast.Raise)):
            return


def _skipped(test: Function) -> bool:
    names = [getattr(n, "attr", getattr(n, "id", "")) for d in test.decorator_list for n in ast.walk(d)]
    return any(re.search(r"skip|xfail|expectedFailure", name) for name in names)


def _called(node: ast.AST) -> str:
    """The last name of what a call calls, or nothing."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _names_made(node: ast.AST) -> list[str]:
    """Names that a statement gives to something new; an import gives none."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
        return [node.id if isinstance(node, ast.Name) else node.attr]
    return []


def _could_fail(node: ast.AST) -> bool:
    """Whether this is an assertion whose outcome is not plain from itself."""
    if isinstance(node, ast.Assert):
        return _open([node.test])
    name = _called(node)
    if not isinstance(node, ast.Call) or not _CHECKING.fullmatch(name):
        return False
    if not node.args or not name.startswith("assert"):
        # `mock.assert_called_once()`, `raises(ValueError)`, `assertEqual(first=…)`.
        return isinstance(node.func, ast.Attribute) or bool(node.args)
    return _open(node.args[:1] if name in _OF_ONE else node.args[:2])


def _open(values: Sequence[ast.expr]) -> bool:
    """Whether values have a name or a call in them and are not one thing compared with itself."""
    sides = list(values)
    if len(values) == 1:
        (only,) = values
        # True whatever they hold, like a message in brackets with the condition.
        if isinstance(only, (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Lambda, ast.JoinedStr)):
            return False
        if isinstance(only, ast.BoolOp) and isinstance(only.op, ast.Or):
            return all(_open([side]) for side in only.values)
        if isinstance(only, ast.Compare):
            sides = [only.left, *only.comparators]
    if len(sides) > 1 and len({ast.dump(side) for side in sides}) == 1:
        return False
    return any(isinstance(part, (ast.Name, ast.Call)) for side in sides for part in ast.walk(side))


def _duplicates(body: list[ast.AST]) -> bool:
    found = [ast.dump(node) for node in body if isinstance(node, ast.Assert)]
    found += [ast.dump(node) for node in body if _called(node).startswith("assert")]
    return len(set(found)) < len(found)


def _words(name: str) -> set[str]:
    """The different words of a name behind `test`; numbers and single letters are none."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removeprefix("test"))
    return {word for word in spaced.lower().strip("_").split("_") if len(word) > 1 and not word.isdigit()}
