"""`compare`: which problems, which seeds, and what a reader is told."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from posttrain.errors import PosttrainError
from posttrain.metrics.comparison import compare, picture, render
from posttrain.metrics.results import Item, Results, Sampled, read, results_path, write
from posttrain.metrics.seeds import Plan
from posttrain.metrics.statistics import binomial_test, both_quantiles, holm


def response(score, *, greedy=False, said="x", **others):
    status = "ok" if score is not None else "error"
    fields = {"reason": "", "parts": {}, "answer": None, "length": 3, "truncated": False, "tokens": (1,), "seed": 0}
    return Sampled(**{"completion": said, "score": score, "status": status, "greedy": greedy, **fields, **others})


def results(path, scores, *, source="maths", greedy=True, first=0, prompt="{}", header=None):
    """One problem for each entry of `scores`: a number for a single response, or a list of numbers."""
    items = []
    for index, of in enumerate(scores, start=first):
        several = of if isinstance(of, list) else [of]
        said = [response(s, greedy=greedy, said=f"{path.name} {index} {k}") for k, s in enumerate(several)]
        row = {"problem": f"What is {index}?", "answer": str(index)}
        items.append(Item(f"{source}/{index}", prompt.format(row["problem"]), row, tuple(said)))
    write(path, Results(header or {"model": "m"}, tuple(items)))
    return path


def said(found, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(found))
    return console.file.getvalue()


A, B = [1, 0, 0, 0, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1, 1, 1]


def test_two_files_are_compared_problem_by_problem(tmp_path):
    found = compare([results(tmp_path / "a.jsonl", A), results(tmp_path / "b.jsonl", B)])
    (pair,) = found["pairs"]
    assert found["metric"] == "greedy"
    assert (pair["first"], pair["second"], pair["benchmark"], pair["problems"]) == ("a", "b", "maths", 8)
    assert pair["difference"] == pytest.approx(7 / 8 - 3 / 8)
    assert pair["won"] == ["maths/1", "maths/2", "maths/3", "maths/5", "maths/7"]
    assert (pair["lost"], pair["tied"]) == (["maths/4"], ["maths/0", "maths/6"])
    assert pair["p"] == pair["p_holm"] == binomial_test(5, 1)
    assert pair["low"] < pair["difference"] < pair["high"]
    variance = np.var(np.array(B) - np.array(A), ddof=1)
    assert pair["problems_needed"] == math.ceil((1.959964 + 0.841621) ** 2 * variance / 0.25)
    assert pair["problems_to_add"] == pair["problems_needed"] - 8
    assert found["seeds"] == found["notes"] == []
    json.dumps(found, allow_nan=False)


def test_the_other_order_of_systems_negates_the_difference(tmp_path):
    a, b = results(tmp_path / "a.jsonl", A), results(tmp_path / "b.jsonl", B)
    (there,), (back,) = compare([a, b])["pairs"], compare([b, a])["pairs"]
    assert (there["difference"], there["low"], there["high"]) == (-back["difference"], -back["high"], -back["low"])
    assert (there["won"], there["lost"], there["p"]) == (back["lost"], back["won"], back["p"])


def test_rows_in_another_order_and_under_other_ids_are_the_same_problems(tmp_path):
    a = results(tmp_path / "a.jsonl", A)
    there = read(results(tmp_path / "b.jsonl", B, source="hub:main:test"))
    turned = [replace(item, columns=dict(reversed(item.columns.items()))) for item in reversed(there.items)]
    write(b := tmp_path / "b.jsonl", Results(there.header, tuple(turned)))
    (pair,) = compare([a, b])["pairs"]
    assert (pair["won"][0], pair["lost"], pair["difference"]) == ("maths/1", ["maths/4"], 0.5)


def test_a_run_folder_stands_for_its_newest_evaluation_and_gives_its_name(tmp_path):
    for step, scores in ((0, A), (5, A), (10, B)):
        results(results_path(tmp_path / "grpo", step), scores)
    found = compare([results_path(tmp_path / "grpo", 0), tmp_path / "grpo"])
    assert [row["name"] for row in found["systems"]] == ["step-000000", "grpo"]
    assert found["pairs"][0]["difference"] == 0.5
    (tmp_path / "empty").mkdir()
    with pytest.raises(PosttrainError, match="run posttrain evaluate"):
        compare([tmp_path / "empty", tmp_path / "grpo"])


def test_other_problems_are_refused_by_name(tmp_path):
    a = results(tmp_path / "a.jsonl", A)
    with pytest.raises(PosttrainError, match=r"1 only in .*a\.jsonl: maths/0; 1 only in .*b\.jsonl: maths/8; evaluate"):
        compare([a, results(tmp_path / "b.jsonl", B, first=1)])
    with pytest.raises(PosttrainError, match=r"8 only in .*maths/10, maths/11"):
        compare([a, results(tmp_path / "b.jsonl", B, first=10)])
    with pytest.raises(PosttrainError, match="a was measured on maths, b on code"):
        compare([a, results(tmp_path / "b.jsonl", B, first=10, source="code")])
    c = results(tmp_path / "c.jsonl", B)
    c.write_text(c.read_text().replace('"answer": "3"', '"answer": "4"'))
    with pytest.raises(PosttrainError, match=r"1 have other columns: maths/3 \(answer\)"):
        compare([a, c])


def test_ungraded_responses_are_left_out_and_counted(tmp_path):
    a = results(tmp_path / "a.jsonl", [[1, 0], [1, None], [None, None], [0, 0]], greedy=False)
    b = results(tmp_path / "b.jsonl", [[1, 1], [0, 1], [1, 1], [0, None]], greedy=False)
    found = compare([a, b])
    assert found["metric"] == "accuracy"
    assert [(row["ungraded"], row["problems"]) for row in found["systems"]] == [(3, 3), (1, 4)]
    (pair,) = found["pairs"]
    # .5, -.5 and 0.
    assert (pair["problems"], pair["left_out"], pair["difference"], pair["test"]) == (3, 1, 0.0, "sign flips")
    assert "1 left out" in said(found)


def test_metrics_are_those_of_an_evaluation(tmp_path):
    a = results(tmp_path / "a.jsonl", [[1, 0, 0], [0, 0, 0]], greedy=False)
    b = results(tmp_path / "b.jsonl", [[1, 1, 0], [0, 0, 1]], greedy=False)
    for name in ("pass@2", "pass_at_2"):
        means = [row["mean"] for row in compare([a, b], name)["systems"]]
        assert means == pytest.approx([(2 / 3) / 2, (1 + 2 / 3) / 2])
    assert [row["mean"] for row in compare([a, b], "length_mean")["systems"]] == [3.0, 3.0]
    assert [row["mean"] for row in compare([a, b], "maj@1")["systems"]] == [0.0, 0.0]
    with pytest.raises(PosttrainError, match=r"no response was graded for style; there are accuracy.*no_answer"):
        compare([a, b], "style")
    with pytest.raises(PosttrainError, match="has no answer for greedy"):
        compare([a, b], "greedy")
    with pytest.raises(PosttrainError, match=r"3 samples; raise evaluation.samples"):
        compare([a, b], "pass@4")
    with pytest.raises(PosttrainError, match=r"has no greedy answers and .*c.jsonl no sampled ones"):
        compare([a, results(tmp_path / "c.jsonl", [1, 0])])


def test_what_is_no_property_of_the_systems_is_noted(tmp_path):
    a = results(tmp_path / "a.jsonl", A, header={"verifiers": [{"verifier": "x"}], "sampling": {"samples": 1}})
    b = results(tmp_path / "b.jsonl", B, header={"verifiers": [], "sampling": {"samples": 1}}, prompt="Please: {}")
    notes = compare([a, b])["notes"]
    assert len(notes) == 2
    assert "8 of 8 problems in other words" in notes[0]
    assert "differ in verifiers" in notes[1]


def test_accuracy_is_of_the_samples_and_greedy_of_the_greedy_answer(tmp_path):
    for name, greedy in (("a", 0.0), ("b", 1.0)):
        samples = [response(1.0), response(1.0), response(greedy, greedy=True)]
        write(tmp_path / f"{name}.jsonl", Results({}, (Item("x/0", "Q", {"q": "Q"}, tuple(samples)),)))
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    (sampled,), (greedy,) = compare(paths)["pairs"], compare(paths, "greedy")["pairs"]
    # Two samples that agree are no single verdict.
    assert (sampled["difference"], sampled["test"]) == (0.0, "sign flips")
    assert (greedy["difference"], greedy["test"]) == (1.0, "McNemar, exact")


def test_as_many_graded_samples_as_k_are_enough_and_fewer_leave_the_problem_out(tmp_path):
    a = results(tmp_path / "a.jsonl", [[1, 0, None], [1, None, None]], greedy=False)
    b = results(tmp_path / "b.jsonl", [[0, 0, 0], [1, 1, 1]], greedy=False)
    (pair,) = compare([a, b], "pass@2")["pairs"]
    assert (pair["problems"], pair["left_out"], pair["difference"]) == (1, 1, -1.0)


def test_three_systems_are_three_tests_and_each_asks_for_more(tmp_path):
    scores = {"a": A * 4, "b": B * 4, "c": (A[:4] + B[4:]) * 4}
    pairs = compare([results(tmp_path / f"{name}.jsonl", of) for name, of in scores.items()])["pairs"]
    assert [(row["first"], row["second"]) for row in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [row["p_holm"] for row in pairs] == holm([row["p"] for row in pairs])
    assert max(row["p_holm"] / row["p"] for row in pairs) == pytest.approx(3)
    row = pairs[0]
    assert row["problems_needed"] == math.ceil((both_quantiles(0.05 / 3, 0.8) * row["spread"] / row["difference"]) ** 2)


def seeds(folder, name, rates, count, source="maths"):
    for seed in range(count):
        draw = np.random.default_rng([seed, *name.encode()])
        scores = (draw.random((len(rates), 4)) < np.asarray(rates)[:, None]).astype(float).tolist()
        results(folder / f"{name}-{seed}.jsonl", scores, greedy=False, source=source)
    return f"{name}={folder}/{name}-*.jsonl"


def test_seeds_of_recipes_are_compared_over_seeds_too(tmp_path):
    rates = np.random.default_rng(0).random(30)
    low = seeds(tmp_path, "low", rates / 2, 5)
    high = seeds(tmp_path, "high", rates / 2 + 0.4, 5)
    found = compare([low, high])
    (row,) = found["seeds"]
    assert (row["runs"], row["decision"], row["looks"], row["add"]) == ([5, 5], "high is better", 1, 0)
    assert row["improvement"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    means = [np.mean(s["runs"]) for s in found["systems"]]
    assert found["pairs"][0]["difference"] == pytest.approx(means[1] - means[0])
    assert row["difference"]["value"] == pytest.approx(means[1] - means[0], abs=0.05)
    assert len(found["notes"]) == 1
    assert found["notes"][0].startswith("low has 5, high has 5 seeds: 95 % intervals over so few cover less")
    few = compare([low, f"high={tmp_path}/high-0.jsonl,{tmp_path}/high-1.jsonl"], plan=Plan(per_look=3, looks=4))
    assert (few["seeds"][0]["decision"], few["seeds"][0]["add"]) == ("undecided", 1)
    assert compare([low, f"{tmp_path}/high-0.jsonl"])["seeds"] == []


def test_several_benchmarks_are_rows_of_pairs_and_one_row_over_seeds(tmp_path):
    arguments = []
    for name in ("low", "high"):
        for source in ("maths", "code"):
            folder = tmp_path / source
            seeds(folder, name, [0.3 if name == "low" else 0.7] * 12, 2, source=source)
        files = [str(tmp_path / s / f"{name}-{k}.jsonl") for s in ("maths", "code") for k in (0, 1)]
        arguments.append(f"{name}={','.join(files)}")
    # The same words are other problems: their columns say so.
    for file in (tmp_path / "code").iterdir():
        file.write_text(file.read_text().replace("What is", "Write"))
    found = compare(arguments)
    assert [row["benchmark"] for row in found["pairs"]] == ["maths", "code"]
    assert len(found["seeds"]) == 1
    assert max(row["p"] for row in found["pairs"]) <= max(row["p_holm"] for row in found["pairs"])
    with pytest.raises(PosttrainError, match="low has 2 of maths, 1 of code"):
        compare([arguments[0].rpartition(",")[0], arguments[1]])
    with pytest.raises(PosttrainError, match="low was measured on maths, code, high on maths"):
        compare([arguments[0], f"high={tmp_path}/maths/high-*.jsonl"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/a.jsonl"], "needs two systems"),
        (["{}/a.jsonl", "{}/a.jsonl"], "is given twice"),
        (["x={}/a.jsonl,{}/a.jsonl", "{}/a.jsonl"], "a run counts once"),
        (["{}/a.jsonl", "{}/none.jsonl"], "no such file"),
        (["x={}/none-*.jsonl", "{}/a.jsonl"], "no such file"),
        (["x=,", "{}/a.jsonl"], "names no file"),
    ],
)
def test_arguments_without_sense_are_refused(tmp_path, arguments, message):
    results(tmp_path / "a.jsonl", A)
    with pytest.raises(PosttrainError, match=message):
        compare([argument.replace("{}", str(tmp_path)) for argument in arguments])


def test_the_same_responses_given_as_two_seeds_are_noted_and_a_system_is_its_own_equal(tmp_path):
    a = results(tmp_path / "a.jsonl", A)
    (tmp_path / "b.jsonl").write_text(a.read_text())
    found = compare([f"x={a},{tmp_path}/b.jsonl", f"y={a}"])
    assert any("hold the same responses" in note for note in found["notes"])
    (pair,) = found["pairs"]
    assert (pair["difference"], pair["p"], pair["problems_needed"]) == (0.0, 1.0, None)
    # Means over two runs are no single verdicts.
    assert pair["test"] == "sign flips"


def test_the_table_says_what_is_better_and_what_would_tell(tmp_path):
    paths = [results(tmp_path / f"{name}.jsonl", scores) for name, scores in (("a[b]", A), ("b", B))]
    text = said(compare(paths))
    assert "b - a[b]" in text
    assert "5:1:2" in text
    assert "b lost against a[b]: maths/4" in text
    assert "McNemar, exact" in text
    assert "add 10 problems" in text
    rates = np.full(20, 0.4)
    wide = said(compare([seeds(tmp_path, "low", rates, 2), seeds(tmp_path, "high", rates + 0.1, 2)]))
    assert "undecided: add 3, to 5 of each" in wide


def test_the_picture_is_as_high_as_its_rows_need_and_leaves_nothing_else(tmp_path):
    two = compare([results(tmp_path / "a.jsonl", A), results(tmp_path / "b.jsonl", B)])
    four = compare([results(tmp_path / f"{k}.jsonl", A[k:] + A[:k]) for k in range(4)])
    (tmp_path / "out").mkdir()
    heights = []
    for found in (two, four):
        picture(found, tmp_path / "out" / "compare.png")
        heights.append(matplotlib.image.imread(tmp_path / "out" / "compare.png").shape)
    assert [shape[1] for shape in heights] == [1200, 1200]
    assert heights[1][0] - heights[0][0] == pytest.approx(42 * 4, abs=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compare.png"]
