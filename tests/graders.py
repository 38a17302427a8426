"""Verifiers that grade, misbehave and echo: importable by name, as worker processes need them."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.types import Verdict


def equal(completion: str, *, answer: str) -> float:
    return float(completion == answer)


def echo(completion: str, *, row: int) -> Verdict:
    """The row's number, if the completion was written for that row."""
    written_for, _, k = completion.partition(":")
    assert int(written_for) == row
    return Verdict(row + int(k) / 100, reason=completion)


def everything(completion: str, **columns: Any) -> float:
    return float(len(columns))


def half(completion: str, *, scale: float = 1.0) -> float:
    return 0.5 * scale


def spin() -> None:
    while True:
        pass


def bad() -> None:
    raise ValueError("bad grader")


NAUGHTY: dict[str, Callable[[], object]] = {
    "raise": bad,
    "leave": lambda: sys.exit(1),
    "exit": lambda: os._exit(3),
    "exit quietly": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(600),
    "spin": spin,
    "lock": lambda: 7 ** (7 ** (7**7)),  # one computation in C that never lets go of the interpreter
    "memory": lambda: len(bytearray(6 << 30)),
    "nan": lambda: float("nan"),
    "inf": lambda: float("-inf"),
    "text": lambda: "1.0",
    "nothing": lambda: None,
    "unreadable": lambda: Verdict(None, "unparsable", reason="no gold"),
}


def naughty(completion: str, *, answer: str) -> object:
    """Does what the completion says; otherwise compares."""
    return NAUGHTY[completion]() if completion in NAUGHTY else float(completion == answer)


def flaky(completion: str, *, folder: str) -> float:
    """Fails on the first call for a completion: by raising, or by dying."""
    mark = Path(folder) / completion
    if not mark.exists():
        mark.touch()
        if completion == "die":
            os._exit(9)
        raise ConnectionError("not yet")
    return 1.0


def slow(completion: str) -> float:
    time.sleep(float(completion))
    return float(os.getpid())


class Threshold:
    """A verifier with settings and a slow start."""

    def __init__(self, least: int, most: int = 100) -> None:
        if least > most:
            raise ValueError(f"least is {least}, above most, {most}")
        self.least, self.most, self.ready = least, most, False

    def prepare(self) -> None:
        time.sleep(1.5)
        self.ready = True

    def __call__(self, completion: str) -> float:
        assert self.ready
        return float(self.least <= len(completion) <= self.most)


def parts(completion: str) -> Verdict:
    return Verdict(0.25, parts={"style": 0.5, "tone": None})


def trl_length(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """None for a completion that says `skip`."""
    assert set(kwargs) >= {"prompts", "completion_ids"}
    assert all(len(values) == len(completions) for values in kwargs.values())
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [None if t == "skip" else float(len(t)) for t in texts]


def trl_answers(prompts: list[Any], completions: list[Any], answer: list[str], log_extra: Any) -> list[float]:
    log_extra("answer", answer)
    assert len({str(p) for p in prompts}) == 1
    chat = not isinstance(prompts[0], str)
    assert all(isinstance(c, list) == chat for c in completions)
    return [float((c[0]["content"] if chat else c) == a) for c, a in zip(completions, answer, strict=True)]


async def trl_async(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]) -> list[float]:
    return [float(sum(ids)) for ids in completion_ids]


def trl_short(prompts: list[Any], completions: list[Any]) -> list[float]:
    return [1.0]


NUMBER = 3


def letters(completion: str, *, letter: str) -> float:
    """The share of a completion that is lower-case letters, and more for the one asked for: something to climb."""
    said = [c for c in completion if c.islower()]
    return (len(said) + said.count(letter)) / max(len(completion), 1)


def breaks_on_j(completion: str, *, letter: str) -> float:
    """Cannot grade what holds a j, a tenth of all characters being letters like it."""
    if "j" in completion:
        raise RuntimeError("no j, please")
    return letters(completion, letter=letter)


def always_raises(completion: str) -> float:
    raise RuntimeError("the grader is down")


def always_one(completion: str) -> float:
    return 1.0


def longer(completion: str, other: str, **columns: Any) -> float:
    """The probability that the first of two completions is the better one: by length."""
    return 0.5 if len(completion) == len(other) else float(len(completion) > len(other))


def unsure(completion: str, other: str) -> float:
    """No probability."""
    return 1.5


def second_token(completions: list[str], **columns: Any) -> list[Verdict]:
    """Worth 1, a quarter of it for the second token."""
    return [Verdict(1.0, steps=((1, 0.25),)) for _ in completions]
