"""Calls of tests that can be asked for before the tests run: their arguments are constants, and nothing decides whether
they are made, or in which order.

A statement that only a call with computed arguments keeps from that, a loop, a handler or a function of the tests end
them. A program learns the arguments of calls that are asked for together before it answers the first, and so a call
waits for the answers to all others where one of its arguments is what one of them is due.
"""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
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
_PLAIN = (
    *(ast.Compare, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Constant, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)
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

    def replaced(self, node: ast.stmt) -> tuple[ast.stmt, list[Call], set[str]] | None:
        """The statement with numbers in the place of its calls, these, and constants that may be due; None where it
        makes calls that cannot be asked for ahead, or may.
        """
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
            return node, [], set()
        if not isinstance(node, ast.Assert | ast.Expr | ast.Assign) or not self.is_harmless(node):
            return None
        node = copy.deepcopy(node)
        where: ast.expr = node.test if isinstance(node, ast.Assert) else node.value
        swap = _Swap(self.theirs, len(self.calls))
        try:
            changed = swap.visit(where)
        except ValueError:
            return None
        if isinstance(node, ast.Assert):
            # Its message is told to nobody, and may call the program.
            node.test, node.msg = changed, None
        else:
            node.value = changed
        words = {text for value in _constants(changed) for text in text_of(value)}
        return ast.fix_missing_locations(node), swap.calls, words

    def is_harmless(self, node: ast.Assert | ast.Expr | ast.Assign) -> bool:
        if isinstance(node, ast.Assign) and not all(isinstance(target, ast.Name) for target in node.targets):
            return False
        return self.is_straight(node.test if isinstance(node, ast.Assert) else node.value)

    def is_straight(self, node: ast.AST) -> bool:
        """Whether all of it is evaluated, once, and calls nothing that could call the program but the program."""
        if isinstance(node, ast.Name):
            return node.id not in self.theirs
        if isinstance(node, ast.Attribute):
            return isinstance(node.value, ast.Name) and node.value.id in self.free
        if isinstance(node, ast.Call):
            target = node.func
            ours = isinstance(target, ast.Name) and (target.id in self.theirs or target.id in self.free)
            if not ours and not (isinstance(target, ast.Attribute) and self.is_straight(target)):
                return False
            return all(map(self.is_straight, [*node.args, *node.keywords]))
        if isinstance(node, ast.Compare) and len(node.ops) > 1:
            return False
        return isinstance(node, _PLAIN) and all(map(self.is_straight, ast.iter_child_nodes(node)))


class _Swap(ast.NodeTransformer):
    """Puts numbers in the place of calls with constant arguments; ValueError for any other."""

    def __init__(self, theirs: Mapping[str, str], first: int) -> None:
        self.theirs, self.first = theirs, first
        self.calls: list[Call] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not (isinstance(node.func, ast.Name) and node.func.id in self.theirs):
            return self.generic_visit(node)
        args = tuple(map(_value, node.args))
        keywords = {word.arg: _value(word.value) for word in node.keywords if word.arg}
        if len(keywords) < len(node.keywords):
            raise ValueError("two words of one name, or a mapping")
        self.calls.append(Call(self.theirs[node.func.id], args, keywords))
        number = ast.Constant(self.first + len(self.calls) - 1)
        return ast.Call(ast.Name(ANSWER, ast.Load()), [number], [])


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


def _constants(node: ast.AST) -> Iterator[Any]:
    """The largest parts of a statement that are constants."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == ANSWER:
        return
    if isinstance(node, ast.expr):
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
        else:
            yield value
            return
    for inner in ast.iter_child_nodes(node):
        yield from _constants(inner)
