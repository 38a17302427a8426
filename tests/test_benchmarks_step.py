"""What the comparison of steps says without a clock: its arithmetic, its plan, its rows, and what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.step import Case, agree, cases_of, fitting, parsed
from benchmarks.step_cases import SHAPES, Job, Shape, Size, endless, recipe_of, rows_of, size_of, useful_flops
from benchmarks.step_table import lines, summary
from benchmarks.step_turns import planned
from posttrain.build.check import check
from posttrain.build.reading import read
from posttrain.build.wire import open_checkpoint
from posttrain.data.chat import Chat
from posttrain.models.checkpoint import load_tokenizer, stop_tokens
from posttrain.recipe import load
from tests.runs import ROOT
from tests.tiny import tiny_folder

SMALL = Shape("small", "online", 24, 8, 3, 4)


def job(folder: Path, shape: Shape, **changes: Any) -> Job:
    first = Job(shape, False, folder, folder, folder, "float32", "cpu", 1e-6, 64, ROOT / "configs/hardware/cpu.yaml")
    return replace(first, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step")
    return endless(str(tiny_folder(folder / "model")), folder / "endless")


def test_useful_arithmetic_is_what_was_counted_by_hand() -> None:
    # 3 prompts of 24 tokens, 12 answers of 8: 96 learnt, 168 with the prompts once.
    size = Size(body=1000, head=500, adapters=10)
    assert useful_flops(SMALL, size, adapter=False) == 6 * 1000 * 168 + 6 * 500 * 96 == 1_296_000
    assert useful_flops(SMALL, size, adapter=True) == (4 * 1000 + 6 * 10) * 168 + 4 * 500 * 96 == 874_080
    pairs = replace(SMALL, kind="pairs", responses=2)
    # 48 learnt, 120 with the prompts; a forward pass of the reference more.
    assert useful_flops(pairs, size, adapter=False) == 8 * 1000 * 120 + 8 * 500 * 48 == 1_152_000


def test_weights_are_counted_by_where_they_are(model: Path) -> None:
    # Two layers of width 64: queries and outputs 64 x 64, keys and values 64 x 32, three matrices of 96, two norms; and
    # the last norm. Adapters of rank 2 have 2 (inputs + outputs) on each matrix.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    adapter = 2 * (2 * 128 + 2 * 96 + 3 * 160)
    assert size_of(model, rank=2) == Size(body=2 * (layer + 128) + 64, head=96 * 64, adapters=2 * adapter)


@pytest.mark.parametrize(
    ("first", "left", "warmup", "steps", "expected"),
    [
        (10.0, 100.0, 1, 5, (0, 5)),
        (10.0, 35.0, 1, 5, (0, 3)),
        (10.0, 9.0, 1, 5, (0, 0)),
        (10.0, 100.0, 3, 5, (2, 5)),
        (10.0, 60.0, 3, 5, (1, 5)),
        (10.0, 20.0, 3, 5, (0, 2)),
        (10.0, -5.0, 1, 5, (0, 0)),
    ],
)
def test_rounds_are_as_many_as_the_time_is_enough_for(
    first: float, left: float, warmup: int, steps: int, expected: tuple[int, int]
) -> None:
    more, counted = planned(first, left, warmup, steps)
    assert (more, counted) == expected
    assert (more + counted) * first <= max(left, 0)


def test_a_step_has_fewer_prompts_where_three_rounds_take_longer_than_there_is() -> None:
    eight = SHAPES["short"]
    assert fitting(eight, seconds=10, share=30) == eight
    assert fitting(eight, seconds=10, share=29).prompts == 4
    assert fitting(eight, seconds=80, share=60).prompts == 2
    assert fitting(eight, seconds=800, share=60).prompts == 1


def test_cases_are_shapes_with_all_weights_and_with_adapters() -> None:
    assert [c.name for c in cases_of(parsed([]))] == [
        f"{shape} {way}" for shape in ("short", "long", "dpo", "sft") for way in ("full", "adapter")
    ]
    assert [c.name for c in cases_of(parsed(["--shapes", "dpo,sft", "--only", "adapter"]))] == [
        "dpo adapter",
        "sft adapter",
    ]
    with pytest.raises(SystemExit):
        parsed(["--shapes", "tall"])


@pytest.mark.parametrize("kind", ["online", "pairs", "texts"])
def test_every_row_has_exactly_its_tokens_and_posttrain_reads_it_so(tmp_path: Path, model: Path, kind: Any) -> None:
    shape = Shape("rows", kind, 64, 24, 3, {"online": 4, "pairs": 2, "texts": 1}[kind])
    tokenizer = load_tokenizer(model)
    rows = rows_of(shape, tokenizer)
    assert len({row["prompt"] for row in rows}) == len(rows)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe_of(job(model, shape, rows=file, work=tmp_path / "ours"))
    checked = check(load(path), str(path))
    data = read(checked, open_checkpoint(checked.recipe))
    assert {len(p.tokens) for p in data.train or [g.prompt for g in data.given]} == {64}
    said = [r for group in data.given for r in group.rollouts]
    assert len(said) == (0 if kind == "online" else len(rows) * shape.responses)
    assert {(len(r.tokens), r.length) for r in said} <= {(88, 24)}
    assert checked.recipe.optimizer.prompts_per_step == 3


def test_the_model_never_ends_a_response(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert stop_tokens(model, tokenizer) == ()
    assert tokenizer.pad_token_id == 1
    # What a template writes at the end of a turn is still learnt.
    assert Chat(tokenizer).stop_ids == (1,)


def test_the_other_sides_micro_batches_divide_a_step_and_hold_the_limit(tmp_path: Path) -> None:
    assert job(tmp_path, SMALL).micro_batch == 2
    assert job(tmp_path, SMALL, row_tokens=150).micro_batch == 4
    assert job(tmp_path, SMALL, row_tokens=8).micro_batch == 1
    assert job(tmp_path, replace(SMALL, kind="pairs", responses=2), row_tokens=200).micro_batch == 3


def one(ours: float, theirs: float) -> dict[str, dict[str, float]]:
    def side(seconds: float) -> dict[str, float]:
        phases = {"generate": 1.0, "learn": seconds - 1.5, "publish": 0.25, "rest": 0.25}
        return {"seconds": seconds, "processor": 2 * seconds, "peak": 1e9, **phases}

    return {"ours": side(ours), "trl": side(theirs)}


def test_ratios_are_of_the_same_round() -> None:
    found = summary([one(2.0, 8.0), one(4.0, 8.0), one(2.0, 2.0)], learnt=100, flops=5e9, rate=1e10)
    assert found["ratio"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert found["ours"]["step"] == {"median": 2.0, "min": 2.0, "max": 4.0}
    assert found["ours"]["tokens_per_second"] == 50.0
    # Half a second of learning in the median: 5e9 of 0.5e10.
    assert found["ours"]["useful_of_rate"] == 1.0
    assert found["trl"]["useful_of_rate"] == pytest.approx(5e9 / 6.5e10)
    assert found["ratio_processor"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    first, second = lines("short full", found)
    assert first.startswith("short full    ours")
    assert "2.00 [1.00-4.00]" in first
    assert "8.00 [2.00-8.00]" in second


def test_sides_that_did_other_work_are_refused() -> None:
    def tokens(ours: float, theirs: float) -> Any:
        return {"ours": {"tokens": ours}, "trl": {"tokens": theirs}}

    agree(Case(SMALL, False), [tokens(96, 96)])
    with pytest.raises(SystemExit, match="96 and 95 tokens"):
        agree(Case(SMALL, False), [tokens(96, 96), tokens(96, 95)])
    texts = replace(SMALL, kind="texts", responses=1)
    agree(Case(texts, False), [tokens(96, 99)])
    with pytest.raises(SystemExit):
        agree(Case(texts, False), [tokens(96, 103)])
