"""The file of kept verdicts: shared by processes, gone without where it is broken or locked, and bounded."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards.cache import VerdictCache
from posttrain.rewards.jobs import Job
from posttrain.rewards.pool import with_kept
from posttrain.rewards.worker import Part
from tests.rewards.test_cache import TEXTS, folder, graded, reward

__all__ = ["folder"]


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def write_and_read(file: Path, worker: int) -> int:
    """200 verdicts, half of them also written by the others; how many can be read at the end."""
    kept = VerdictCache(file)
    numbers = [n if n % 2 else 1000 * worker + n for n in range(200)]
    for n in numbers:
        kept.keep({key(n): Part(float(n))})
        assert kept.find([key(n)]) == {key(n): Part(float(n))}
    found = kept.find([key(n) for n in numbers])
    assert all(part.score == int.from_bytes(name, "big") for name, part in found.items())
    return len(found)


def test_several_processes_write_and_read_at_once(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "verdicts.sqlite"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(write_and_read, [(file, worker) for worker in (1, 2, 3)]) == [200] * 3
    assert len(VerdictCache(file).find([key(n) for n in range(4000)])) == 100 + 3 * 100


def broken(file: Path) -> None:
    file.write_bytes(b"no database " * 1000)


def half(file: Path) -> None:
    VerdictCache(file).keep({key(n): Part(1.0, reason="long " * 50) for n in range(300)})
    sqlite3.connect(file).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))


def other(file: Path) -> None:
    sqlite3.connect(file).execute("CREATE TABLE verdicts (something TEXT)")


def folder_instead(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("damage", [broken, half, other, folder_instead])
def test_a_file_that_cannot_be_used_is_said_once_and_changes_no_verdict(
    damage: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "cache").mkdir()
    damage(folder / "cache" / "verdicts.sqlite")
    rewards = [reward("Counted", settings={"log": str(folder / "log")})]
    plain, _ = graded(rewards, TEXTS, keep=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert graded(rewards, TEXTS) == (plain, 0.0)
    (said,) = caplog.messages
    assert "verdicts.sqlite" in said
    assert "delete the file, or set grading.cache: false" in said


def test_a_file_that_another_process_locks_is_gone_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "verdicts.sqlite"
    kept = VerdictCache(file, patience=0.1)
    kept.keep({key(1): Part(1.0)})
    other_process = sqlite3.connect(file)
    other_process.execute("BEGIN IMMEDIATE")
    assert kept.find([key(1)]) == {key(1): Part(1.0)}
    with caplog.at_level(logging.WARNING):
        kept.keep({key(2): Part(2.0)})
    assert "locked" in caplog.text
    assert kept.find([key(1)]) == {}
    other_process.rollback()
    assert VerdictCache(file).find([key(1), key(2)]) == {key(1): Part(1.0)}


def test_a_row_that_is_not_ours_is_asked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    kept = VerdictCache(file)
    kept.keep({key(n): Part(float(n)) for n in range(4)})
    with sqlite3.connect(file) as connection:
        for number, text in enumerate(("", "[]", json.dumps({"score": 1.0, "more": 1}))):
            connection.execute("UPDATE verdicts SET part = ? WHERE key = ?", (text, key(number)))
    assert kept.find([key(n) for n in range(4)]) == {key(3): Part(3.0)}


def test_what_was_used_longest_ago_goes_when_there_is_too_much(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    kept = VerdictCache(file)
    kept.keep({key(n): Part(float(n), reason="x" * 500) for n in range(2000)})
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE verdicts SET used = used - 100000")
    assert len(kept.find([key(n) for n in range(500)])) == 500
    kept.close()
    limit = 800_000
    smaller = VerdictCache(file, size_limit=limit)
    left = smaller.find([key(n) for n in range(2000)])
    assert {key(n) for n in range(500)} <= set(left)
    # A quarter goes at a time, so at least three quarters of the room stay used.
    assert 0.6 * limit < 500 * len(left) < limit
    assert len(VerdictCache(file).find([key(n) for n in range(2000)])) == len(left)


def test_what_was_graded_before_an_interruption_is_kept(tmp_path: Path) -> None:
    kept = VerdictCache(tmp_path / "verdicts.sqlite")
    jobs = [Job(0, 0, (n,), b"", "label", None, key(n)) for n in range(4)]

    def ask(unknown: Sequence[Job]) -> Iterator[list[Part]]:
        yield [Part(1.0)]
        yield [Part(2.0)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(with_kept(jobs, kept, ask))
    assert kept.find([key(n) for n in range(4)]) == {key(0): Part(1.0), key(1): Part(2.0)}
    answers = with_kept(jobs, kept, lambda unknown: iter([[Part(3.0)]] * len(unknown)))
    assert [part.score for (part,) in answers] == [1.0, 2.0, 3.0, 3.0]
    again = with_kept(jobs, kept, lambda unknown: pytest.fail("nothing is unknown"))
    assert [part.score for (part,) in itertools.islice(again, 4)] == [1.0, 2.0, 3.0, 3.0]
