"""Stored responses are graded again without a model: the same verdicts, or those of other verifiers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from posttrain.build.heading import refuse_other, verifiers, versions
from posttrain.build.rescore import rescore
from posttrain.errors import DataError, PosttrainError, RecipeError
from posttrain.evaluation import Benchmark, evaluate, items
from posttrain.metrics.results import Results, read, write
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rollout import Request
from posttrain.types import Prompt, Rollout, Sampling

EQUAL = Reward(verifier="tests.graders:equal")


class Fixed:
    """A sampler that knows three answers."""

    version = 1

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        said = ["yes", "no", "maybe"]
        return [
            Rollout(
                (*r.prompt.tokens, 7), (False, False, True), said[i % 3], "length" if i % 2 else "stop", seed=r.seed
            )
            for i, r in enumerate(requests)
        ]


def stored(path: Path, columns: dict[str, str] | None = None, **header: object) -> Path:
    """The results of an evaluation of four problems, two samples and a greedy response to each."""
    row = {"answer": "yes"} if columns is None else columns
    prompts = [Prompt(f"rows/{i}", (3, i), f"is it {i}?", row) for i in range(4)]
    with Grader([EQUAL], Grading(workers=1)) as grader:
        benchmark = Benchmark(prompts, grader, 2, 1.0, 4, greedy=True, seed=3)
        result = evaluate(Fixed(), benchmark)
    made = {"model": "m", "step": 2, "seed": 3, "verifiers": verifiers([EQUAL]), "versions": versions(), **header}
    write(path, Results(made, items(benchmark, result.groups)))
    return path


def test_the_same_verifiers_give_the_same_file_and_figures(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl")
    found = rescore(path, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == path.read_bytes()
    assert found["changed"] == 0
    assert found["results"] == str(tmp_path / "b.jsonl")
    # Of yes, no, maybe in turn, three of eight samples and two of four greedy answers are yes.
    assert (found["eval/accuracy"], found["eval/greedy"]) == (pytest.approx(3 / 8), pytest.approx(2 / 4))


def test_other_verifiers_change_the_verdicts_and_are_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path / "a.jsonl")
    before = path.read_bytes()
    found = rescore(path, tmp_path / "b.jsonl", ["rewards=[{verifier: 'tests.graders:always_one', name: lenient}]"])
    again = read(tmp_path / "b.jsonl")
    assert found["eval/accuracy"] == found["eval/greedy"] == 1.0
    assert found["changed"] == 5 + 2
    assert "7 of 12 verdicts changed" in capsys.readouterr().err
    assert again.header["verifiers"][0]["name"] == "lenient"
    assert all(s.score == 1.0 and s.parts == {"lenient": 1.0} for item in again.items for s in item.samples)
    assert [s.completion for s in again.items[0].samples] == [s.completion for s in read(path).items[0].samples]
    assert path.read_bytes() == before


def test_without_a_file_to_write_nothing_is_written(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl")
    assert "results" not in rescore(path, None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_column_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl")
    other = "rewards=[{verifier: 'tests.graders:letters'}]"
    with pytest.raises(DataError, match="letters needs the column 'letter' of 'rows/0', which has only answer"):
        rescore(path, None, [other])
    path = stored(tmp_path / "b.jsonl", columns_left_out=["letter"])
    with pytest.raises(DataError, match="'letter' of 'rows/0', which is no JSON and was left out"):
        rescore(path, None, [other])


def test_only_rewards_and_how_they_run_can_be_said_anew(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl")
    assert rescore(path, None, ["grading.timeout=5"])["changed"] == 0
    for override, message in (
        ("evaluation.samples=3", r"evaluation: stored responses can only be graded again"),
        ("grading.timeout=-1", "grading.timeout: Input should be greater than 0"),
        ("rewards=[]", "rewards: the file names no verifier"),
        ("rewards=[{name: x}]", "reward.verifier: Field required"),
    ):
        with pytest.raises(RecipeError, match=message):
            rescore(path, None, [override])


def test_grading_again_needs_no_torch(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl")
    code = (
        "import sys; from pathlib import Path; from posttrain.build.rescore import rescore\n"
        f"if __name__ == '__main__': rescore(Path({str(path)!r}), None); assert 'torch' not in sys.modules"
    )
    (tmp_path / "again.py").write_text(code)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "again.py")], cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_results_of_another_evaluation_are_not_written_over(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl")
    heading = read(path).header
    refuse_other(path, heading)
    refuse_other(tmp_path / "none.jsonl", heading)
    refuse_other(path, {**heading, "versions": {"posttrain": "9"}})
    refuse_other(path, {**heading, "verifiers": [{**heading["verifiers"][0], "version": "9"}]})
    for changed in ({"seed": 4}, {"verifiers": [{**heading["verifiers"][0], "weight": 2.0}]}, {"best_of": "x"}):
        with pytest.raises(PosttrainError, match=rf"holds another evaluation \({next(iter(changed))}: .*--out FILE"):
            refuse_other(path, {**heading, **changed})
