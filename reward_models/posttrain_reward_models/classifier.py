"""A trained scorer, or an ensemble of them, as a grader of whole responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain.errors import PosttrainError
from posttrain.models.scoring import check_readable, read_head, score_tokens, states
from posttrain.types import Verdict
from posttrain_reward_models.measured import Demand, Measured, Served, measured, read_members, serve
from posttrain_reward_models.reading import Response, responses

if TYPE_CHECKING:
    from torch import Tensor

Aggregate = Literal["mean", "worst", "uwo"]


@dataclass(eq=False)
class Classifier:
    """Scores each response by what a sequence classifier says after its last token, from the ids that were sampled.

    Every output of every model under every dropout mask is a member of an ensemble (2310.02743); each is a part of the
    verdict, beside their standard deviation `std`. Every grading worker holds all models.

    Raises ValueError or ModelError for a model that is not there, was not measured, or was too often wrong.
    """

    path: str | Sequence[str]
    """A run's folder (its newest checkpoint), a model folder, or a hub id; a list is an ensemble."""
    aggregate: Aggregate = "mean"
    """The members' mean, the worst of them, or mean - penalty * variance (uncertainty-weighted)."""
    penalty: float = 0.1
    minimum_accuracy: float = 0.5
    """What the lower end of the 95 % interval of each model's accuracy must lie above; 0 asks nothing."""
    allow_unmeasured: bool = False
    """Serve a model whose accuracy nobody knows."""
    dropout: float = 0.0
    """Share of the last hidden state that a member does not see, for models trained with it (after 2110.02034)."""
    samples: int = 1
    """Masks, drawn once: a response gets the same score every time."""
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"
    """Of the backbone; heads are fp32 at least."""

    memory_limit: ClassVar[int | None] = None
    alone = True
    _keys: list[str] = field(init=False, repr=False)
    _found: list[Measured] = field(init=False, repr=False)
    _served: list[Served] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        _check_choice("aggregate", self.aggregate, ("mean", "worst", "uwo"))
        check_dtype(self.dtype)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout:g} is no share in [0, 1)")
        if self.samples < 1 or (self.samples > 1 and not self.dropout):
            raise ValueError(f"samples: {self.samples} masks need dropout above 0, and are at least 1")
        if self.penalty < 0:
            raise ValueError(f"penalty: {self.penalty:g} would reward disagreement; give 0 or more")
        paths = [self.path] if isinstance(self.path, str) else list(self.path)
        if not paths:
            raise ValueError("path: an empty list has no model; give one folder or more")
        demand = Demand(self.minimum_accuracy, self.allow_unmeasured)
        self._keys = ["path"] if isinstance(self.path, str) else [f"path[{i}]" for i in range(len(paths))]
        self._found = [measured(path, demand, key) for path, key in zip(paths, self._keys, strict=True)]

    def prepare(self) -> None:
        """Load the models. Raises ValueError where one does not say what its card says it said."""
        self._served = [
            serve(found, self.dtype, self.device, key) for found, key in zip(self._found, self._keys, strict=True)
        ]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_ids: Sequence[Sequence[int] | None],
        prompt_texts: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """One verdict per response; an error where its words cannot be put into a model's tokens."""
        if not self._served:
            self.prepare()
        asked = responses(prompts, completions, completion_ids, prompt_ids, prompt_texts)
        readings = [self._readings(response) for response in asked]
        readable = [i for i, reading in enumerate(readings) if not isinstance(reading, str)]
        names, scores = self._members([readings[i] for i in readable])
        verdicts = [Verdict(None, "error", reason=r if isinstance(r, str) else "") for r in readings]
        for column, i in enumerate(readable):
            verdicts[i] = self._verdict(dict(zip(names, (row[column] for row in scores), strict=True)))
        return verdicts

    def _readings(self, response: Response) -> list[tuple[int, ...]] | str:
        """The ids each model reads of a response, or why one cannot."""
        out = []
        for served in self._served:
            try:
                ids = served.reader.read(response).ids
                check_readable(served.model, ids)
            except (ValueError, PosttrainError) as error:
                return str(error)
            out.append(ids)
        return out

    def _members(self, readings: Sequence[Any]) -> tuple[list[str], list[list[float]]]:
        """Names of the ensemble's M members, and what each says of every response: `[M][S]`."""
        import torch

        names: list[str] = []
        scores: list[list[float]] = []
        for m, served in enumerate(self._served if readings else ()):
            ids = [reading[m] for reading in readings]
            if self.dropout:
                hidden = torch.cat(states(served.model, ids, [[len(s) - 1] for s in ids]))
                hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
                masks = [dropout_mask(hidden.shape[-1], self.dropout, m, k) for k in range(self.samples)]
                said = {f".mask{k}": read_head(served.model, hidden * mask) for k, mask in enumerate(masks)}
            else:
                said = {"": score_tokens(served.model, ids)}
            for mask_name, outputs in said.items():
                read = read_members(served.model, outputs)
                for head, column in enumerate(read.T.tolist()):
                    names.append(f"model{m}{mask_name}" + (f".head{head}" if read.shape[1] > 1 else ""))
                    scores.append(column)
        return names, scores

    def _verdict(self, members: dict[str, float]) -> Verdict:
        score, std = aggregated(list(members.values()), self.aggregate, self.penalty)
        return Verdict(score, parts={**members, "std": std})


def aggregated(members: Sequence[float], aggregate: Aggregate, penalty: float) -> tuple[float, float]:
    """An ensemble's score and its members' standard deviation (over all of them: divided by M)."""
    mean = sum(members) / len(members)
    variance = sum((member - mean) ** 2 for member in members) / len(members)
    score = {"mean": mean, "worst": min(members), "uwo": mean - penalty * variance}[aggregate]
    return score, variance**0.5


def dropout_mask(width: int, share: float, model: int, sample: int) -> Tensor:
    """`[H]`: 0 for the share that is not seen, 1 / (1 - share) elsewhere; always the same for a model and a sample."""
    import torch

    draw = torch.Generator().manual_seed(1_000_003 * model + sample)
    return (torch.rand(width, generator=draw) >= share).float() / (1 - share)


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a name that is no dtype a model is served in."""
    _check_choice("dtype", dtype, ("bfloat16", "float16", "float32", "float64"))


def _check_choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{key}: {value!r} is none of {', '.join(known)}")
