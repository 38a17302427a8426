"""Check and run a pipeline: each stage in a process of its own, and a record of what was made from what.

FOLDER/NAME/            the run folder of a stage
FOLDER/NAME.yaml        its recipe, with the paths of the artefacts it takes
FOLDER/NAME.json        the figures of a stage that only measures
FOLDER/pipeline.json    per stage: folder, recipe digest, inputs, status, seconds, figures

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from posttrain.build.check import Checked, check
from posttrain.build.outcome import Outcome
from posttrain.build.process import figures_in, posttrain, terminable
from posttrain.errors import PosttrainError, RecipeError
from posttrain.metrics import RunFolder, durable
from posttrain.metrics.continuation import refusals
from posttrain.recipe import Recipe, dump, parse
from posttrain.recipe.load import read_yaml
from posttrain.recipe.pipeline import TAKEN, Pipeline, Stage

Status = Literal["running", "finished", "failed"]
console = Console(soft_wrap=True, highlight=False)


def check_pipeline(pipeline: Pipeline) -> dict[str, Checked]:
    """Hold every stage against what `check` knows, each artefact standing for the model its stage started from.

    Paths in `rewards` stay `stage:NAME`: a grader cannot read a model that is not there yet.
    Raises RecipeError with every mistake of every stage.
    """
    mistakes: list[str] = []
    wrong: dict[str | None, list[str]] = {}
    found: dict[str, Checked] = {}
    models: dict[str, str] = {}
    folders: dict[Path, str] = {}
    for stage in pipeline.stages:
        name = stage.name
        tree = stage.resolved(lambda k, s: f"stage:{s}" if k.startswith("rewards[") else models.get(s, ""))
        try:
            recipe = parse(tree)
            models[name] = recipe.model.path
            found[name] = check(recipe)
        except RecipeError as error:
            models.setdefault(name, _model_path(tree))
            wrong[name] = error.mistakes
            # An evaluation has those of the recipe that it goes over once more.
            own = [mistake for mistake in error.mistakes if mistake not in wrong.get(stage.measured, [])]
            mistakes += [f"stages.{name}.{mistake}" for mistake in own]
            continue
        mistakes += [f"stages.{name}.{mistake}" for mistake in _no_policies(stage, found)]
        if found[name].row is None and not stage.evaluates:
            mistakes.append(
                f"stages.{name}.algorithm: missing, so nothing is trained; add it, or evaluate: MODEL to measure"
            )
        if stage.evaluates:
            mistakes += [f"stages.{name}.{mistake}" for mistake in _of_evaluation(stage, found[name])]
            continue
        other = folders.setdefault(recipe.run.folder.resolve(), name)
        if other != name:
            mistakes.append(
                f"stages.{name}.run.folder: {recipe.run.folder} is that of stage {other} too; give each its own"
            )
    if mistakes:
        raise RecipeError(mistakes, pipeline.source)
    return found


def _no_policies(stage: Stage, checked: Mapping[str, Checked]) -> list[str]:
    """A reward model says no tokens, so it is no policy; a critic and another reward model may start from it."""
    if checked[stage.name].scores:
        return []
    return [
        f"{key}: 'stage:{source}' makes a reward model, which is no policy; name a stage that trains a policy, or "
        "critic.path or a grader's settings for this one"
        for key, source in stage.references
        if key in ("model", "model.path") or key.startswith("reference.")
        if source in checked and checked[source].scores
    ]


def _of_evaluation(stage: Stage, checked: Checked) -> list[str]:
    """Why a stage cannot be measured so."""
    if checked.recipe.data.eval is None:
        return ["data.eval: missing, so there is nothing to evaluate on; add it"]
    if checked.row is None:
        return []
    needs = checked.row.needs
    if stage.own_recipe and (needs.scorer or (needs.given and needs.reference)):
        return [
            f"evaluate: {stage.evaluates!r} with other keys beside it, but {checked.algorithm.name} is measured "
            "by what only its own run knows (a head, or the reference it started from); leave the other keys out, or "
            "extend a recipe whose algorithm samples its responses"
        ]
    return []


def graph(pipeline: Pipeline) -> list[str]:
    """Which artefact goes where, one line for each."""
    lines = [f"{source} -> {stage.name}: {key}" for stage in pipeline.stages for key, source in stage.references]
    return lines or ["no stage takes anything from another"]


def train(pipeline: Pipeline, checked: Mapping[str, Checked], force: bool = False) -> list[Outcome]:
    """Run every stage that is not finished, in order; a stage that was cut off goes on where it stopped.

    `force` lets a stage go on under a recipe that differs from the one it began with. Raises PosttrainError naming the
    stage that failed, or the one that was made from what has changed since.
    """
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    with durable.exclusive(pipeline.folder / f"{TAKEN}.lock"), terminable():
        durable.remove_partials(pipeline.folder)
        run = _Run(pipeline, {name: c.recipe.run.folder for name, c in checked.items()}, force)
        return [run.stage(stage) for stage in pipeline.stages]


class _Run:
    """One pass over the stages, and the lineage on disk."""

    def __init__(self, pipeline: Pipeline, folders: Mapping[str, Path], force: bool) -> None:
        self._pipeline, self._folders, self._force = pipeline, folders, force
        self._file = pipeline.folder / f"{TAKEN}.json"
        self._records: dict[str, Any] = _read_json(self._file).get("stages", {})

    def stage(self, stage: Stage) -> Outcome:
        """Bring one stage to its end, or see that it is there already."""
        inputs = [self._input(name) for name in stage.inputs]
        self._refuse_stale(stage, inputs)
        tree = stage.resolved(lambda _, name: str(_policy(self._folders[name])))
        recipe = parse(tree, f"{self._pipeline.source}, stage {stage.name}")
        if self._finished(stage, recipe):
            console.print(f"stage {stage.name}: finished, not run again")
        else:
            durable.write_atomically(self._recipe_file(stage), [dump(recipe)])
            self._record(stage, inputs, "running")
            self._start(stage)
        summary = _read_json(self._summary_file(stage))
        self._record(stage, inputs, "finished", summary)
        made = str(self._summary_file(stage)) if stage.evaluates else f"{summary.get('algorithm')}: {recipe.run.folder}"
        return Outcome(stage.name, made, summary.get("steps"), summary.get("seconds", 0.0), summary)

    def _start(self, stage: Stage) -> None:
        """The stage's command, to its end. Raises PosttrainError naming the stage."""
        file = self._recipe_file(stage)
        if stage.evaluates:
            target = self._folders[stage.measured] if stage.measured and not stage.own_recipe else file
            arguments = ["evaluate", str(target), "--json"]
        else:
            arguments = ["train", str(file), "--quiet", *(["--force"] if self._force else [])]
        place = [s.name for s in self._pipeline.stages].index(stage.name) + 1
        console.print(f"stage {stage.name} ({place} of {len(self._pipeline.stages)}): posttrain {' '.join(arguments)}")
        done = posttrain(arguments, keep_output=bool(stage.evaluates))
        if done.code:
            self._record(stage, self._records[stage.name]["inputs"], "failed")
            ended = f"was killed by signal {-done.code}" if done.code < 0 else f"ended with exit code {done.code}"
            raise PosttrainError(
                f"stage {stage.name} {ended}; what it said stands above. The same command again goes on: finished "
                "stages are not run again, and one that was cut off continues from its newest checkpoint"
            )
        if stage.evaluates:
            figures = {**figures_in(done.output), "seconds": done.seconds}
            durable.write_atomically(self._summary_file(stage), [json.dumps(figures, indent=1), "\n"])

    def _input(self, name: str) -> dict[str, Any]:
        """Which artefact of a stage is taken now."""
        checkpoint = _newest(self._folders[name])
        return {"stage": name, "step": _step(checkpoint), "manifest": _digest(checkpoint / "manifest.json")}

    def _refuse_stale(self, stage: Stage, inputs: Sequence[Mapping[str, Any]]) -> None:
        """What a stage has made must have been made from what its inputs are now."""
        before = {entry["stage"]: entry for entry in self._records.get(stage.name, {}).get("inputs", [])}
        changed = [entry for entry in inputs if before.get(entry["stage"], entry) != entry]
        if not changed or not self._begun(stage):
            return
        old, new = before[changed[0]["stage"]], changed[0]
        steps = f"step {old['step']}" + (f", now step {new['step']}" if new["step"] != old["step"] else "")
        remove = ", ".join(str(self._product(s)) for s in self._made_from(stage))
        raise PosttrainError(
            f"stage {stage.name} is stale: it was made from stage {new['stage']} ({steps}), which has changed since. "
            f"Remove {remove} and run the same command again, or bring back the {new['stage']} it was made from"
        )

    def _made_from(self, stage: Stage) -> list[Stage]:
        """The stage and all that was made from it, directly or not."""
        out = [stage]
        for later in self._pipeline.stages:
            if {s.name for s in out} & set(later.inputs) and self._begun(later):
                out.append(later)
        return out

    def _finished(self, stage: Stage, recipe: Recipe) -> bool:
        """Whether what a stage makes is there. Raises PosttrainError where it was made under a different recipe."""
        product = self._product(stage)
        file = self._recipe_file(stage) if stage.evaluates else product / "recipe.yaml"
        if not self._begun(stage) or not file.is_file():
            return False
        differing = refusals(_mapping(file.read_text(encoding="utf-8")), _mapping(dump(recipe)))
        if differing and (stage.evaluates or not self._force):
            way_out = "" if stage.evaluates else "--force to go on under the new recipe, "
            raise PosttrainError(
                f"stage {stage.name}: {product} was made under a different recipe (old -> new):\n"
                + "\n".join(f"  - {line}" for line in differing)
                + f"\nTake back the change, {way_out}remove {product}, or give the new recipe a stage of its own."
            )
        return bool(stage.evaluates) or (not differing and _reached(recipe))

    def _record(self, stage: Stage, inputs: Any, status: Status, figures: Mapping[str, Any] | None = None) -> None:
        file = self._recipe_file(stage)
        self._records[stage.name] = {
            "folder": str(self._product(stage).parent if stage.evaluates else self._product(stage)),
            "recipe": _digest(file) if file.is_file() else None,
            "inputs": list(inputs),
            "status": status,
            "seconds": figures.get("seconds") if figures else None,
            "figures": dict(figures or {}),
        }
        text = json.dumps({"stages": self._records}, indent=1, ensure_ascii=False)
        durable.write_atomically(self._file, [text, "\n"])

    def _product(self, stage: Stage) -> Path:
        """What a stage makes: its run folder, or the file of its figures."""
        return self._summary_file(stage) if stage.evaluates else self._folders[stage.name]

    def _begun(self, stage: Stage) -> bool:
        return self._product(stage).is_file() if stage.evaluates else RunFolder(self._product(stage)).exists()

    def _recipe_file(self, stage: Stage) -> Path:
        return self._pipeline.folder / f"{stage.name}.yaml"

    def _summary_file(self, stage: Stage) -> Path:
        if stage.evaluates:
            return self._pipeline.folder / f"{stage.name}.json"
        return self._folders[stage.name] / "summary.json"


def _reached(recipe: Recipe) -> bool:
    """Whether a run made its last step and wrote its summary."""
    folder = RunFolder(recipe.run.folder)
    summary = _read_json(folder.path / "summary.json")
    return folder.checkpoints()[-1:] == [recipe.run.steps] == [summary.get("steps")]


def _newest(folder: Path) -> Path:
    run = RunFolder(folder)
    steps = run.checkpoints()
    if not steps:
        raise PosttrainError(f"{folder} has no complete checkpoint to go on from; remove it to make it anew")
    return run.checkpoint_path(steps[-1])


def _policy(folder: Path) -> Path:
    return _newest(folder) / "policy"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _model_path(tree: Mapping[str, Any]) -> str:
    """The model of a recipe that has mistakes elsewhere."""
    model = tree.get("model")
    return str(model.get("path", "")) if isinstance(model, dict) else str(model or "")


def _mapping(text: str) -> dict[str, Any]:
    out: dict[str, Any] = read_yaml(text, "recipe")
    return out


def _read_json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing. Raises PosttrainError for one that is damaged."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PosttrainError(f"{file}: not JSON ({error}); restore or remove it") from None
    return found if isinstance(found, dict) else {}
