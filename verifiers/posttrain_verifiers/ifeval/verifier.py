"""One verdict over all the instructions of a prompt, strict and loose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrain.types import Verdict
from posttrain_verifiers.ifeval.instructions import INSTRUCTIONS, Check, arguments


class IFEval:
    """IFEval's accuracies (2311.07911) of one response, from the columns `instruction_id_list` and `kwargs`.

    The score is prompt-level (1 where all instructions are followed, else 0) or, at the level `instruction`, the share
    of them that is. `strict` reads the response as it is, `loose` also without its first line, its last line, both, and
    without asterisks in each case: an instruction is followed where any of the eight readings follows it. An empty
    response follows none. Parts: all four (`prompt_strict`, `prompt_loose`, `instruction_strict`, `instruction_loose`)
    and `instructions`, how many there are, which weights the shares in the paper's accuracy over all instructions.
    """

    version = "2"

    def __init__(
        self, mode: Literal["strict", "loose"] = "strict", level: Literal["prompt", "instruction"] = "prompt"
    ) -> None:
        if mode not in ("strict", "loose"):
            raise ValueError(f"mode is 'strict' or 'loose', not {mode!r}")
        if level not in ("prompt", "instruction"):
            raise ValueError(f"level is 'prompt' or 'instruction', not {level!r}")
        self.mode, self.level = mode, level

    def prepare(self) -> None:
        """Read the model that tells languages before a verdict's clock starts."""
        INSTRUCTIONS["language:response_language"]("Is this English?", language="en")

    def __call__(
        self, completion: str, *, instruction_id_list: Sequence[str], kwargs: Sequence[Mapping[str, Any] | None]
    ) -> Verdict:
        """No score where the row names an instruction that there is not, or leaves out what one needs."""
        if not instruction_id_list or len(instruction_id_list) != len(kwargs):
            fault = f"{len(instruction_id_list)} instructions with {len(kwargs)} kwargs"
            return Verdict(None, "unparsable", reason=fault)
        strict, loose = [], []
        others = [text for text in readings(completion) if text != completion]
        for name, given in zip(instruction_id_list, kwargs, strict=True):
            try:
                check, numbers = _find(name), arguments(_find(name), given)
                strict.append(_follows(check, completion, numbers))
                loose.append(strict[-1] or any(_follows(check, text, numbers) for text in others))
            except (ValueError, TypeError, AttributeError) as fault:
                return Verdict(None, "unparsable", reason=f"{name}: {fault!s:.200}")
        count = len(strict)
        parts: dict[str, float | None] = {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": sum(strict) / count,
            "instruction_loose": sum(loose) / count,
            "instructions": float(count),
        }
        kept = strict if self.mode == "strict" else loose
        broken = [name for name, followed in zip(instruction_id_list, kept, strict=True) if not followed]
        reason = f"not followed: {', '.join(broken)}" if broken else ""
        return Verdict(parts[f"{self.level}_{self.mode}"], parts=parts, reason=reason)


def readings(text: str) -> list[str]:
    """The eight texts of the loose accuracy, less those that are equal."""
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return list(dict.fromkeys([*cut, *(piece.replace("*", "") for piece in cut)]))


def _find(name: str) -> Check:
    if name not in INSTRUCTIONS:
        raise ValueError("there is no such instruction")
    return INSTRUCTIONS[name]


def _follows(check: Check, text: str, numbers: Mapping[str, Any]) -> bool:
    return bool(text.strip()) and check(text, **numbers)
