"""Where an adapter cannot be served beside its base, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.build.check import check
from posttrain.errors import RecipeError
from posttrain.recipe import merged_because, parse, published_apart
from tests.runs import recipe


def asked(folder: Path, **changes: Any) -> dict[str, Any]:
    folder.joinpath("model").mkdir(exist_ok=True)
    folder.joinpath("model/config.json").write_text("{}")
    for name in ("train", "eval"):
        folder.joinpath(f"{name}.jsonl").write_text(json.dumps({"prompt": f"say {name}", "letter": "a"}) + "\n")
    model = {"path": str(folder / "model"), "lora": changes.pop("lora", {"rank": 4})}
    sampler = {"adapters": "apart", **changes.pop("sampler", {})}
    hardware = {"sampler": sampler}
    return recipe(folder, **{"model": model, "rollout": {"engine": "vllm"}, "hardware": hardware, **changes})


CANNOT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no adapter": ({"lora": None}, ["no model.lora", "leave it out"]),
    "merged without an adapter": ({"lora": None, "sampler": {"adapters": "merged"}}, ["merged", "leave it out"]),
    "another engine": ({"rollout": {"engine": "transformers"}}, ["rollout.engine: transformers", "merged or auto"]),
    "servers": ({"sampler": {"placement": "servers"}}, ["placement: servers", "merged or auto"]),
    "a head": ({"lora": {"targets": ["q_proj", "lm_head"]}}, ["model.lora.targets: 'lm_head'", "merged or auto"]),
    "a table": ({"lora": {"targets": ["model.embed_tokens"]}}, ["model.lora.targets: 'model.embed_tokens'"]),
    "a plan": ({"sampler": {"sync": "planned"}}, ["hardware.sampler.sync: planned", "merged or auto"]),
    "nothing sampled": ({"algorithm": "sft", "rewards": []}, ["nothing is sampled", "leave it out"]),
}


@pytest.mark.parametrize("name", CANNOT)
def test_apart_is_refused_by_name_before_anything_starts(tmp_path: Path, name: str) -> None:
    changes, words = CANNOT[name]
    with pytest.raises(RecipeError) as found:
        check(parse(asked(tmp_path, **changes)))
    (said,) = [m for m in found.value.mistakes if m.startswith("hardware.sampler.adapters: ")]
    assert [word for word in words if word not in said] == []


def test_a_quantised_base_is_seen_in_its_config(tmp_path: Path) -> None:
    tree = asked(tmp_path)
    assert check(parse(tree)).recipe.hardware.sampler.adapters == "apart"
    folder = Path(tree["model"]["path"])
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(RecipeError, match="quantised"):
        check(parse(tree))


@pytest.mark.parametrize("name", ["another engine", "servers", "a head", "a table", "a plan"])
def test_auto_merges_what_cannot_be_apart_and_has_the_reason(tmp_path: Path, name: str) -> None:
    changes = CANNOT[name][0]
    tree = asked(tmp_path, **{**changes, "sampler": {**changes.get("sampler", {}), "adapters": "auto"}})
    found = parse(tree)
    assert not published_apart(found)
    assert CANNOT[name][1][0].split(",")[0] in (merged_because(found) or "")
    assert published_apart(parse(asked(tmp_path)))


def test_auto_merges_on_a_cpu_which_draws_slowly_with_an_adapter_beside(tmp_path: Path) -> None:
    found = parse(asked(tmp_path, sampler={"adapters": "auto"}))
    assert "half the speed" in (merged_because(found, device="cpu") or "")
    assert merged_because(found, device="cuda") is None
    assert merged_because(parse(asked(tmp_path)), device="cpu") is None
