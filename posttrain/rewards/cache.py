"""Verdicts by content: what a verifier of a stated version once said of a completion is not asked for again.

One SQLite file for all runs and processes. Where it cannot be used, everything is graded as if it were not there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import platform
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.places import cache_root
from posttrain.recipe import Reward
from posttrain.rewards.verifier import VerifierSignature
from posttrain.rewards.worker import Part

FORMAT = 1
"""Part of every key: goes up when a kept verdict, or what a key is made of, changes its form."""
SIZE_LIMIT = 1 << 30
"""Bytes of kept verdicts; above them the quarter that was used longest ago is dropped."""
PATIENCE = 5.0
"""Seconds to wait for another process that writes."""
FRESH = 3600
"""Seconds within which a second use of a verdict is not noted, so that reading need not write."""
COLUMNS = "key BLOB PRIMARY KEY, part TEXT NOT NULL, used INTEGER NOT NULL"
AT_ONCE = 500
"""Keys of one query; SQLite allows at least 999."""

_log = logging.getLogger(__name__)
_said: set[Path] = set()


def identity_of(reward: Reward, signature: VerifierSignature) -> bytes | None:
    """What tells a verifier's verdicts from another's: name, settings, its version, the Python files of its package,
    everything that is installed, and the interpreter. None where its verdicts are not kept: it states no version, sees
    more than one completion, has settings that are no plain data, or no files that could be read.
    """
    if signature.version is None or signature.kind != "item":
        return None
    package = reward.verifier.partition(":")[0].partition(".")[0]
    try:
        settings = written(dict(sorted(reward.settings.items())))
        code = [signature.version, _installed(), _sources(package), platform.python_version()]
    except (TypeError, RecursionError, ValueError, OSError):
        return None
    parts = [FORMAT, reward.verifier, settings, *code]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


@cache
def _installed() -> str:
    """Names and versions of all installed distributions: a verifier may ask any of them what is right."""
    folders = [Path(folder) for folder in dict.fromkeys(sys.path) if folder and Path(folder).is_dir()]
    names = (file.name for folder in folders for file in folder.iterdir())
    return " ".join(sorted(name for name in names if name.endswith((".dist-info", ".egg-info"))))


@cache
def _sources(package: str) -> str:
    """A digest of a package's Python files: who forgets to raise a version must not read yesterday's verdicts."""
    spec = importlib.util.find_spec(package)
    roots = [Path(root) for root in (spec and spec.submodule_search_locations) or ()]
    files = [(file.relative_to(root), file) for root in roots for file in root.rglob("*.py")]
    if spec is not None and not roots and spec.origin is not None:
        files = [(Path(package), Path(spec.origin))]
    digest = hashlib.sha256()
    for name, file in sorted(files):
        digest.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def content_key(identity: bytes | None, columns: Mapping[str, Any]) -> Callable[[str], bytes | None]:
    """A function from completions to keys. They are None where there is no identity, or a column is no plain data."""
    if identity is None:
        return lambda completion: None
    try:
        known = identity.hex() + written(dict(sorted(columns.items())))
    except (TypeError, RecursionError):
        return lambda completion: None
    return lambda completion: hashlib.sha256(json.dumps([known, completion]).encode()).digest()


def written(value: Any) -> str:
    """A text that differs for different plain data, and for a list and a tuple of the same things. Raises TypeError for
    what is not None, a truth value, number, text, list, tuple or dict.
    """
    if value is None or type(value) in (bool, int, float, str):
        return json.dumps(value)
    if type(value) is list:
        return f"[{','.join(map(written, value))}]"
    if type(value) is tuple:
        return f"({','.join(map(written, value))})"
    if type(value) is dict:
        return f"{{{','.join(f'{written(k)}:{written(v)}' for k, v in value.items())}}}"
    raise TypeError(f"{type(value).__name__} is no plain data")


def to_text(part: Part) -> str | None:
    """A part as JSON, without the time it took; None for one that is not kept: without a score, not lasting, or with
    something that JSON would change.
    """
    if part.score is None or not part.lasting:
        return None
    try:
        text = json.dumps({name: value for name, value in asdict(part).items() if name != "seconds"})
        return text if from_text(text) == part else None
    except (TypeError, ValueError, RecursionError):
        return None


def from_text(text: str) -> Part:
    """The part that `to_text` wrote."""
    fields = json.loads(text)
    return Part(**fields | {"steps": tuple((at, reward) for at, reward in fields["steps"])})


class VerdictCache:
    """Kept verdicts by key, shared by threads and processes. A file that is locked, broken or cannot be written is said
    once, and then nothing is found and nothing kept.
    """

    def __init__(self, file: Path | None = None, size_limit: int = SIZE_LIMIT, patience: float = PATIENCE) -> None:
        self.file = file or cache_root() / "verdicts.sqlite"
        self.size_limit = size_limit
        self.patience = patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        with self._lock:
            try:
                self._connection = self._connect()
                self._shrink()
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)

    def find(self, keys: Iterable[bytes | None]) -> dict[bytes, Part]:
        """The kept ones among these."""
        wanted = sorted({key for key in keys if key is not None})
        found: dict[bytes, Part] = {}
        now = int(time.time())
        with self._lock:
            for at in range(0, len(wanted), AT_ONCE):
                if self._connection is None:
                    return {}
                try:
                    found |= self._find(self._connection, wanted[at : at + AT_ONCE], now)
                except sqlite3.Error as error:
                    self._give_up(error)
                    return {}
        return found

    def keep(self, parts: Mapping[bytes, Part]) -> None:
        """Keep what can be kept: see `to_text`."""
        now = int(time.time())
        rows = [(key, text, now) for key, part in parts.items() if (text := to_text(part)) is not None]
        with self._lock:
            if self._connection is None or not rows:
                return
            try:
                with self._connection as transaction:
                    transaction.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", rows)
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        """Nothing is found or kept afterwards."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.file, timeout=self.patience, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            with connection:
                connection.execute(f"CREATE TABLE IF NOT EXISTS verdicts ({COLUMNS}) WITHOUT ROWID")
        except BaseException:
            connection.close()
            raise
        return connection

    def _find(self, connection: sqlite3.Connection, keys: Sequence[bytes], now: int) -> dict[bytes, Part]:
        marks = ",".join("?" * len(keys))
        rows = connection.execute(f"SELECT key, part, used FROM verdicts WHERE key IN ({marks})", keys).fetchall()
        found = {}
        for key, text, _ in rows:
            try:
                found[key] = from_text(text)
            except (TypeError, ValueError, KeyError):
                continue  # not what we wrote: asked again, and written anew
        stale = [(now, key) for key, _, used in rows if now - used > FRESH]
        if stale:
            with connection as transaction:
                transaction.executemany("UPDATE verdicts SET used = ? WHERE key = ?", stale)
        return found

    def _shrink(self) -> None:
        """Drop what was used longest ago where there is too much."""
        if self._connection is None:
            return

        def pragma(name: str) -> int:
            assert self._connection is not None
            return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

        while (pragma("page_count") - pragma("freelist_count")) * pragma("page_size") > self.size_limit:
            (count,) = self._connection.execute("SELECT count(*) FROM verdicts").fetchone()
            if not count:
                return
            with self._connection as transaction:
                transaction.execute(
                    "DELETE FROM verdicts WHERE key IN (SELECT key FROM verdicts ORDER BY used LIMIT ?)",
                    (max(1, count // 4),),
                )

    def _give_up(self, error: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        if self.file not in _said:
            _said.add(self.file)
            _log.warning(
                "verdicts are neither kept nor read back: %s: %s; delete the file, or set grading.cache: false",
                self.file,
                error,
            )
