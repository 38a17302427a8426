"""The program that a completion holds: a fenced block, bare source, or the rest of a function that the prompt began."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

LONGEST = 100_000
"""Characters of a completion that are read; a longer one holds no program."""
ATTEMPTS = 20
"""How often a text that does not parse is cut and tried again."""

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*")
_LANGUAGES = ("", "python", "py", "python3")
_OPENING = re.compile(r"(?:from\s+[\w.]+\s+import\b|import\s+\w|(?:async\s+)?def\s+\w|class\s+\w|@\w|[A-Z_]{2,}\s*=)")
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[^\n]*\n?", re.MULTILINE)
_BLOCKS = (ast.If, ast.Try, ast.With)


class NoProgramError(ValueError):
    """A completion that holds no program; says why."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """Source with its tree, and the names that its top level binds."""

    source: str
    tree: ast.Module
    names: frozenset[str]


def script(completion: str) -> str:
    """A whole program that reads stdin: the last fenced block, or the text itself. Raises NoProgramError."""
    text = _said(completion)
    problem = "it holds no code"
    for candidate in [*reversed(_fenced(text)), *_openings(_unfenced(text))]:
        try:
            found = _whole(candidate)
        except SyntaxError as error:
            problem = _explained(error)
            continue
        if found.tree.body:
            return found.source
    raise NoProgramError(problem)


def module(completion: str, names: Collection[str], head: str = "") -> str:
    """A program that defines `names`, ended where usage examples or prose follow them; `head` goes before it.

    Of several fenced blocks the last that defines most of the names is taken: it is the completion's one answer.
    Raises NoProgramError.
    """
    text = _said(completion)
    found = _defining([*reversed(_fenced(text)), *_openings(_unfenced(text))], names)
    if found is None:
        raise NoProgramError(_complaint(text))
    return _joined(head, _ended(found, names))


def continued(completion: str, prompt: str, entry_point: str) -> str:
    """The function that `prompt` began, from its body alone, from a whole program or from a chat answer.

    What the prompt says before the function (imports, other functions) stays. Raises NoProgramError.
    """
    text = _said(completion)
    bare = _unfenced(text)
    fenced = _fenced(text)
    whole = _defining([*reversed(fenced), *_openings(bare)], (entry_point,))
    if whole is not None and entry_point in whole.names:
        return _joined(_before(prompt, entry_point), _ended(whole, (entry_point,)))
    for body in [bare, *reversed(fenced)]:
        found = _continuation(prompt, body, entry_point)
        if found is not None:
            return _ended(found, (entry_point,))
    raise NoProgramError(_complaint(bare if not fenced else fenced[-1]))


def _said(completion: str) -> str:
    """What was said after the reasoning, with one kind of line end. Raises NoProgramError where it is too long."""
    text = completion.rpartition("</think>")[2].replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > LONGEST:
        raise NoProgramError(f"{len(text)} characters, more than {LONGEST}")
    return text


def _fenced(text: str) -> list[str]:
    """The bodies of fenced Python blocks; one that is never closed runs to the end."""
    found: list[str] = []
    lines: list[str] = []
    opened: re.Match[str] | None = None
    for line in text.split("\n"):
        mark = _FENCE.fullmatch(line)
        if opened is None and mark:
            opened, lines = mark, []
        elif opened is not None and mark and mark[2].startswith(opened[2]) and not mark[3]:
            found += _block(opened, lines)
            opened = None
        elif opened is not None:
            lines.append(line)
    return found + (_block(opened, lines) if opened is not None else [])


def _block(opened: re.Match[str], lines: list[str]) -> list[str]:
    if opened[3].lower() not in _LANGUAGES or not any(line.strip() for line in lines):
        return []
    body = "\n".join(lines)
    return [textwrap.dedent(body) if opened[1] else body]


def _unfenced(text: str) -> str:
    """The text up to the first fence: all of a bare answer, or what stood before a fence that the prompt opened."""
    kept: list[str] = []
    for line in text.split("\n"):
        if _FENCE.fullmatch(line):
            break
        kept.append(line)
    return "\n".join(kept)


def _openings(text: str) -> Iterator[str]:
    """The text, then the text from each of its first lines that looks like the start of a program."""
    if not text.strip():
        return
    yield text
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if i and _OPENING.match(line)]
    for start in starts[:ATTEMPTS]:
        yield "\n".join(lines[start:])


def _defining(candidates: Sequence[str], names: Collection[str]) -> Parsed | None:
    """The first of the candidates that defines most names, cut where it stops being a program; None where none defines
    anything.
    """
    best, most = None, -1
    for candidate in candidates:
        found = _prefix(candidate)
        if found is not None and _defines(found.tree) and len(found.names & set(names)) > most:
            best, most = found, len(found.names & set(names))
        if most == len(set(names)):
            break
    return best


def _defines(tree: ast.Module) -> bool:
    return any(True for _ in _bound(tree.body))


def _continuation(prompt: str, body: str, entry_point: str) -> Parsed | None:
    """The prompt with the rest of its function, whose first or every indentation may have been lost: of these readings
    the one of which the least is cut off.
    """
    if not body.strip():
        return None
    start = prompt.rstrip(" \t")
    best, most = None, 0
    readings: list[Callable[[], str]] = [
        lambda: prompt + body,
        lambda: f"{start}    {body.lstrip()}",
        lambda: start + textwrap.indent(textwrap.dedent(body), "    "),
    ]
    for reading in readings:
        source = reading()
        found = _prefix(source)
        lines = found.source.count("\n") + 1 if found is not None else 0
        if found is not None and lines > most and _has_body(found.tree, entry_point):
            best, most = found, lines
        if best is not None and best.source == source:
            break
    return best


def _parse(source: str) -> ast.Module:
    """Raises SyntaxError for whatever is no program, also where the parser gives up on its depth or on a null byte."""
    try:
        tree = ast.parse(source)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(f"{type(error).__name__}: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.Return):  # which only the compiler objects to
            raise SyntaxError("return outside a function", ("", node.lineno, None, None))
    return tree


def _whole(source: str) -> Parsed:
    tree = _parse(source)
    return Parsed(source, tree, frozenset(_bound(tree.body)))


def _prefix(source: str) -> Parsed | None:
    """The first lines that are a program, up to a line at the margin: a function with an error in it is not cut short,
    it is left out.
    """
    lines = source.split("\n")
    for _ in range(ATTEMPTS):
        try:
            return _whole("\n".join(lines))
        except SyntaxError as error:
            end = min(error.lineno or len(lines), len(lines)) - 1
        while end > 0 and lines[end][:1] in ("", " ", "\t", "#"):
            end -= 1
        lines = lines[: max(end, 0)]
        if not lines:
            return None
    return None


def _bound(body: Collection[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        elif isinstance(node, _BLOCKS):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            handlers = node.handlers if isinstance(node, ast.Try) else []
            yield from _bound([*inner, *(n for handler in handlers for n in handler.body)])


def _ended(found: Parsed, names: Collection[str]) -> str:
    """The source up to the first statement after the last of `names` that only uses what was defined."""
    body = found.tree.body
    last = max((i for i, node in enumerate(body) if set(_bound([node])) & set(names)), default=len(body))
    for node in body[last + 1 :]:
        if not _is_definition(node):
            lines = found.source.split("\n")
            rest = lines[node.lineno - 1].encode()[: node.col_offset].decode()
            return "\n".join([*lines[: node.lineno - 1], rest])
    return found.source


def _is_definition(node: ast.stmt) -> bool:
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return not any(isinstance(inner, ast.Call) for inner in ast.walk(node))
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom))


def _has_body(tree: ast.Module, entry_point: str) -> bool:
    """Whether the function says more than its docstring."""
    functions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    function = next((n for n in reversed(functions) if n.name == entry_point), None)
    if function is None:
        return False
    return len(function.body) > 1 or not isinstance(getattr(function.body[0], "value", None), ast.Constant)


def _before(prompt: str, entry_point: str) -> str:
    """What the prompt says before its last function of this name."""
    starts = [m.start() for m in re.finditer(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", prompt, re.MULTILINE)]
    head = prompt[: starts[-1]] if starts else ""
    found = _prefix(head) if head.strip() else None
    return found.source if found is not None else ""


def _joined(head: str, source: str) -> str:
    """Both, with the imports from `__future__` in front, where alone they may stand."""
    if not head.strip():
        return source
    future = "".join(line.rstrip("\n") + "\n" for line in _FUTURE.findall(head + "\n" + source))
    return future + _FUTURE.sub("", head).rstrip("\n") + "\n\n" + _FUTURE.sub("", source)


def _complaint(text: str) -> str:
    if not text.strip():
        return "it is empty"
    try:
        _parse(text)
    except SyntaxError as error:
        return _explained(error)
    return "it defines nothing"


def _explained(error: SyntaxError) -> str:
    return f"SyntaxError at line {error.lineno or '?'}: {error.msg}"
