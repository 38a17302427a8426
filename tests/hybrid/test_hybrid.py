"""Weights are published at the border between the phases: when they changed, all of them, and never inside a loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from posttrain.errors import SyncError
from posttrain.hybrid import Hybrid
from posttrain.rollout.intake import Intake, refusal


class Trains:
    version = 0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.full((2,), float(self.version))
        yield "b", torch.zeros(3)


class Sleeps:
    """A sampler that loses its weights when it sleeps, as an engine on a GPU does."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.calls: list[str] = []
        self.held: dict[str, Tensor] = {}

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.version = None
        self.held = dict(Intake({"a": (2,), "b": (3,)})(weights))
        self.version = version
        self.calls.append(f"load {version}")

    def sleep(self) -> None:
        self.version, self.held = None, {}
        self.calls.append("sleep")

    def wake(self) -> None:
        self.calls.append("wake")

    def generate(self, *_: object) -> list[object]:
        refusal(self.version)
        return []


def test_weights_are_sent_when_the_version_changed_and_not_otherwise() -> None:
    learner, sampler = Trains(), Sleeps()
    engine = Hybrid(learner, sampler)
    for _ in range(2):
        with engine.generating() as ready:
            ready.generate()
    assert sampler.calls == ["wake", "load 0", "wake"]
    learner.version = 1
    with engine.generating():
        assert sampler.held["a"].tolist() == [1.0, 1.0]
    assert sampler.calls[-2:] == ["wake", "load 1"]
    assert engine.take_report().values()["sync/seconds"] > 0
    assert engine.take_report().values() == {}


def test_an_engine_that_slept_is_filled_again_before_it_speaks() -> None:
    learner, sampler = Trains(), Sleeps()
    engine = Hybrid(learner, sampler)
    with engine.generating():
        pass
    with engine.training() as trained:
        assert trained is learner
        with pytest.raises(SyncError):
            sampler.generate()
    with engine.generating() as ready:
        ready.generate()
    assert sampler.calls == ["wake", "load 0", "sleep", "wake", "load 0"]


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ([("a", (2,))], "left out 'b'"),
        ([("a", (2,)), ("a", (2,))], "'a' was sent twice"),
        ([("a", (0,))], r"'a' has shape \(0,\), expected \(2,\)"),
        ([("aa", (2,))], "no tensor 'aa'; did it mean 'a'"),
    ],
)
def test_a_stream_is_taken_whole_or_refused_by_name(stream: list[tuple[str, tuple[int, ...]]], words: str) -> None:
    intake = Intake({"a": (2,), "b": (3,)})
    with pytest.raises(SyncError, match=words):
        dict(intake((name, torch.zeros(shape)) for name, shape in stream))
