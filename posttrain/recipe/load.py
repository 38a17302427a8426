"""From YAML to a Recipe: fragments, overrides on the command line, and every mistake named with a way out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from posttrain.errors import RecipeError
from posttrain.recipe.blocks import Recipe

WHY_NOT = {
    "rollout.top_p": "filters renormalise the engine's log-probabilities and bias every on-policy ratio; leave it out",
    "rollout.top_k": "filters renormalise the engine's log-probabilities and bias every on-policy ratio; leave it out",
    "rollout.min_p": "filters renormalise the engine's log-probabilities and bias every on-policy ratio; leave it out",
    "model.lora.dropout": "under dropout no log-probability could agree with the engine's; leave it out",
    "evaluation.top_k": "evaluations filter by evaluation.top_p only",
    "run.evaluation": "evaluation is a block of its own, beside run",
    "seed": "the seed is run.seed",
    "steps": "the number of steps is run.steps",
}


class _Loader(yaml.SafeLoader):
    """YAML in which a key written twice is a mistake and 1e-5 is a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(k, deep=True) for k, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError([f"{key}: written twice, near line {node.start_mark.line + 1}; keep one"])
    return {k: loader.construct_object(v, deep=True) for k, (_, v) in zip(keys, node.value, strict=True)}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as text; a recipe means a number."""
    if isinstance(value, dict):
        return {k: _number(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_number(v) for v in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML with this module's rules. Raises RecipeError naming `source`."""
    try:
        return _number(yaml.load(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise RecipeError([f"not YAML: {' '.join(str(error).split())}"], source) from None


SHORTHANDS = {"algorithm": "name", "model": "path"}
"""Blocks that may be written as one word, and the key this word is the value of."""


FRAGMENT = "with"
"""The override that names a file to be put over a recipe."""
SOURCES = ("reasoning_gym", "file", "hub")
ASKED = ("prompt", "system", "shots", "columns", "since")
"""Keys of a source that say how its rows are asked."""


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins key by key; mappings merge, everything else is replaced whole.

    A mapping of another `source` has other keys, so of the one before only what every source has stays: how a row is
    asked, so that a benchmark's rows may come from a file. `skip` and `limit` count rows, which are others now. An
    `algorithm` of another name replaces the one before. A shorthand such as `algorithm: NAME` is opened where keys are
    put over it.
    """
    if base.get("source") in SOURCES and over.get("source", base["source"]) != base["source"]:
        base = {key: value for key, value in base.items() if key in ASKED}
    out = dict(base)
    for key, value in over.items():
        if key in SHORTHANDS and isinstance(value, dict) and isinstance(out.get(key), str):
            out[key] = {SHORTHANDS[key]: out[key]}
        if key == "algorithm" and isinstance(value, dict) and isinstance(out.get(key), dict):
            other = value.get("name", out[key].get("name")) != out[key].get("name")
            out[key] = {} if other else out[key]
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def read_mapping(path: Path) -> dict[str, Any]:
    """A file's own keys and values; what it extends is not read. Raises RecipeError naming the file."""
    if not path.is_file():
        raise RecipeError([f"no such file: {path}"], str(path))
    tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise RecipeError([f"expected keys and values, found {type(tree).__name__}"], str(path))
    return tree


def extended(tree: dict[str, Any], path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The merged files that a tree written in the file `path` extends, found relative to it; `path` is resolved."""
    parents = tree.get("extends") or []
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = merge(merged, _read(path.parent / parent, (*seen, path)))
    return merged


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise RecipeError(
            [f"extends: {path.name} extends itself through {' > '.join(p.name for p in seen)}"], str(path)
        )
    tree = read_mapping(path)
    return merge(extended(tree, path, seen), {k: v for k, v in tree.items() if k != "extends"})


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put `key.path=value` pairs, values in YAML, over a tree; opens a shorthand such as `algorithm: grpo`. With
    `with=FILE` a whole fragment is put over it, as `configs/hardware/cpu-fsdp2.yaml`.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError([f"{text!r}: an override is written key=value, as in optimizer.learning_rate=1e-5"])
        parsed = read_yaml(value, key)
        if key == FRAGMENT:
            for file in [parsed] if isinstance(parsed, str) else parsed:
                tree = merge(tree, _read(Path(file)))
            continue
        nested: Any = parsed
        for part in reversed(key.split(".")):
            nested = {part: nested}
        for name, shorthand in SHORTHANDS.items():
            if isinstance(nested.get(name), dict) and isinstance(tree.get(name), str):
                tree = {**tree, name: {shorthand: tree[name]}}
        tree = merge(tree, nested)
    return tree


def parse(tree: dict[str, Any], source: str = "recipe") -> Recipe:
    """A checked Recipe, or a RecipeError with every mistake: the key, the value, and the way out."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError([_explain(dict(item)) for item in error.errors()], source) from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file with what it extends and what the command line puts over it."""
    return parse(apply_overrides(_read(Path(path)), overrides), str(path))


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, every default written out; reads back as the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _explain(item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    tags = {i for i, part in enumerate(location) if i and part in SOURCES and location[i - 1] in ("train", "eval")}
    key = ".".join(part for i, part in enumerate(location) if i not in tags)
    key = key or "recipe"
    if item["type"] == "extra_forbidden":
        valid = _valid_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        why = WHY_NOT.get(key)
        hint = why or (f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}")
        return f"{key}: unknown key (value {item['input']!r}); {hint}"
    if item["type"] == "missing":
        return f"{key}: missing; add it"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" and key == "recipe":
        return message
    if item["type"].startswith("union_tag"):
        return f"{key}.source: {message}; use one of reasoning_gym, file, hub"
    return f"{key}: {message} (found {item['input']!r})"


def _valid_keys(location: Sequence[str]) -> list[str]:
    """The keys of the block at a location, found by walking the Recipe's own annotations."""
    blocks: list[type[BaseModel]] = [Recipe]
    for part in location:
        found: list[type[BaseModel]] = []
        for block in blocks:
            if part in block.model_fields:
                found += _blocks_in(block.model_fields[part].annotation)
            elif "source" in block.model_fields and part in get_args(block.model_fields["source"].annotation):
                found.append(block)
        blocks = found or blocks
    return sorted({name for block in blocks for name in block.model_fields})


def _blocks_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks_in(part)]
