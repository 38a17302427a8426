"""Who else is told about a step, beside metrics.jsonl: the console, TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from posttrain.errors import PosttrainError
from posttrain.metrics.durable import write_atomically
from posttrain.metrics.folder import RunFolder
from posttrain.recipe import Recipe

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""What each sink of a recipe imports; the pip extra has the sink's name."""
COLUMNS = {
    "reward": ("reward/mean", "reward {:.3f}"),
    "length": ("rollout/length_mean", "length {:.0f}"),
    "speed": ("rollout/tokens_per_second", "{:.0f} tokens/s"),
}
PROJECT = "posttrain"


class Sink(Protocol):
    """Takes each step's numbers once, in order."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def missing(names: Sequence[str]) -> list[str]:
    """What to install for each named sink that cannot be had, found without importing it."""
    absent = [name for name in names if importlib.util.find_spec(MODULES.get(name, name)) is None]
    return [f"run.sinks: {n} is not installed: pip install 'posttrain[{n}]', or leave it out" for n in absent]


def open_sinks(names: Sequence[str], folder: RunFolder, recipe: Recipe) -> list[Sink]:
    """The console and the named sinks, for a run that goes on from the folder's newest checkpoint.

    Raises PosttrainError, before anything is opened, naming what to install for each sink that cannot be had.
    """
    if wanted := missing(names):
        raise PosttrainError("\n".join(wanted))
    done = folder.checkpoints()
    start = done[-1] if done else -1
    sinks: list[Sink] = [Console(recipe.run.steps, max(0, start))]
    with ExitStack() as opened:
        for name in dict.fromkeys(names):
            sinks.append(_open(name, folder, recipe, start))
            opened.callback(sinks[-1].close)
        opened.pop_all()
    return sinks


def _open(name: str, folder: RunFolder, recipe: Recipe, start: int) -> Sink:
    if name == "tensorboard":
        return TensorBoard(folder.path / "tensorboard", start + 1)
    if name == "wandb":
        return Wandb(folder, recipe.model_dump(mode="json"))
    if name == "trackio":
        return Trackio(folder, recipe.model_dump(mode="json"))
    raise PosttrainError(f"run.sinks: {name!r} is none of {', '.join(MODULES)}")


class Console:
    """A live bar on a terminal, a line per step elsewhere; evaluation results on a line of their own on both."""

    def __init__(self, total: int, start: int = 0, terminal: Terminal | None = None) -> None:
        self._total, self._start = total, start
        self._terminal = terminal or Terminal()
        self._began: tuple[float, int] | None = None
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._terminal.is_terminal:
            self._advance(step, values)
        elif step:
            told = [shape.format(values[key]) for key, shape in COLUMNS.values() if key in values]
            self._say("  ".join([f"step {step}/{self._total}", *told, *self._left(step)]))
        if self._began is None:
            self._began = time.monotonic(), step
        if "eval/accuracy" in values or "eval/greedy" in values:
            self._say(_evaluation(step, values))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say(self, line: str) -> None:
        target = self._progress.console if self._progress else self._terminal
        target.print(line, markup=False, highlight=False, soft_wrap=True)

    def _advance(self, step: int, values: Mapping[str, float]) -> None:
        """The bar appears with the first numbers, so that the logs of loading a model do not fight with it."""
        if self._progress is None:
            shown = [TextColumn(f"{{task.fields[{name}]}}") for name in COLUMNS]
            place = TextColumn("step {task.completed:.0f}/{task.total:.0f}")
            self._progress = Progress(place, BarColumn(), *shown, TimeRemainingColumn(), console=self._terminal)
            empty: dict[str, Any] = dict.fromkeys(COLUMNS, "")
            self._task = self._progress.add_task("", total=self._total, completed=self._start, **empty)
            self._progress.start()
        told = {name: shape.format(values[key]) for name, (key, shape) in COLUMNS.items() if key in values}
        fields: dict[str, Any] = dict(told)
        self._progress.update(self._task, completed=step, refresh=True, **fields)

    def _left(self, step: int) -> list[str]:
        """Time left from the pace since the first numbers; nothing before there is a pace."""
        if self._began is None or step <= self._began[1]:
            return []
        pace = (time.monotonic() - self._began[0]) / (step - self._began[1])
        minutes, seconds = divmod(round(pace * (self._total - step)), 60)
        return [f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"]


def _evaluation(step: int, values: Mapping[str, float]) -> str:
    parts = []
    if "eval/accuracy" in values:
        parts.append(f"accuracy {values['eval/accuracy']:.3f}")
        if "eval/accuracy_low" in values and "eval/accuracy_high" in values:
            parts[0] += f" [{values['eval/accuracy_low']:.3f}, {values['eval/accuracy_high']:.3f}]"
    if "eval/greedy" in values:
        parts.append(f"greedy {values['eval/greedy']:.3f}")
    return f"evaluation at step {step}: {', '.join(parts)}"


class TensorBoard:
    """Scalars under their own names (TensorBoard keeps them as float32). Events from `purge_step` on are forgotten,
    so that a resumed run does not draw its curve twice."""

    def __init__(self, directory: Path, purge_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One W&B run per run folder, resumed with it. Without an API key it stays offline, to be sent by `wandb sync`."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        keyed = os.environ.get("WANDB_API_KEY") or wandb.api.api_key
        mode = os.environ.get("WANDB_MODE") or ("online" if keyed else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.path.name,
            id=_identity(folder),
            dir=str(folder.path),
            config=dict(config),
            resume="allow",
            mode=mode,
        )
        # W&B drops a step number it has passed; as an axis of our own, steps repeated after a resume are kept.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """One Trackio run per run folder, kept on this machine unless the user's TRACKIO_* variables say otherwise."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        trackio: Any = importlib.import_module("trackio")
        name = f"{folder.path.name}-{_identity(folder)}"
        self._run = trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow", embed=False)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _identity(folder: RunFolder) -> str:
    """A name for this run at trackers: made once and kept in the folder, so that a resumed run is recognised."""
    path = folder.path / "tracking_id"
    if not path.is_file():
        write_atomically(path, [uuid.uuid4().hex[:8], "\n"])
    return path.read_text(encoding="utf-8").strip()
