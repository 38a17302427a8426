"""A language model that is asked about a response, and whose first word, yes or no, is the score."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from posttrain.errors import PosttrainError
from posttrain.models.scoring import by_length, check_readable, padded
from posttrain.types import Verdict
from posttrain_reward_models.asked import as_text, filled, found, language_model, placeholders
from posttrain_reward_models.classifier import check_dtype

BATCH_TOKENS = 4096
QUESTION = """Question: {prompt}

Answer: {completion}

Is this answer right and helpful? Reply with one word, yes or no."""


@dataclass(eq=False)
class YesNo:
    """P(yes) / (P(yes) + P(no)) of the first token that a model would say to a question about the response
    (2308.06385).

    P(yes) is the sum over the spellings that are one token of this model. Any instruction-tuned model will do; none was
    measured, so look at the part `mass`, P(yes) + P(no): a model that would say something else has no opinion. Raises
    ValueError or ModelError for a model that is not there.
    """

    path: str
    """A run's folder (its newest checkpoint), or whatever `model.path` may be."""
    question: str = QUESTION
    """With {completion}, {prompt} and columns in it: a user's message where the model has a chat template, else a text
    to be continued."""
    yes: Sequence[str] = ("yes", "Yes", "YES", " yes", " Yes", " YES")
    no: Sequence[str] = ("no", "No", "NO", " no", " No", " NO")
    minimum_mass: float = 0.0
    """Below it there is no score: the model has not answered."""
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"

    memory_limit: ClassVar[int | None] = None
    alone = True
    _model: Any = field(init=False, repr=False, default=None)
    _tokenizer: Any = field(init=False, repr=False, default=None)
    _tokens: tuple[list[int], list[int]] = field(init=False, repr=False, default=([], []))

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if "completion" not in (names := placeholders(self.question)):
            raise ValueError("question: it has no {completion}, so the model would not see what it is asked about")
        if not 0 <= self.minimum_mass < 1:
            raise ValueError(f"minimum_mass: {self.minimum_mass:g} is no probability below 1")
        self._columns = tuple(name for name in names if name not in ("prompt", "completion"))
        kinds = inspect.Parameter
        own = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in ("prompts", "completions")]
        # What the Grader is told to bring: the question's columns, before anything is asked.
        self.__signature__ = inspect.Signature(own + [kinds(name, kinds.KEYWORD_ONLY) for name in self._columns])
        found(self.path)

    def prepare(self) -> None:
        """Load the model. Raises ValueError where no spelling of one of the words is a token of it."""
        self._model, self._tokenizer = language_model(self.path, self.dtype, self.device)
        self._tokens = self._words(self.yes, "yes"), self._words(self.no, "no")
        if shared := set(self._tokens[0]) & set(self._tokens[1]):
            raise ValueError(f"yes, no: token {min(shared)} would mean both; leave one of its spellings out")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[Verdict]:
        """One verdict per response; an error where the model cannot read the question."""
        if self._model is None:
            self.prepare()
        verdicts: list[Verdict] = []
        questions: dict[int, list[int]] = {}
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            own = {name: columns[name][i] for name in self._columns}
            ids = self._ids({**own, "prompt": prompt, "completion": self._words_only(as_text(completion))})
            try:
                check_readable(self._model, ids)
                questions[i] = ids
                verdicts.append(Verdict(0.0))
            except PosttrainError as error:
                verdicts.append(Verdict(None, "error", reason=str(error)))
        for i, verdict in zip(questions, self._verdicts(list(questions.values())), strict=True):
            verdicts[i] = verdict
        return verdicts

    def _verdicts(self, questions: Sequence[Sequence[int]]) -> list[Verdict]:
        import torch

        out: list[Verdict] = [Verdict(None, "error")] * len(questions)
        for rows in by_length([len(ids) for ids in questions], BATCH_TOKENS):
            ids, mask = padded([questions[i] for i in rows])
            # The states of which logits are made: those behind some row's last token.
            ends = sorted({len(questions[i]) - 1 for i in rows})
            where, device = torch.tensor(ends, device=self._model.device), self._model.device
            with torch.no_grad():
                logits = self._model(
                    ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=where
                ).logits
            for row, i in enumerate(rows):
                said = logits[row, ends.index(len(questions[i]) - 1)]
                logprobs = said.to(torch.promote_types(said.dtype, torch.float32)).log_softmax(-1).double().cpu()
                yes, no = (logprobs[tokens].logsumexp(-1) for tokens in self._tokens)
                out[i] = self._verdict(float((yes - no).sigmoid()), float(yes.exp() + no.exp()))
        return out

    def _verdict(self, score: float, mass: float) -> Verdict:
        if mass < self.minimum_mass:
            reason = f"P(yes) + P(no) is {mass:.3g}, below minimum_mass: {self.minimum_mass:g}"
            return Verdict(None, "unparsable", {"mass": mass}, reason)
        return Verdict(score, parts={"mass": mass})

    def _ids(self, values: dict[str, Any]) -> list[int]:
        text = filled(self.question, values)
        if not self._tokenizer.chat_template:
            return list(self._tokenizer.encode(text))
        turns = [{"role": "user", "content": text}]
        text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _words_only(self, text: str) -> str:
        """A text in which no special token is spelt: one that ends a turn would let a response speak for others."""
        added = (str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special)
        for token in sorted({*added, *map(str, self._tokenizer.all_special_tokens)}, key=len, reverse=True):
            text = text.replace(token, f"{token[:1]} {token[1:]}")
        return text

    def _words(self, spellings: Sequence[str], key: str) -> list[int]:
        """The spellings that are one token."""
        encoded = [self._tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
        tokens = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not tokens:
            raise ValueError(f"{key}: none of {list(spellings)} is one token of {self.path!r}; give one that is")
        return tokens
