"""Broken variants of a program that is right: one for each kind of mistake that its source has room for.

A variant may still be right, where the mistake is in what the program never needs; most are wrong.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator

Function = ast.FunctionDef
Mistake = Callable[[Function], bool]
"""Makes the mistake in a function at the first place for it; False where there is none."""

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def wrong_constant(function: Function) -> bool:
    """Another number, word or truth value; one that is returned where there is one."""
    returned = [inner for n in _inside(function) if isinstance(n, ast.Return) for inner in ast.walk(n)]
    for node in [*returned, *_inside(function)]:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, str, bool):
            value = node.value
            node.value = (not value) if isinstance(value, bool) else value + ("x" if isinstance(value, str) else 7)
            return True
    return False


def early_return(function: Function) -> bool:
    """The last return within the first loop, after one round; without a loop, nothing at once."""
    returns = [n for n in function.body if isinstance(n, ast.Return)]
    loop = next((n for n in function.body if isinstance(n, ast.For | ast.While)), None)
    if loop is not None and returns:
        loop.body.append(copy.deepcopy(returns[-1]))
    else:
        function.body.insert(0, ast.Return(ast.Constant(None)))
    return True


def off_by_one(function: Function) -> bool:
    """An index, a bound of a slice, a step of one, or else the end of a range, one too far or too near."""
    return any(moves(node) for moves in (_moved_place, _moved_step, _moved_end) for node in _inside(function))


def _moved_place(node: ast.AST) -> bool:
    if isinstance(node, ast.Slice) and (bound := node.lower or node.upper):
        moved = ast.BinOp(bound, ast.Add(), ast.Constant(1))
        node.lower, node.upper = (moved, node.upper) if node.lower else (None, moved)
        return True
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.Name | ast.BinOp)):
        return False
    if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return False
    node.slice = ast.BinOp(node.slice, ast.Add(), ast.Constant(1))
    return True


def _moved_step(node: ast.AST) -> bool:
    if not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub)):
        return False
    step = node.right if isinstance(node, ast.BinOp) else node.value
    if isinstance(step, ast.Constant) and step.value == 1:
        step.value = 2
        return True
    return False


def _moved_end(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and node.args:
        at = min(1, len(node.args) - 1)
        node.args[at] = ast.BinOp(node.args[at], ast.Sub(), ast.Constant(1))
        return True
    return False


def swapped_comparison(function: Function) -> bool:
    """A comparison that holds where it should not."""
    for node in _inside(function):
        if isinstance(node, ast.Compare):
            node.ops[0] = _OPPOSITE[type(node.ops[0])]()
            return True
    return False


def dropped_statement(function: Function) -> bool:
    """The first statement that changes something, left out."""
    changes = (ast.Assign, ast.AugAssign, ast.Expr)
    blocks = [b for n in ast.walk(function) for b in (getattr(n, "body", None), getattr(n, "orelse", None))]
    found = [
        (node.lineno, block, i)
        for block in blocks
        if isinstance(block, list)
        for i, node in enumerate(block)
        if isinstance(node, changes) and not isinstance(getattr(node, "value", None), ast.Constant)
    ]
    if not found:
        return False
    _, block, i = min(found, key=lambda place: place[0])
    block[i] = ast.Pass()
    return True


MISTAKES: dict[str, Mistake] = {
    "wrong constant": wrong_constant,
    "early return": early_return,
    "off by one": off_by_one,
    "swapped comparison": swapped_comparison,
    "dropped statement": dropped_statement,
}


def variants(source: str, name: str) -> Iterator[tuple[str, str]]:
    """(kind, source) for each mistake that changes the function `name`, or the last one where none has that name."""
    original = ast.unparse(ast.parse(source))
    for kind, mistake in MISTAKES.items():
        tree = ast.parse(source)
        functions = [n for n in ast.walk(tree) if isinstance(n, Function)]
        named = [n for n in functions if n.name == name] or functions
        if not named or not mistake(named[-1]):
            continue
        broken = ast.unparse(ast.fix_missing_locations(tree))
        if broken != original:
            yield kind, broken


def _inside(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function's body from the last to the first, without its docstring."""
    first = function.body[0]
    words = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    waiting: list[ast.AST] = [*function.body[words:]]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += ast.iter_child_nodes(node)
