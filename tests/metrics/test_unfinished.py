"""Responses of an evaluation that was not finished: what stands there comes back as it was, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.metrics.unfinished import unfinished, unfinished_path
from posttrain.types import Prompt, Rollout, Sampling

HEADER = {"model": "m", "step": 3, "sampling": {"samples": 2}}
PROMPTS = [Prompt("a", (1, 2), "a"), Prompt("b", (5,), "b")]
SAID = [
    Rollout(
        tokens=(1, 2, 7, 8),
        mask=(False, False, True, True),
        text="half an emoji \ud83d, a line\u2028break",
        finish_reason="length",
        logprobs=(0.0, 0.0, -0.1, -1.2345678901234567e-8),
        versions=(-1, -1, 3, 3),
        seed=2**60 + 1,
        sampling=Sampling(0.7, 16, top_p=0.9),
    ),
    Rollout((5, 9), (False, True), "", "stop"),
]


class StoppedError(Exception):
    """What ends a block before its end."""


def keep(path: Path, *parts: tuple[str, int]) -> None:
    """An evaluation that ends after these parts."""
    with unfinished(path, HEADER) as kept:
        for part in parts:
            kept.keep(*part, PROMPTS, SAID)
        raise StoppedError


def stopped(path: Path, *parts: tuple[str, int]) -> None:
    with pytest.raises(StoppedError):
        keep(path, *parts)


def test_what_was_kept_comes_back_equal_and_what_was_not_is_none(tmp_path: Path) -> None:
    path = unfinished_path(tmp_path / "evaluations" / "step-000003.jsonl")
    assert path.name == "step-000003.partial.jsonl"
    stopped(path, ("evaluate", 0), ("greedy", 2))
    with unfinished(path, HEADER) as kept:
        assert kept.responses == 4
        assert kept.get("evaluate", 0, PROMPTS) == SAID
        assert kept.get("greedy", 2, PROMPTS) == SAID
        assert kept.get("evaluate", 2, PROMPTS) is None
        assert kept.get("evaluate", 0, PROMPTS[:1]) is None
    assert not path.exists()


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_line_is_drawn_again_and_the_whole_ones_stay(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.partial.jsonl"
    stopped(path, ("evaluate", 0), ("evaluate", 2))
    os.truncate(path, path.stat().st_size - cut)
    stopped(path, ("evaluate", 2))
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line).get("part") for line in lines[:-1]] == [None, ["evaluate", 0], ["evaluate", 2]]


def test_a_torn_header_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    path.write_bytes(b'{"format": "posttr')
    stopped(path, ("evaluate", 0))
    with unfinished(path, HEADER) as kept:
        assert kept.responses == 2


def test_responses_of_another_evaluation_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    stopped(path, ("evaluate", 0))
    before = path.read_bytes()
    for other in (HEADER | {"step": 4}, HEADER | {"top": 1}, {"model": "m", "step": 3}):
        with (
            pytest.raises(PosttrainError, match="remove the file, or write this one elsewhere"),
            unfinished(path, other),
        ):
            pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"{]\n", b"3\n", b'{"part": ["evaluate", 4]}\n'])
def test_a_damaged_line_is_named_and_nothing_is_overwritten(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.partial.jsonl"
    stopped(path, ("evaluate", 0))
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(PosttrainError, match="damaged"), unfinished(path, HEADER):
        pass
    assert path.read_bytes().endswith(line)


def test_two_processes_do_not_draw_the_same_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    again = f"""
from pathlib import Path
from posttrain.metrics.unfinished import unfinished
with unfinished(Path({str(path)!r}), {HEADER!r}):
    print("in")
"""
    with unfinished(path, HEADER):
        other = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "another process draws these responses" in other.stderr
    assert subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True).stdout == "in\n"


def test_a_roll_out_that_does_not_begin_with_its_prompt_is_not_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="does not begin with its prompt"),
        unfinished(tmp_path / "x.partial.jsonl", HEADER) as kept,
    ):
        kept.keep("evaluate", 0, PROMPTS, SAID[::-1])
