"""The command lines that read result files: `compare`, and `evaluate --rescore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from posttrain.cli import app
from posttrain.errors import PosttrainError
from posttrain.metrics.results import Item, Results, Sampled, read, write


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def results(path: Path, scores: str) -> Path:
    """Problems answered once each, rightly where `scores` has a 1; the answer is `a`."""
    rest: dict[str, Any] = {"status": "ok", "reason": "", "parts": {}, "answer": None, "length": 1, "truncated": False}
    items = []
    for i, score in enumerate(scores):
        said = Sampled("ab"[score == "0"], float(score), **rest, greedy=True, tokens=(1,), seed=0)
        items.append(Item(f"made/{i}", f"What is {i}?", {"question": f"What is {i}?", "answer": "a"}, (said,)))
    header = {"model": path.stem, "verifiers": [{"verifier": "tests.graders:equal"}]}
    write(path, Results(header, tuple(items)))
    return path


def test_compare_prints_a_table_or_json_and_draws(tmp_path: Path) -> None:
    files = [results(tmp_path / "one.jsonl", "10001010"), results(tmp_path / "two.jsonl", "11110111")]
    shown = invoke("compare", *files)
    assert shown.exit_code == 0, shown.exception
    assert "one" in shown.output
    drawn = tmp_path / "drawn.png"
    found = json.loads(invoke("compare", *files, "--json", "--metric", "greedy", "--picture", drawn).stdout)
    assert len(found["pairs"]) == 1
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    refused = invoke("compare", *files, "--metric", "no such metric")
    assert isinstance(refused.exception, PosttrainError)


def test_compare_says_how_many_problems_would_find_the_difference_that_is_asked_for(tmp_path: Path) -> None:
    files = [results(tmp_path / "one.jsonl", "0001"), results(tmp_path / "two.jsonl", "1110")]
    wanted = ["--plan", "smallest=0.1, power=0.9, level=0.01, looks=2, per_look=6"]
    found = json.loads(invoke("compare", *files, "--json", *wanted).stdout)
    assert found["pairs"][0]["problems_needed"] == 1488  # (2.575829 + 1.281552)^2 / .1^2
    assert found["plan"] == {"per_look": 6, "looks": 2, "level": 0.01, "power": 0.9, "smallest": 0.1}
    assert "for 90 %" in invoke("compare", *files, *wanted).output
    refused = invoke("compare", *files, "--plan", "power=1")
    assert isinstance(refused.exception, PosttrainError)
    assert "power 1.0" in str(refused.exception)


def test_evaluate_rescores_a_file_without_a_model(tmp_path: Path) -> None:
    file, out = results(tmp_path / "one.jsonl", "1010"), tmp_path / "new.jsonl"
    lenient = "rewards=[{verifier: 'tests.graders:always_one'}]"
    found = invoke("evaluate", "--rescore", file, "--out", out, "--json", lenient, "grading.workers=1")
    assert found.exit_code == 0, found.exception
    assert [sample.score for item in read(out).items for sample in item.samples] == [1.0] * 4
    assert [sample.score for item in read(file).items for sample in item.samples] == [1.0, 0.0, 1.0, 0.0]
    none = invoke("evaluate", "--rescore", tmp_path / "none.jsonl")
    assert isinstance(none.exception, PosttrainError)
