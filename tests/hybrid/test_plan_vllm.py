"""vLLM's own loaders put every tensor where the plan says, on every rank, for every family that has rules."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from posttrain.hybrid.plan import FAMILIES
from tests.runs import ROOT

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

FEW = [["llama", True, 1], ["llama", False, 4], ["phi3", False, 2], ["qwen3_moe", False, 2]]
"""(family, tied head, tensor parallelism). Eight heads, two of keys and values: from four ranks on they are copied."""
ALL = [[family, family.startswith("gemma") or family == "qwen2", 2] for family in FAMILIES]
ALL += [["qwen3_moe", False, 1], ["llama", True, 4], ["qwen2", False, 8], ["phi3", False, 4], ["qwen3_moe", False, 4]]


@pytest.mark.parametrize("cases", [FEW, pytest.param(ALL, marks=pytest.mark.prove)], ids=["some", "every family"])
def test_vllms_own_loaders_fill_every_parameter_as_the_plan_does(cases: list[list[Any]]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hybrid.vllm_loaders", json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[-1].removeprefix("RESULT "))
    assert len(found) == len(cases)
    assert {str(case): wrong for case, wrong in zip(cases, found, strict=True) if wrong} == {}
