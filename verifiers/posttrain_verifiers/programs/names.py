"""Which names a piece of test code reads, how, and which it binds."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

_NAMELESS = (ast.Constant, ast.expr_context, ast.operator, ast.unaryop)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(slots=True)
class Names:
    """Scopes are not told apart: a name that is bound anywhere is bound."""

    called: set[str] = field(default_factory=set)
    bases: set[str] = field(default_factory=set)
    """Read for one of their attributes."""
    values: set[str] = field(default_factory=set)
    """Read in any other way."""
    bound: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, node: ast.AST) -> Self:
        """One walk, parents before children, so that a name's role is known when it is met."""
        found = cls()
        roles: dict[int, set[str]] = {}
        for inner in _walked(node):
            if isinstance(inner, ast.Name):
                found._add(inner, roles)
            elif isinstance(inner, ast.Call):
                roles[id(inner.func)] = found.called
            elif isinstance(inner, ast.Attribute):
                roles[id(inner.value)] = found.bases
            elif isinstance(inner, SCOPES):
                found.bound.add(inner.name)
            elif isinstance(inner, ast.arg):
                found.bound.add(inner.arg)
            elif isinstance(inner, ast.Import | ast.ImportFrom):
                found.bound |= {(alias.asname or alias.name).partition(".")[0] for alias in inner.names}
            elif isinstance(inner, ast.ExceptHandler) and inner.name:
                found.bound.add(inner.name)
        return found

    @classmethod
    def union(cls, parts: Iterable[Names]) -> Self:
        whole = cls()
        for part in parts:
            for name in cls.__slots__:
                getattr(whole, name).update(getattr(part, name))
        return whole

    @property
    def read(self) -> set[str]:
        return self.called | self.bases | self.values

    def _add(self, name: ast.Name, roles: dict[int, set[str]]) -> None:
        where = roles.get(id(name), self.values) if isinstance(name.ctx, ast.Load) else self.bound
        where.add(name.id)


def _walked(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it but constants, parents before children."""
    waiting = deque([node])
    while waiting:
        inner = waiting.popleft()
        yield inner
        for name in inner._fields:
            value = getattr(inner, name, None)
            if type(value) is list:
                waiting.extend(part for part in value if type(part) is not ast.Constant and isinstance(part, ast.AST))
            elif isinstance(value, ast.AST) and not isinstance(value, _NAMELESS):
                waiting.append(value)
