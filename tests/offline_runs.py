"""Whole runs of a tiny model on answers that come with the data, in this process; and one that is killed at a step."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.build import wire
from posttrain.build.check import Checked, check
from posttrain.build.reading import read
from posttrain.cli import app
from posttrain.loops.offline import offline
from posttrain.loops.online import online
from posttrain.metrics import RunFolder
from posttrain.recipe import dump, load
from posttrain.recipe.load import merge
from tests.tiny import tiny_folder

Rows = Sequence[Mapping[str, Any]]

WORDS = ("ab", "cde", "f", "ghij", "kl", "mno", "pq", "rstu")


def pairs(count: int, start: int = 0) -> Rows:
    """Prompts with a chosen answer of letters and a rejected one of digits, of unlike lengths."""
    return [
        {"prompt": f"say {i}", "chosen": WORDS[i % 8], "rejected": str(10 ** (i % 3) + i)}
        for i in range(start, start + count)
    ]


def texts(count: int, start: int = 0) -> Rows:
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(count, start)]


def thumbs(count: int, start: int = 0) -> Rows:
    """Single answers, every other one wrong."""
    return [
        {"prompt": row["prompt"], "completion": row["rejected" if i % 2 else "chosen"], "label": i % 2 == 0}
        for i, row in enumerate(pairs(count, start))
    ]


def scored(count: int, start: int = 0) -> Rows:
    """Single answers, worth what they are long."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "score": len(row["chosen"]) / 4}
        for row in pairs(count, start)
    ]


def lists(count: int, size: int = 4, start: int = 0) -> Rows:
    """Several answers to a prompt, each with its score."""
    return [
        {
            "prompt": f"say {i}",
            "completions": [WORDS[(i + k) % 8] + str(k) for k in range(size)],
            "scores": [((i + (size - 1) * k) % size) / size for k in range(size)],
        }
        for i in range(start, start + count)
    ]


def steps(count: int, start: int = 0) -> Rows:
    """Answers of two or three steps, one of them wrong."""
    return [
        {
            "prompt": f"say {i}",
            "completions": [WORDS[(i + k) % 8] for k in range(2 + i % 2)],
            "labels": [k != i % 2 for k in range(2 + i % 2)],
        }
        for i in range(start, start + count)
    ]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare(folder: Path, algorithm: Any, train: Rows, held: Rows | None = None, **changes: Any) -> Path:
    """Write model, rows and recipe into `folder`; the recipe's path. `changes` are put over the recipe's blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        tiny_folder(folder / "model", initializer_range=0.1)
    data = {"train": {"source": "file", "path": str(write(folder / "train.jsonl", train))}}
    if held is not None:
        data["eval"] = {"source": "file", "path": str(write(folder / "eval.jsonl", held))}
    tree: dict[str, Any] = {
        "model": str(folder / "model"),
        "algorithm": algorithm,
        "data": data,
        "optimizer": {"learning_rate": 1e-2, "prompts_per_step": 4},
        "run": {"steps": 4, "folder": str(folder / "run"), "save_every": 2},
        "hardware": {"device": "cpu", "dtype": "float32"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merge(tree, changes)))
    return path


def command(*words: str | Path) -> str:
    """A command of the command line in this process, and what it printed. Raises what the command raises."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        app([str(word) for word in words], standalone_mode=False)
    return printed.getvalue()


def train(path: Path, *overrides: str) -> str:
    return command("train", path, "--quiet", *overrides)


def evaluated(target: Path) -> dict[str, Any]:
    """The figures of `posttrain evaluate TARGET --json`."""
    printed = command("evaluate", target, "--json")
    return json.loads(printed[printed.rindex("\n{\n") + 1 :] if "\n{\n" in printed else printed)


def checked(path: Path, *overrides: str) -> Checked:
    return check(load(path, overrides), str(path))


class Kills:
    """A sink that ends its process as a kill from outside would: after a step's metrics, before its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        pass


def killed(path: Path, step: int) -> None:
    """Run a recipe in a process of its own, which is killed in the middle of a step."""
    child = os.fork()
    if child == 0:
        try:
            _run(checked(path), Kills(step))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the run ended by itself, with {os.waitstatus_to_exitcode(status)}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def _run(found: Checked, sink: Kills) -> None:
    """What `train` does, with one more who is told about each step."""
    folder = RunFolder(found.recipe.run.folder)
    with folder.lock():
        checkpoint = wire.open_checkpoint(found.recipe)
        folder.open(dump(found.recipe), device=checkpoint.device)
        data = read(found, checkpoint)
        if found.algorithm.source.kind in ("given", "conditioned"):
            with wire.wired_offline(found, folder, [sink], data, checkpoint) as given:
                offline(given)
        else:
            with wire.wired_online(found, folder, [sink], data, checkpoint) as sampled:
                online(sampled)
