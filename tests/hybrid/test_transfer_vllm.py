"""A trainer on two ranks fills the real vLLM in the same processes, by its plan: completely, or it refuses to speak."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from posttrain.hybrid.plan import FAMILIES
from tests.ranks import on_ranks
from tests.runs import ROOT

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

BOUND = 1e-4
"""Between two correct fp32 implementations on a CPU."""
CASES = [
    ("tied", "fsdp2", 2),
    *(
        pytest.param(case, marks=pytest.mark.prove)
        for case in (("untied", "fsdp2", 1), ("moe", "fsdp2", 2), ("untied", "ddp", 2), ("moe", "fsdp2", 1))
    ),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: " ".join(map(str, case)))
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Everything about one model, sharding and engine: two processes, started once."""
    out: dict[str, Any] = json.loads(
        on_ranks("tests.hybrid.transfer_on_ranks", *map(str, request.param)).splitlines()[-1]
    )
    return out


def test_nothing_is_said_before_the_first_sync(found: dict[str, Any]) -> None:
    assert found["refused at first"] == [True, True]


def test_three_syncs_in_a_row_agree_with_a_plain_forward_pass(found: dict[str, Any]) -> None:
    for gaps in found["gaps"]:
        assert len(gaps) == 3
        assert max(gaps) < BOUND


def test_each_rank_receives_the_least_it_can(found: dict[str, Any]) -> None:
    for reports in found["reports"]:
        for report in reports:
            assert report["sync/bytes_received"] == report["sync/bytes_bound"]
            assert report["sync/seconds"] > 0
    received = {report["sync/bytes_received"] > 0 for reports in found["reports"] for report in reports}
    assert received == {"(rows)" in found["words"]}
    assert found["rounds"] > 1 or received == {False}


def test_whole_tensors_may_be_streamed_between_two_planned_syncs(found: dict[str, Any]) -> None:
    assert max(found["gap after a gathered sync"]) < BOUND


def test_a_withheld_message_silences_every_rank_until_a_complete_sync(found: dict[str, Any]) -> None:
    for broken in found["broken"]:
        assert "did not arrive" in broken["said"]
        assert broken["refused"] is True
        assert broken["version"] is None
    assert max(found["gap after a broken sync"]) < BOUND


def test_the_engine_notices_every_single_parameter(found: dict[str, Any]) -> None:
    assert min(found["perturbed"]) >= 20
    assert found["unnoticed"] == [[], []]
    assert max(found["largest gap"]) < BOUND


@pytest.mark.prove
def test_every_family_with_rules_is_synced_by_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hybrid.families_synced", *FAMILIES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["family"] for each in told] == list(FAMILIES)
    assert {each["family"]: each["refused"] for each in told if "refused" in each} == {}
    assert {each["family"]: each["gaps"] for each in told if len(each["gaps"]) != 3 or max(each["gaps"]) >= BOUND} == {}
