"""A pipeline: stages that are complete recipes, and what one makes passed on to later ones by its name.

    folder: runs/mine
    stages:
      first:  {extends: recipe.yaml, run: {steps: 20}}
      second: {extends: other.yaml, model: "stage:first"}
      final:  {evaluate: "stage:second"}
      before: {evaluate: some/model, extends: recipe.yaml}

Any value `stage:NAME` stands for the model that an earlier stage made. Imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import RecipeError
from posttrain.recipe.load import apply_overrides, extended, merge, read_mapping

KEYS = ("folder", "stages")
TAKEN = "pipeline"
"""No stage's name: the pipeline's own files have it."""
BEFORE_MERGING = ("evaluate", "extends")
"""Keys of a stage that say what its other keys are put over."""


@dataclass(frozen=True)
class Stage:
    """One stage: the tree of its recipe, in which artefacts of earlier stages still stand as `stage:NAME`."""

    name: str
    tree: dict[str, Any]
    evaluates: str | None = None
    """What this one measures, `stage:NAME` or a model as it comes; it trains nothing then."""
    own_recipe: bool = True
    """False for an evaluation under exactly the recipe of the stage it measures."""

    @property
    def measured(self) -> str | None:
        """The stage that this one measures; None where it trains, or measures a model as it comes."""
        return _stage_in(self.evaluates)

    @property
    def references(self) -> list[tuple[str, str]]:
        """(key, stage) of every artefact it takes, in the order of the tree."""
        return list(_references(self.tree))

    @property
    def inputs(self) -> list[str]:
        """The stages it takes artefacts of, each once."""
        return list(dict.fromkeys(name for _, name in self.references))

    def resolved(self, artefact: Callable[[str, str], str]) -> dict[str, Any]:
        """The tree with `artefact(key, stage)` in the place of every `stage:NAME`."""
        out: dict[str, Any] = _replaced(self.tree, artefact)
        return out


@dataclass(frozen=True)
class Pipeline:
    """Stages in the order in which they run."""

    source: str
    folder: Path
    stages: tuple[Stage, ...]


def is_pipeline(path: str | Path) -> bool:
    """Whether a file has stages. One that cannot be read has none: reading it as a recipe says why."""
    try:
        return "stages" in read_mapping(Path(path))
    except (RecipeError, UnicodeDecodeError):
        return False


def read_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline with what its stages extend and what the command line puts over it: `folder=...` and
    `stages.NAME.key=value`.

    Raises RecipeError with every mistake: the key, the value, and the way out.
    """
    tree = read_mapping(Path(path))
    names = list(tree["stages"]) if isinstance(tree.get("stages"), dict) else []
    of_stage, own = _divided(overrides, names, str(path))
    tree = apply_overrides(tree, own)
    mistakes = _shape(tree)
    if mistakes:
        raise RecipeError(mistakes, str(path))
    reader, stages = _Reader(Path(path).resolve(), Path(tree["folder"]), names), []
    for name in names:
        try:
            stages.append(reader.stage(name, tree["stages"][name], of_stage.get(name, [])))
        except RecipeError as error:
            mistakes += [f"stages.{name}.{mistake}" for mistake in error.mistakes]
    if mistakes:
        raise RecipeError(mistakes, str(path))
    return Pipeline(str(path), Path(tree["folder"]), tuple(stages))


class _Reader:
    """Stages one after the other, each seeing those before it."""

    def __init__(self, file: Path, folder: Path, names: Sequence[str]) -> None:
        self._file, self._folder, self._names = file, folder, names
        self._read: dict[str, Stage] = {}

    def stage(self, name: str, own: dict[str, Any], overrides: Sequence[str]) -> Stage:
        """Raises RecipeError for references that lead nowhere, and what the files it extends raise."""
        early = [text for text in overrides if text.partition("=")[0] in BEFORE_MERGING]
        late = [text for text in overrides if text not in early]
        own = apply_overrides(own, early)
        evaluates = self._evaluated(name, own) if "evaluate" in own else None
        measured = _stage_in(evaluates)
        base = self._read[measured].tree if measured and "extends" not in own else self._extended(own)
        # The folder of a file that is extended is that of a run on its own.
        base = merge(base, {"run": {"folder": str(self._folder / name)}})
        rest = {key: value for key, value in own.items() if key not in BEFORE_MERGING}
        tree = apply_overrides(merge(base, rest), late)
        if evaluates:
            model = tree.get("model")
            settings = model if isinstance(model, dict) else {"path": model}
            # A revision belongs to the path it was written for.
            of_path = {} if settings.get("path") == evaluates else {"path": evaluates, "revision": None}
            tree = {**tree, "model": {**settings, **of_path}}
        stage = Stage(name, tree, evaluates, own_recipe=bool(rest or late or "extends" in own))
        mistakes = [m for key, other in stage.references if (m := self._nowhere(name, key, other))]
        if mistakes:
            raise RecipeError(mistakes)
        self._read[name] = stage
        return stage

    def _extended(self, own: dict[str, Any]) -> dict[str, Any]:
        try:
            return extended(own, self._file, (self._file,))
        except RecipeError as error:
            # The file at fault stands in the first line.
            raise RecipeError([f"extends: {' '.join(str(error).split())}"]) from None

    def _evaluated(self, name: str, own: Mapping[str, Any]) -> str:
        value, found = own["evaluate"], _stage_in(own["evaluate"])
        if not isinstance(value, str) or not value or value in self._names:
            raise RecipeError([f"evaluate: {value!r} names no model; write evaluate: stage:NAME, or a model's path"])
        if found is None:
            if set(own) == {"evaluate"}:
                way_out = "write evaluate: stage:NAME, or for a model the recipe too: extends: recipe.yaml"
                raise RecipeError([f"evaluate: {value!r} names no stage; {way_out}"])
            return value
        if mistake := self._nowhere(name, "evaluate", found):
            raise RecipeError([mistake])
        if found not in self._read:
            raise RecipeError([f"evaluate: stage:{found} cannot be read; see its own mistakes"])
        return str(value)

    def _nowhere(self, name: str, key: str, other: str) -> str | None:
        """Why `stage:OTHER` is no artefact that the stage `name` can take; None where it is one."""
        earlier = self._names[: self._names.index(name)]
        able = [n for n in earlier if n not in self._read or not self._read[n].evaluates]
        if other in able:
            return None
        start = f"{key}: 'stage:{other}'"
        if other in earlier:
            return f"{start} only measures and makes no model; name the stage it evaluates"
        if other in self._names:
            return f"{start} does not run before {name}; move it up, or name one of: {', '.join(able) or '(none)'}"
        near = difflib.get_close_matches(other, able, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"stages before {name}: {', '.join(able) or '(none)'}"
        return f"{start} is no stage of this pipeline; {hint}"


def _shape(tree: Mapping[str, Any]) -> list[str]:
    """What is wrong with a pipeline before any of its stages is read."""
    found = [f"{k}: unknown key; a pipeline has {' and '.join(KEYS)}" for k in tree if k not in KEYS]
    if not isinstance(tree.get("folder"), str):
        found.append(f"folder: {tree.get('folder')!r}; name the folder that the stages' folders are put into")
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not stages:
        return [*found, f"stages: {stages!r}; name at least one stage: {{first: {{extends: recipe.yaml}}}}"]
    for name, own in stages.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
            found.append(f"stages: {name!r} is no name; use a letter, then letters, digits, - and _")
        elif name == TAKEN:
            found.append(f"stages: {name!r} is the name of the pipeline's own files; take another")
        if not isinstance(own, dict):
            found.append(f"stages.{name}: expected the keys of a recipe, found {type(own).__name__}")
    return found


def _divided(overrides: Sequence[str], names: Sequence[str], source: str) -> tuple[dict[str, list[str]], list[str]]:
    """Overrides by stage, without their `stages.NAME.`, and those of the pipeline itself. Raises RecipeError."""
    of_stage: dict[str, list[str]] = {}
    own, mistakes = [], []
    for text in overrides:
        key, _, _ = text.partition("=")
        first, _, inner = key.partition(".")
        name, _, rest = inner.partition(".")
        if key == "folder":
            own.append(text)
        elif first == "stages" and name in names and rest:
            of_stage.setdefault(name, []).append(text.removeprefix(f"stages.{name}."))
        else:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if first == "stages" else []
            hint = f"did you mean 'stages.{near[0]}.key'?" if near else f"stages: {', '.join(map(str, names))}"
            mistakes.append(f"{text}: over a pipeline, write folder=... or stages.NAME.key=value; {hint}")
    if mistakes:
        raise RecipeError(mistakes, source)
    return of_stage, own


def _stage_in(value: Any) -> str | None:
    match = re.fullmatch(r"stage:(\S*)", value) if isinstance(value, str) else None
    return match.group(1) if match else None


def _references(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _references(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _references(value, f"{key}[{i}]")
    elif (stage := _stage_in(tree)) is not None:
        yield key, stage


def _replaced(tree: Any, artefact: Callable[[str, str], str], key: str = "") -> Any:
    if isinstance(tree, dict):
        return {n: _replaced(v, artefact, f"{key}.{n}" if key else str(n)) for n, v in tree.items()}
    if isinstance(tree, list):
        return [_replaced(v, artefact, f"{key}[{i}]") for i, v in enumerate(tree)]
    stage = _stage_in(tree)
    return tree if stage is None else artefact(key, stage)
