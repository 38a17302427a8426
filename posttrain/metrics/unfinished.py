"""The responses of an evaluation that is not finished, beside the file that its results will stand in.

JSON lines: the header first, then one part of the responses a line, on disk before the next part is drawn. What was
killed goes on behind the last whole part.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.errors import PosttrainError
from posttrain.metrics import durable
from posttrain.types import Prompt, Rollout, Sampling

FORMAT = "posttrain unfinished results 1"
PER_TOKEN = {"tokens": None, "mask": False, "logprobs": 0.0, "versions": -1}
"""Fields of a roll-out with an entry a token, and what the entries of the prompt are."""
FIELDS = [field.name for field in fields(Rollout)]


def unfinished_path(results: Path) -> Path:
    """Where the responses stand until `results` is written."""
    return results.with_name(f"{results.stem}.partial.jsonl")


def later_unfinished(run: Path, step: int) -> list[Path]:
    """Those of a run's later steps."""
    found = (run / "evaluations").glob("step-*.partial.jsonl")
    return [path for path in found if int(path.name[5:].partition(".")[0]) > step]


class Unfinished:
    """Responses by part; a part is the word and the number of its first response, as in ("greedy", 512)."""

    def __init__(self, file: BinaryIO, parts: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
        self._file, self._parts = file, parts

    @property
    def responses(self) -> int:
        """How many are there already."""
        return sum(len(part) for part in self._parts.values())

    def get(self, word: str, first: int, prompts: Sequence[Prompt]) -> list[Rollout] | None:
        """The roll-outs of a part, one a prompt, as they were drawn; None where it is still to be drawn."""
        part = self._parts.get((word, first))
        if part is None or len(part) != len(prompts):
            return None
        return [_rollout(prompt, said) for prompt, said in zip(prompts, part, strict=True)]

    def keep(self, word: str, first: int, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> None:
        """Put a part behind the others, and wait until it is on disk."""
        said = [_said(prompt, rollout) for prompt, rollout in zip(prompts, rollouts, strict=True)]
        self._write({"part": [word, first], "rollouts": said})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def unfinished(path: Path, header: Mapping[str, Any]) -> Iterator[Unfinished]:
    """The responses that `path` holds of the evaluation that `header`, plain JSON, names. The file goes once the block
    ends well; where the block fails, or the process is killed, it stays.

    Raises PosttrainError where it holds another evaluation's, is damaged, or another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PosttrainError(
                f"{path}: another process draws these responses; wait for it, or write elsewhere with --out FILE"
            ) from None
        first = {"format": FORMAT, **header}
        lines = _lines(file, path)
        if lines:
            _refuse_other(path, lines[0], first)
        parts = {(str(line["part"][0]), int(line["part"][1])): line["rollouts"] for line in lines[1:]}
        found = Unfinished(file, parts)
        if not lines:
            found._write(first)
            durable.sync(path.parent)
        yield found
        path.unlink()


def _lines(file: BinaryIO, path: Path) -> list[dict[str, Any]]:
    """The whole lines; one that a kill has torn is cut off."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    try:
        lines = [json.loads(line) for line in content[:whole].split(b"\n")[:-1]]
        if any("part" not in line or "rollouts" not in line for line in lines[1:]):
            raise ValueError("a line without responses")
    except (TypeError, ValueError) as error:
        raise PosttrainError(f"{path}: damaged ({error}); remove it, and its responses are drawn again") from None
    return lines


def _refuse_other(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in dict.fromkeys((*now, *before)):
        if before.get(name) != now.get(name):
            was, asked = (f"{json.dumps(side.get(name), ensure_ascii=False):.80}" for side in (before, now))
            raise PosttrainError(
                f"{path} holds responses of another evaluation that was not finished ({name}: {was} -> {asked}); "
                "finish that one, remove the file, or write this one elsewhere with --out FILE"
            )


def _said(prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
    """A roll-out without its prompt's tokens. Raises ValueError where it does not begin with them."""
    start, found = len(prompt.tokens), asdict(rollout)
    for name, blank in PER_TOKEN.items():
        if found[name] is None:
            continue
        head = prompt.tokens if blank is None else (blank,) * start
        if found[name][:start] != head:
            raise ValueError(f"Rollout.{name} of {prompt.id!r} does not begin with its prompt")
        found[name] = found[name][start:]
    return found


def _rollout(prompt: Prompt, said: Mapping[str, Any]) -> Rollout:
    found = {name: said[name] for name in FIELDS}
    for name, blank in PER_TOKEN.items():
        if found[name] is not None:
            head = prompt.tokens if blank is None else (blank,) * len(prompt.tokens)
            found[name] = (*head, *found[name])
    found["sampling"] = None if found["sampling"] is None else Sampling(**found["sampling"])
    return Rollout(**found)
