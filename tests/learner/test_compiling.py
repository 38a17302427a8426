"""Compiled norms and MLPs say and learn what those as they come do, and a machine that cannot compile is told so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from posttrain.build.learners import make_learner
from posttrain.build.wire import open_checkpoint
from posttrain.errors import ModelError, RecipeError
from posttrain.learner import compiling
from posttrain.learner.compiling import compilable, compile_parts
from posttrain.recipe import Lora, parse
from tests import offline_runs
from tests.learner.steps import accumulated, policy_gradient
from tests.runs import prepare, recipe
from tests.tiny import samples, tiny_folder, tiny_learner


def missing(*_: object, **__: object) -> None:
    raise RuntimeError("No working C++ compiler found in ('g++',)")


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "adapter"])
def test_what_is_compiled_says_and_learns_the_same(tmp_path: Path, lora: Lora | None) -> None:
    batch = samples()
    both = []
    for way in (True, False):
        learner = tiny_learner(tiny_folder(tmp_path), torch.float32, budget=30, lora=lora)
        if way:
            assert compile_parts(learner.model) == len(list(compilable(learner.model))) > 0
        read = learner.logprobs([s.rollout for s in batch])
        accumulated(learner, batch)
        both.append((torch.cat(read), policy_gradient(learner)))
        compiled = {type(m).__name__ for m in learner.model.modules() if m._compiled_call_impl is not None}
        assert compiled == ({"LlamaRMSNorm", "LlamaMLP"} if way else set())
    (said, gradient), (plain, expected) = both
    torch.testing.assert_close(said, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_copy_of_a_compiled_model_is_one_as_it_comes(tmp_path: Path) -> None:
    learner = tiny_learner(tiny_folder(tmp_path), torch.float32)
    compile_parts(learner.model)
    assert not any(m._compiled_call_impl for m in learner._copy().modules())


def test_a_machine_without_a_compiler_is_told_before_anything_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling.torch, "compile", missing)
    learner = tiny_learner(tiny_folder(tmp_path), torch.float32)
    with pytest.raises(ModelError, match=r"hardware\.learner\.compile: .*No working C\+\+.*compile: false"):
        compile_parts(learner.model)
    assert not any(m._compiled_call_impl for m in learner.model.modules())


def test_a_model_with_nothing_to_compile_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has nothing of the kind"):
        compile_parts(nn.Linear(2, 2))


def test_it_is_for_one_process(tmp_path: Path) -> None:
    tree = recipe(tmp_path, hardware={"learner": {"strategy": "fsdp2", "processes": 2, "compile": True}})
    with pytest.raises(RecipeError, match=r"hardware\.learner\.compile: true, but under strategy fsdp2"):
        parse(tree)
    tree["hardware"]["learner"]["compile"] = "auto"
    assert parse(tree).hardware.learner.compile == "auto"


def test_auto_goes_on_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(way: str) -> set[bool]:
        checked = offline_runs.checked(prepare(tmp_path), f"hardware.learner.compile={way}")
        learner = make_learner(checked, open_checkpoint(checked.recipe))
        return {m._compiled_call_impl is not None for m in compilable(learner.model)}

    assert compiled("auto") == compiled("true") == {True}
    assert compiled("false") == {False}
    monkeypatch.setattr(compiling.torch, "compile", missing)
    assert compiled("auto") == {False}
    with pytest.raises(ModelError, match="No working"):
        compiled("true")
