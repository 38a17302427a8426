"""What was asked of an endpoint, by all processes: the answers, what they cost, and when they were asked."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT, finish TEXT) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spent (account TEXT PRIMARY KEY, requests INT, prompt INT, answer INT) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sent (account TEXT, at REAL)",
    "CREATE INDEX IF NOT EXISTS sent_at ON sent (account, at)",
)
MINUTE = 60.0


class Answer(NamedTuple):
    """What a judge said, and why it stopped."""

    text: str
    finish: str


class Usage(NamedTuple):
    """What requests took: how many, and tokens read and written."""

    requests: int = 0
    prompt: int = 0
    answer: int = 0


@dataclass(frozen=True)
class Budget:
    """What may be spent on one model of one endpoint, by all that share a ledger. None is no limit."""

    requests: int | None = None
    tokens: int | None = None
    """Read and written."""
    cost: float | None = None
    """In the unit of the prices."""
    prompt_price: float = 0.0
    """Of a million tokens read."""
    answer_price: float = 0.0
    """Of a million tokens written."""

    def __post_init__(self) -> None:
        if self.cost is not None and not (self.prompt_price > 0 or self.answer_price > 0):
            raise ValueError("budget.cost: it needs budget.prompt_price or budget.answer_price, of a million tokens")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Budget:
        """Raises ValueError for a key that is none, or a value below 0."""
        known = [f.name for f in fields(cls)]
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"budget.{name}: unknown key (value {value!r}); there is: {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"budget.{name}: {value!r} is no number of at least 0")
        return cls(**settings)

    def price(self, usage: Usage) -> float:
        """What tokens cost."""
        return (usage.prompt * self.prompt_price + usage.answer * self.answer_price) / 1e6

    def exceeded(self, usage: Usage) -> str:
        """Which limit so much would break, in words; empty where none."""
        tokens, cost = usage.prompt + usage.answer, self.price(usage)
        if self.requests is not None and usage.requests > self.requests:
            return f"budget.requests: all {self.requests} are spent"
        if self.tokens is not None and tokens > self.tokens:
            return f"budget.tokens: another request could pass {self.tokens} ({tokens} with it)"
        if self.cost is not None and cost > self.cost:
            return f"budget.cost: another request could pass {self.cost:g} ({cost:.6g} with it)"
        return ""


class Ledger:
    """An SQLite file in a folder. Every change is one transaction, so processes that share it never pay twice over."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where it cannot be kept there."""
        self.file = folder / "judge.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=30, isolation_level=None)
            # For speed only, and another process may be about it.
            with suppress(sqlite3.OperationalError):
                self._connection.execute("PRAGMA journal_mode=WAL")
            with self._transaction() as connection:
                for table in _TABLES:
                    connection.execute(table)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"cache: {str(folder)!r} cannot keep a judge's answers: {error}") from None

    def find(self, key: str) -> Answer | None:
        """The answer that was given before."""
        row = self._connection.execute("SELECT text, finish FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer(*row)

    def keep(self, key: str, answer: Answer) -> Answer:
        """The answer that counts from now on: of two to one question, the one that was there first."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, *answer))
        return self.find(key) or answer

    def reserve(self, account: str, most: Usage, budget: Budget) -> str:
        """Set aside what a request may take at most; else what stands against it, in words."""
        with self._transaction() as connection:
            spent = self.spent(account)
            after = Usage(*(a + b for a, b in zip(spent, most, strict=True)))
            if against := budget.exceeded(after):
                return against
            connection.execute("INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?)", (account, *after))
        return ""

    def settle(self, account: str, most: Usage, taken: Usage) -> None:
        """Put back what was set aside and not taken."""
        with self._transaction() as connection:
            after = (a - b + c for a, b, c in zip(self.spent(account), most, taken, strict=True))
            connection.execute("INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?)", (account, *after))

    def spent(self, account: str) -> Usage:
        """So far, with what is set aside; a process that was killed keeps what it had set aside."""
        query = "SELECT requests, prompt, answer FROM spent WHERE account = ?"
        return Usage(*(self._connection.execute(query, (account,)).fetchone() or ()))

    def slot(self, account: str, per_minute: int, now: float, latest: float) -> float | None:
        """When the next request may go (a Unix time), taken at once; None, and nothing taken, where that is after
        `latest`. No minute, wherever it begins, has more than `per_minute` of them.
        """
        with self._transaction() as connection:
            connection.execute("DELETE FROM sent WHERE account = ? AND at <= ?", (account, now - MINUTE))
            query = "SELECT at FROM sent WHERE account = ? ORDER BY at DESC LIMIT 1 OFFSET ?"
            row = connection.execute(query, (account, per_minute - 1)).fetchone()
            at = now if row is None else max(now, row[0] + MINUTE)
            if at > latest:
                return None
            connection.execute("INSERT INTO sent VALUES (?, ?)", (account, at))
        return float(at)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def default_folder() -> Path:
    """Beside what else is kept: in POSTTRAIN_CACHE or the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain"
    return Path(os.environ.get("POSTTRAIN_CACHE", home)) / "judge"
