"""Calls of tests that can be asked for before the tests run: their arguments are constants, and nothing decides whether
they are made, or in which order.

A statement that only a call with computed arguments keeps from that, a loop, a handler or a function of the tests end
them. A program learns the arguments of calls that are asked for together before it answers the first, and so a call
waits for the answers to all others where one of its arguments is what one of them is due.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from posttrain_verifiers.sandbox import Calls

ANSWER = "__answer__"
"""What a statement calls with a call's number, in the place of that call."""
_OPERATIONS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_PLAIN = (ast.Compare, ast.BinOp, ast.UnaryOp)
"""Nodes of which every part is evaluated, in the order in which `ast` has them, if there is but one comparison."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the tests make it."""

    name: str
    args: tuple[Any, ...]
    keywords: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ahead:
    """Calls by number, the statements that stand on their answers, and what is asked for together."""

    calls: tuple[Call, ...] = ()
    statements: tuple[ast.stmt, ...] = ()
    """In the place of the first so many of the tests."""
    rounds: Mapping[int, Calls] = field(default_factory=dict)
    """By the number of its first call."""

    @classmethod
    def of(cls, nodes: Sequence[ast.stmt], theirs: Mapping[str, str], free: Collection[str]) -> Self:
        """`theirs`: the program's names by those that the tests call them by; `free`: names of built-in functions and
        modules, which no test binds.
        """
        finder = _Finder(theirs, free)
        statements: list[ast.stmt] = []
        due: list[set[str]] = []
        for node in nodes:
            found = finder.replaced(node)
            if found is None:
                break
            statement, calls, words = found
            finder.calls += calls
            due += [words] * len(calls)
            statements.append(statement)
        try:
            rounds = in_rounds(finder.calls, due, len(statements) == len(nodes))
        except TypeError:
            return cls()
        return cls(tuple(finder.calls), tuple(statements), rounds)


NOTHING = Ahead()


def in_rounds(calls: Sequence[Call], due: Sequence[Collection[str]], last: bool) -> dict[int, Calls]:
    """Calls that may be asked for together, by the number of the first. `due`: texts of what each may have to give;
    `last`: nothing is asked for after them.
    """
    starts = [0]
    known: set[str] = set()
    for number, call in enumerate(calls):
        if known & {repr(value) for value in (*call.args, *call.keywords.values())}:
            starts.append(number)
            known.clear()
        known |= set(due[number])
    ends = [*starts[1:], len(calls)]
    return {
        a: Calls.of([(call.name, call.args, call.keywords) for call in calls[a:b]], last and b == len(calls))
        for a, b in zip(starts, ends, strict=True)
    }


def text_of(value: Any) -> list[str]:
    """What a value that is due is known by; nothing for one that every program may give by chance."""
    return [] if value is None or type(value) is bool else [repr(value)]


class _Finder:
    """Replaces calls of the program in one statement after the other."""

    def __init__(self, theirs: Mapping[str, str], free: Collection[str]) -> None:
        self.theirs, self.free = theirs, free
        self.calls: list[Call] = []
        self.found: list[Call] = []
        self.due: set[str] = set()
        """Of the statement that is looked at: its calls, and constants that may be due."""

    def replaced(self, node: ast.stmt) -> tuple[ast.stmt, list[Call], set[str]] | None:
        """The statement with numbers in the place of its calls, these, and constants that may be due; None where it
        makes calls that cannot be asked for ahead, or may.
        """
        self.found, self.due = [], set()
        try:
            return self.statement(node), self.found, self.due
        except (ValueError, TypeError, RecursionError, MemoryError):
            return None

    def statement(self, node: ast.stmt) -> ast.stmt:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
            return node
        if isinstance(node, ast.Assert):
            # Its message is told to nobody, and may call the program.
            return ast.copy_location(ast.Assert(self.straight(node.test), None), node)
        if isinstance(node, ast.Expr):
            return ast.copy_location(ast.Expr(self.straight(node.value)), node)
        if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            return ast.copy_location(ast.Assign(node.targets, self.straight(node.value), None), node)
        raise ValueError("another statement")

    def straight(self, node: Any) -> Any:
        """The node with numbers in the place of calls. Raises ValueError unless all of it is evaluated, once, and calls
        nothing that could call the program but the program.
        """
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Constant | ast.List | ast.Tuple | ast.Set | ast.Dict):
            try:
                self.due.update(text_of(ast.literal_eval(node)))
            except ValueError:
                return self.parts(node)
            return node
        if isinstance(node, ast.Name):
            if node.id in self.theirs:
                raise ValueError("the program's name, not called")
            return node
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in self.free):
                raise ValueError("part of what may be the program's")
            return node
        if not isinstance(node, _PLAIN) or (isinstance(node, ast.Compare) and len(node.ops) > 1):
            raise ValueError("a part that may not be evaluated")
        return self.parts(node)

    def parts(self, node: Any) -> Any:
        """A copy with every part seen to."""
        made = type(node)()
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                value = [self.straight(part) if isinstance(part, ast.expr) else part for part in value]
            elif isinstance(value, ast.expr):
                value = self.straight(value)
            setattr(made, name, value)
        return ast.copy_location(made, node)

    def call(self, node: ast.Call) -> ast.expr:
        target = node.func
        name = target.id if isinstance(target, ast.Name) else ""
        if name not in self.theirs:
            if name not in self.free and not isinstance(target, ast.Attribute):
                raise ValueError("a function of the tests")
            words = [ast.keyword(word.arg, self.straight(word.value)) for word in node.keywords]
            made = ast.Call(self.straight(target), [self.straight(part) for part in node.args], words)
            return ast.fix_missing_locations(ast.copy_location(made, node))
        args = tuple(map(_value, node.args))
        keywords = {word.arg: _value(word.value) for word in node.keywords if word.arg}
        if len(keywords) < len(node.keywords):
            raise ValueError("a mapping of words")
        self.found.append(Call(self.theirs[name], args, keywords))
        number = ast.Constant(len(self.calls) + len(self.found) - 1)
        return ast.fix_missing_locations(ast.copy_location(ast.Call(ast.Name(ANSWER, ast.Load()), [number], []), node))


def _value(node: ast.expr) -> Any:
    """The value of an expression of constants. Raises ValueError for any other."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATIONS:
            raise ValueError("not constant") from None
    try:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    except (TypeError, ArithmeticError) as error:
        raise ValueError(str(error)) from None
