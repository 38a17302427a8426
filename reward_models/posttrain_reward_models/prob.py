"""How probable a response's reasoning makes the known answer: a reward where no program can tell what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from posttrain.errors import PosttrainError
from posttrain.models.scoring import check_readable
from posttrain.types import Verdict
from posttrain_reward_models.asked import found, language_model
from posttrain_reward_models.classifier import check_dtype
from posttrain_reward_models.implicit import token_logprobs
from posttrain_reward_models.reading import Read, Reader, Response, responses


@dataclass(eq=False)
class Prob:
    """clip(p(answer | prompt, reasoning) - p(answer | prompt), 0, 1), RLPR's debiased probability (2506.18254).

    p is the mean over the answer's tokens of each one's probability after those before it. The reasoning is the
    response up to and with the last `before`; what it said behind that is replaced by the column `answer`. Without
    reasoning the prompt is followed by `before` at once. Raises ValueError or ModelError for a model that is not there.
    """

    path: str
    """A run's folder (its newest checkpoint), or whatever `model.path` may be: what the policy was trained from, as a
    grading process holds weights that do not move."""
    before: str = "<answer>"
    """What stands before the answer, as in `\\boxed{`."""
    debiased: bool = True
    """Subtract the probability without reasoning."""
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "float32"

    memory_limit: ClassVar[int | None] = None
    alone = True
    _model: Any = field(init=False, repr=False, default=None)
    _reader: Reader = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if not self.before:
            raise ValueError("before: it is what the answer stands behind, and cannot be empty")
        found(self.path)

    def prepare(self) -> None:
        """Load the model."""
        self._model, tokenizer = language_model(self.path, self.dtype, self.device)
        self._reader = Reader(tokenizer, repr(self.path))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_ids: Sequence[Sequence[int] | None],
        answer: Sequence[Any],
        prompt_texts: Sequence[str] | None = None,
    ) -> list[Verdict]:
        """One verdict per response: 0 and `unparsable` where it has no `before`, no score where `answer` is empty."""
        if self._model is None:
            self.prepare()
        asked = responses(prompts, completions, completion_ids, prompt_ids, prompt_texts)
        found = [self._reads(response, known) for response, known in zip(asked, answer, strict=True)]
        # A group has one prompt and one answer: what they are without reasoning is read once.
        reads = list(dict.fromkeys(read for pair in found if not isinstance(pair, Verdict) for read in pair))
        said = token_logprobs(self._model, reads)
        probability = {read: float(terms.exp().mean()) for read, terms in zip(reads, said, strict=True)}
        return [
            pair if isinstance(pair, Verdict) else self._verdict(*(probability[read] for read in pair))
            for pair in found
        ]

    def _verdict(self, reasoned: float, bare: float) -> Verdict:
        gain = reasoned - bare if self.debiased else reasoned
        return Verdict(min(1.0, max(0.0, gain)), parts={"with_reasoning": reasoned, "without": bare})

    def _reads(self, response: Response, known: Any) -> tuple[Read, Read] | Verdict:
        """The answer behind the reasoning, and behind none."""
        text = "" if known is None else str(known).strip()
        if not text:
            return Verdict(None, "unparsable", reason="the known answer is empty")
        at = response.completion.rfind(self.before)
        if at < 0:
            return Verdict(0.0, "unparsable", reason=f"the response has no {self.before!r}")
        tail = self._encode(text)
        reasoning = response.completion[: at + len(self.before)]
        try:
            asked, own = self._prompt(response)
            heads = [asked + self._reasoning(response, reasoning, own), asked + self._encode(self.before)]
            reads = [Read((*head, *tail), len(head), own) for head in heads]
            for read in reads:
                check_readable(self._model, read.ids)
        except (ValueError, PosttrainError) as error:
            return Verdict(None, "error", reason=str(error))
        return reads[0], reads[1]

    def _prompt(self, response: Response) -> tuple[list[int], bool]:
        """The prompt's ids, and whether the policy's ids are this model's too."""
        if self._reader.shares(response):
            assert response.prompt_ids is not None
            return list(response.prompt_ids), True
        if isinstance(response.prompt, str) or not response.prompt:
            # Says what is wrong.
            self._reader.read(response)
        read = self._reader.render(response.prompt, "")
        return list(read.ids[: read.start]), False

    def _reasoning(self, response: Response, text: str, own: bool) -> list[int]:
        """The ids that were sampled, where some of them end with the reasoning; else its text in tokens anew."""
        low, high = 0, len(response.ids) if own else 0
        while low < high:
            middle = (low + high) // 2
            if len(self._decode(response.ids[:middle])) < len(text):
                low = middle + 1
            else:
                high = middle
        sampled = list(response.ids[:low])
        return sampled if own and self._decode(sampled) == text else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._reader.tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._reader.tokenizer.decode(list(ids), skip_special_tokens=True))
