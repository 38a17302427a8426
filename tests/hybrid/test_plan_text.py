"""The plan in words, and without torch."""

from __future__ import annotations

import ast
from pathlib import Path

from posttrain.hybrid import plan as package
from posttrain.hybrid.plan import Generation, Training, describe, make_plan
from tests.hybrid.made_plans import Made


def test_the_plan_says_bytes_beside_the_bound_messages_and_memory() -> None:
    made = Made(layers=1, heads=9, kv_heads=3, head_dim=64, hidden=576, intermediate=1536, vocabulary=49152, tied=True)
    # 49152 x 576 embedding, one layer of 3,539,520 weights, one last norm; two bytes each.
    total = 2 * (49152 * 576 + 576 * (576 + 2 * 192 + 576 + 3 * 1536 + 1) + 576)
    plan = make_plan(made.tensors(2), made.architecture, Training(3, "rows"), Generation(3))
    text = describe(plan, 2**20)
    assert plan.nbytes == total
    lines = text.splitlines()
    assert lines[0].startswith(f"{total / 1e6:.1f} MB in 10 tensors, 7 parameters: 3 training ranks (rows) to 3 engine")
    assert lines[1].split() == ["engine", "rank", "holds", "local", "received", "lower", "bound"]
    assert len(lines) == 1 + 4 + 4 + 2
    for line, traffic in zip(lines[2:5], plan.traffic(), strict=True):
        # Of the projections cut by columns, and of the norms, a rank stores a third; of the rest all that it takes.
        assert traffic.holds == (total - 2 * 2 * 576) // 3 + 2 * 2 * 576
        assert traffic.received == traffic.bound == 2 * (2 * 576 * (576 + 1536) // 9 + 2 * 2 * 576 // 3)
        assert line.split()[-2:] == [f"{traffic.bound / 1e3:.1f}", "kB"]
    assert lines[-1] == "lm_head.weight is model.embed_tokens.weight in the engine: not sent"
    assert "6 messages in 1 rounds of at most 1.0 MB a rank and direction" in lines[-2]


def test_many_ranks_are_summed_up() -> None:
    made = Made(heads=8, kv_heads=8)
    text = describe(make_plan(made.tensors(), made.architecture, Training(64, "rows", 8), Generation(8, 8)))
    assert "8 replicas" in text
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["least", "mean", "most"]
    assert len(text.splitlines()) == 10


def test_the_plan_needs_nothing_but_integers() -> None:
    allowed = {"__future__", "collections", "dataclasses", "difflib", "functools", "math", "re", "typing", "posttrain"}
    for file in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, file
            assert all(n.startswith(("posttrain.errors", "posttrain.hybrid.plan")) for n in names if "posttrain" in n)
