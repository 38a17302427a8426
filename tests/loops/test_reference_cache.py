"""The reference's log-probabilities from disk are those that would have been computed, and never those of another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.loops.reference_cache import CHUNK, ReferenceCache
from posttrain.metrics import RunFolder
from posttrain.types import Group, Rollout, Verdict
from tests.loops.test_resume import same
from tests.offline_runs import pairs, prepare, train
from tests.tiny import prompt, tiny_folder


class Reference:
    """Says of each token what its id is, of two references; counts what it is asked, and may break off."""

    def __init__(self, calls: int | None = None) -> None:
        self.calls, self.asked = calls, 0

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        if self.calls == 0:
            raise SystemExit
        self.calls = None if self.calls is None else self.calls - 1
        self.asked += len(rollouts)
        return [torch.tensor([[float(t), -float(t)] for t in r.tokens]) for r in rollouts]


def groups(count: int, last: int = 5) -> list[Group]:
    """Pairs of unlike lengths; `last` is the last token of the last answer."""
    out = []
    for i in range(count):
        answers = [(7, 8), (9, last if i == count - 1 else 5, 4)]
        rollouts = tuple(
            Rollout((i % 90, 3, *said), (False, False) + (True,) * len(said), "", "given", author="data")
            for said in answers
        )
        out.append(Group(prompt((i % 90, 3), str(i)), rollouts, (Verdict(1.0), Verdict(0.0))))
    return out


def test_every_group_finds_its_own_and_the_file_is_made_once(tmp_path: Path) -> None:
    some, first, second = groups(CHUNK + 3), Reference(), Reference()
    made = ReferenceCache(tmp_path, some, "a model", first)
    again = ReferenceCache(tmp_path, some, "a model", second)
    assert (first.asked, second.asked) == (2 * len(some), 0)
    assert made.file == again.file
    for group in some:
        for cache in (made, again):
            for found, rollout in zip(cache.of(group), group.rollouts, strict=True):
                assert found.tolist() == [[float(t), -float(t)] for t in rollout.tokens]


def test_another_reference_answer_mask_or_order_has_another_file(tmp_path: Path) -> None:
    some = groups(3)
    masked = [
        Group(g.prompt, tuple(Rollout(r.tokens, (True,) * len(r.tokens), "", "given") for r in g.rollouts), g.verdicts)
        for g in some
    ]
    asked: dict[str, Any] = {
        "plain": (some, "a model"),
        "model": (some, "another model"),
        "answer": (groups(3, last=6), "a model"),
        "mask": (masked, "a model"),
        "order": (some[::-1], "a model"),
        "fewer": (some[:2], "a model"),
    }
    found = {name: ReferenceCache(tmp_path, data, what, Reference()).file for name, (data, what) in asked.items()}
    assert len(set(found.values())) == len(asked)


def test_one_that_was_cut_off_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    some, whole = groups(2 * CHUNK), Reference()
    with pytest.raises(SystemExit):
        ReferenceCache(tmp_path, some, "a model", Reference(calls=1))
    assert not list(tmp_path.glob("reference-*"))
    made = ReferenceCache(tmp_path, some, "a model", whole)
    # As a kill in the middle of writing leaves it.
    partial = made.file.with_name(f".{made.file.name}.partial")
    partial.write_bytes(made.file.read_bytes()[:100])
    made.file.unlink()
    again = Reference()
    found = ReferenceCache(tmp_path, some, "a model", again)
    assert again.asked == whole.asked == 4 * CHUNK
    assert torch.equal(found.of(some[1])[1], made.of(some[1])[1])
    assert [f.name for f in tmp_path.iterdir()] == [made.file.name]
    # As a full disk leaves it.
    made.file.write_bytes(made.file.read_bytes()[:-10])
    mended = ReferenceCache(tmp_path, some, "a model", again)
    assert again.asked == 8 * CHUNK
    assert torch.equal(mended.of(some[1])[1], made.of(some[1])[1])


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "adapter": {"model": {"lora": {"rank": 4}}},
    "several updates": {"optimizer": {"minibatches": 2, "epochs": 2}},
    "half": {"hardware": {"dtype": "bfloat16"}},
    "small micro-batches": {"hardware": {"learner": {"micro_batch_tokens": 60}}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_from_the_cache_is_the_run_that_computes_as_it_goes(tmp_path: Path, case: str) -> None:
    """To the last bit: metrics, records with the reference's log-probabilities, and weights."""
    live, cached = tmp_path / "live", tmp_path / "cached"
    train(prepare(live, "dpo", pairs(10), pairs(3, 20), **CASES[case]))
    train(prepare(cached, "dpo", pairs(10), pairs(3, 20), **CASES[case], reference={"cache": True}))
    same(live / "run", cached / "run", 4)
    row = RunFolder(cached / "run").read_rollouts("step", 4)[0]
    assert [bool(p) for p in row["reference_logprobs"]] == [bool(m) for m in row["mask"]]
    assert row["reference_logprobs"] != row["learner_logprobs"]


def test_what_the_numbers_depend_on_is_in_the_files_name(tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=5, initializer_range=0.1)
    asked: dict[str, dict[str, Any]] = {
        "once": {},
        "again": {},
        "dtype": {"hardware": {"dtype": "bfloat16"}},
        "reference": {"reference": {"policies": [{"path": str(other)}]}},
        "two references": {"reference": {"policies": [{"path": str(other)}, {"share": 2.0}]}},
        "rows": {"data": {"train": {"skip": 1}}},
        # Nothing that the numbers do not depend on.
        "rate": {"optimizer": {"learning_rate": 0.5}, "run": {"steps": 2}},
    }
    names = {}
    for name, changes in asked.items():
        run = {"steps": 1, "save_every": 0, "folder": str(tmp_path / name), **changes.get("run", {})}
        reference = {"cache": True, **changes.get("reference", {})}
        train(prepare(tmp_path, "dpo", pairs(6), **{**changes, "run": run, "reference": reference}))
        (file,) = (tmp_path / name / "reference").iterdir()
        names[name] = file.name
    assert names["once"] == names["again"] == names["rate"]
    assert len(set(names.values())) == len(asked) - 2
