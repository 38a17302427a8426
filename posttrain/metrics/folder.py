"""The folder of a run: the contract that other tools read. Nothing in it is ever half written.

recipe.yaml                     the resolved recipe
environment.json                what it runs on; `earlier` lists where it ran before it was resumed elsewhere
metrics.jsonl                   one object per step, `step` first
rollouts/step-000001.jsonl      one record per roll-out of a step, see `records`
rollouts/eval-000000.jsonl      the same for an evaluation
evaluations/step-000000.jsonl   its results: see `results`
checkpoints/step-000001/        complete once it holds manifest.json
summary.json, curves.png        written at the end
run.lock                        held while the run is alive, with its pid inside
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import PosttrainError
from posttrain.metrics import durable
from posttrain.metrics.continuation import refusals
from posttrain.metrics.environment import environment
from posttrain.metrics.results import result_steps, results_path
from posttrain.metrics.unfinished import later_unfinished
from posttrain.recipe.load import read_yaml

RolloutKind = Literal["step", "eval"]


class RunFolder:
    """Reads any run folder; writes one, after `open`, while `lock` is held. Making one touches no disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._last_step: int | None = None

    def open(self, recipe_yaml: str, override: bool = False, device: str | None = None) -> bool:
        """Create the folder, or go on with the run in it; True when there was one. `device` is what `auto` became.

        Raises PosttrainError, and changes nothing, for a folder with other things in it, or with a run whose recipe
        differs in more than what leaves its numbers alone (`continuation`); `override` accepts the new recipe.
        """
        self._refuse_foreign()
        new = _mapping(recipe_yaml, "the recipe")
        recipe_path, existed = self.path / "recipe.yaml", self.exists()
        if recipe_path.is_file():
            differing = refusals(_mapping(recipe_path.read_text(encoding="utf-8"), str(recipe_path)), new)
            if differing and not override:
                raise PosttrainError(
                    f"{self.path} holds a run of a different recipe (old -> new):\n"
                    + "\n".join(f"  - {line}" for line in differing)
                    + "\nUse another run.folder, or override to go on with the new recipe."
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_environment(device or _at(new, "hardware", "device"), _at(new, "run", "seed"))
        durable.write_atomically(recipe_path, [recipe_yaml])
        for name in ("rollouts", "checkpoints"):
            (self.path / name).mkdir(exist_ok=True)
        for folder in (self.path, self.path / "rollouts", self.path / "evaluations"):
            durable.remove_partials(folder)
        durable.drop_torn_line(self._metrics)
        self._last_step = None
        return existed

    def lock(self) -> AbstractContextManager[None]:
        """`with folder.lock():` around all writing, `open` included. Raises PosttrainError naming who has it."""
        self._refuse_foreign()
        self.path.mkdir(parents=True, exist_ok=True)
        return durable.exclusive(self.path / "run.lock")

    def exists(self) -> bool:
        """Whether there is a run here."""
        return "versions" in self.environment()

    def environment(self) -> dict[str, Any]:
        """What environment.json says; empty where there is none."""
        try:
            found = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain values. Raises PosttrainError where there is no run."""
        path = self.path / "recipe.yaml"
        if not path.is_file():
            raise PosttrainError(f"{self.path} is no run folder: it has no recipe.yaml")
        return _mapping(path.read_text(encoding="utf-8"), str(path))

    def append_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add one step, on disk before this returns. Raises PosttrainError for a value that is not a finite number
        or a step that is not later than the last."""
        last = self._last()
        if last is not None and step <= last:
            raise PosttrainError(f"{self._metrics}: step {step} after step {last}; truncate_after({step - 1}) first")
        numbers = {name: _number(name, value) for name, value in values.items()}
        durable.append_line(self._metrics, durable.to_json({"step": step, **numbers}, f"metrics of step {step}"))
        self._last_step = step

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line, in order; empty before the first step."""
        return durable.read_lines(self._metrics) if self._metrics.is_file() else []

    def write_after(self, step: int, values: Mapping[str, float]) -> None:
        """Note in `after.json` what came after a step that no further one follows yet: no line of metrics will."""
        text = durable.to_json({"step": step, **values}, f"what came after step {step}")
        durable.write_atomically(self.path / "after.json", [text, "\n"])

    def read_after(self, step: int) -> dict[str, float]:
        """What was noted after this step; nothing where another step is the last that something was noted after."""
        path = self.path / "after.json"
        found = durable.read_lines(path) if path.is_file() else []
        return {n: v for n, v in found[0].items() if n != "step"} if found and found[0]["step"] == step else {}

    def truncate_after(self, step: int) -> None:
        """Forget metrics, roll-outs and results of later steps, and torn lines: what is left is as if the run had
        stopped at `step`. Checkpoints stay."""
        if self._metrics.is_file():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            durable.write_atomically(self._metrics, (durable.to_json(line, "metrics") + "\n" for line in kept))
        kinds: tuple[RolloutKind, ...] = ("step", "eval")
        for kind in kinds:
            for later in (s for s in self.rollout_steps(kind) if s > step):
                self.rollout_path(kind, later).unlink()
        for later in (s for s in result_steps(self.path) if s > step):
            results_path(self.path, later).unlink()
        for unfinished in later_unfinished(self.path, step):
            unfinished.unlink()
        self._last_step = None

    def rollout_path(self, kind: RolloutKind, step: int) -> Path:
        return self.path / "rollouts" / f"{kind}-{step:06d}.jsonl"

    def write_rollouts(self, kind: RolloutKind, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """One line per roll-out, all or nothing. Raises PosttrainError naming a value that JSON cannot hold."""
        path = self.rollout_path(kind, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (durable.to_json(dict(r), f"{path.name}, record {i}") + "\n" for i, r in enumerate(records))
        durable.write_atomically(path, lines)

    def read_rollouts(self, kind: RolloutKind, step: int) -> list[dict[str, Any]]:
        """Raises PosttrainError naming the steps there are."""
        path = self.rollout_path(kind, step)
        if not path.is_file():
            steps = self.rollout_steps(kind)
            known = f"{len(steps)} from {steps[0]} to {steps[-1]}" if steps else "none"
            raise PosttrainError(f"{path}: no such roll-outs; steps with {kind} roll-outs: {known}")
        return durable.read_lines(path)

    def rollout_steps(self, kind: RolloutKind = "step") -> list[int]:
        """Steps whose roll-outs are there, ascending."""
        return _numbered(self.path / "rollouts", rf"{kind}-(\d{{6,}})\.jsonl")

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    def checkpoints(self) -> list[int]:
        """Steps of complete checkpoints, ascending."""
        steps = _numbered(self.path / "checkpoints", r"step-(\d{6,})")
        return [step for step in steps if (self.checkpoint_path(step) / "manifest.json").is_file()]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Raises PosttrainError naming a value that JSON cannot hold."""
        durable.to_json(dict(summary), "summary")
        text = json.dumps(dict(summary), indent=2, ensure_ascii=False, allow_nan=False)
        durable.write_atomically(self.path / "summary.json", [text, "\n"])

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _last(self) -> int | None:
        if self._last_step is None:
            durable.drop_torn_line(self._metrics)
            lines = self.read_metrics()
            self._last_step = lines[-1]["step"] if lines else None
        return self._last_step

    def _refuse_foreign(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise PosttrainError(f"{self.path} is a file: run.folder needs a folder")
        if not self.path.is_dir() or self.exists():
            return
        # A recipe may have been evaluated before it is trained.
        own = ("run.lock", "evaluations")
        other = sorted(p.name for p in self.path.iterdir() if p.name not in own and p.suffix != durable.PARTIAL)
        if other:
            names = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
            raise PosttrainError(f"{self.path} is no run folder but holds {names}: use an empty or new run.folder")

    def _write_environment(self, device: str | None, seed: int | None) -> None:
        now, before = environment(device, seed), self.environment()
        earlier = before.pop("earlier", [])
        if before and before != now:
            earlier = [*earlier, before]
        text = json.dumps({**now, **({"earlier": earlier} if earlier else {})}, indent=2)
        durable.write_atomically(self.path / "environment.json", [text, "\n"])


def _mapping(text: str, source: str) -> dict[str, Any]:
    tree = read_yaml(text, source)
    if not isinstance(tree, dict):
        raise PosttrainError(f"{source}: expected keys and values, found {type(tree).__name__}")
    return tree


def _at(tree: Mapping[str, Any], block: str, key: str) -> Any:
    inner = tree.get(block)
    return inner.get(key) if isinstance(inner, Mapping) else None


def _number(name: str, value: Any) -> int | float:
    if name == "step":
        raise PosttrainError("metrics: the name step is taken by the step itself")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise PosttrainError(f"metrics: {name} is {value!r}, not a number") from None


def _numbered(folder: Path, pattern: str) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(m.group(1)) for p in folder.iterdir() if (m := re.fullmatch(pattern, p.name)))
