"""Whole runs of a tiny model: recipes for them, and the command line as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[1]
FIGURES = {"eval/accuracy", "eval/greedy", "reward/mean", "rollout/length_mean", "learn/grad_norm"}


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A complete recipe over files in `folder`; `changes` replace whole blocks or merge into them."""
    tree: dict[str, Any] = {
        "model": str(folder / "model"),
        "algorithm": "grpo",
        "data": {
            "train": {"source": "file", "path": str(folder / "train.jsonl")},
            "eval": {"source": "file", "path": str(folder / "eval.jsonl")},
        },
        "rewards": [{"verifier": "tests.graders:letters"}],
        "rollout": {"engine": "transformers", "group_size": 4, "max_tokens": 8},
        "optimizer": {"learning_rate": 1e-2, "prompts_per_step": 4},
        "run": {"steps": 6, "folder": str(folder / "run"), "save_every": 3},
        # Several workers are proven beside the grader; here each would only be another start.
        "grading": {"workers": 1},
        "evaluation": {"samples": 2},
        "hardware": {"device": "cpu", "dtype": "float32"},
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
    return tree


def prepare(folder: Path, **changes: Any) -> Path:
    """Write model, data and recipe into `folder`; the recipe's path."""
    if not (folder / "model").exists():
        tiny_folder(folder / "model", initializer_range=0.1)
    rows = [{"prompt": f"say {'abcdefghij'[i % 10]} {i}", "letter": "abcdefghij"[i % 10]} for i in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, **changes)))
    return path


def command(*args: str | Path, **env: str) -> list[str]:
    return [sys.executable, "-m", "posttrain", *map(str, args)]


def run(*args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    done = subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{args} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the columns that are times, say how a step's work was cut, or how weights were published: a
    run that goes on publishes anew.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = [
        [k for k in line if k.startswith(("work/", "sync/")) or k.endswith(("seconds", "_per_second"))]
        for line in lines
    ]
    return [{k: v for k, v in line.items() if k not in names} for line, names in zip(lines, own, strict=True)]


def same_figures(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], within: float) -> None:
    """What two runs drew, scored and learnt is the same to a relative `within`; engine and trainer agree."""
    for a, b in zip(one, other, strict=True):
        for name in FIGURES & a.keys():
            assert b[name] == pytest.approx(a[name], rel=within), name
        assert b.get("parity/max_abs_gap", 0.0) < 1e-4
