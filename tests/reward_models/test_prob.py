"""RLPR's reward, written out one token at a time: what reasoning adds to the known answer's probability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain_reward_models.prob import Prob
from tests.data import user
from tests.reward_models.scorers import arguments, asked, letters, said
from tests.tiny import tiny_folder

SETTINGS: dict[str, Any] = {"before": " so ", "device": "cpu"}
PROMPT = asked("how", answer="ab c")
ANSWERS = [said(PROMPT, "a b so x"), said(PROMPT, "zz so zz so ", stop=False), said(PROMPT, "so so so ab c")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("prob") / "m", seed=5))


def slowly(folder: str, head: tuple[int, ...], answer: str) -> float:
    """The mean over the answer's tokens of each one's probability, from the sequence cut before it, in fp64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    total, ids = 0.0, list(head)
    for token in letters(answer):
        with torch.no_grad():
            weights = model(torch.tensor([ids])).logits[0, -1].exp()
        total += float(weights[token] / weights.sum())
        ids.append(token)
    return total / len(answer)


def grade(folder: str, rollouts: list[Any], answer: Any = "ab c", **settings: Any) -> list[Any]:
    given = arguments(PROMPT, *rollouts)
    return Prob(folder, **{**SETTINGS, **settings})(**given, answer=[answer] * len(rollouts))


def test_the_score_is_what_the_reasoning_adds(folder: str) -> None:
    reasoned = [
        slowly(folder, (*PROMPT.tokens, *letters(text)), "ab c") for text in ("a b so ", "zz so zz so ", "so so so ")
    ]
    bare = slowly(folder, (*PROMPT.tokens, *letters(" so ")), "ab c")
    verdicts = grade(folder, ANSWERS)
    for verdict, value in zip(verdicts, reasoned, strict=True):
        # fp32 probabilities.
        assert verdict.parts["with_reasoning"] == pytest.approx(value, abs=1e-5)
        assert verdict.parts["without"] == pytest.approx(bare, abs=1e-5)
        assert verdict.score == pytest.approx(min(1.0, max(0.0, value - bare)), abs=1e-5)
    assert [v.score for v in grade(folder, ANSWERS, debiased=False)] == [v.parts["with_reasoning"] for v in verdicts]


def test_reasoning_that_makes_the_answer_less_probable_is_worth_nothing_and_some_is_worth_something(
    folder: str,
) -> None:
    many = [said(PROMPT, f"{a}{b} so ") for a in "abcdefgh" for b in "ijklmnop"]
    verdicts = grade(folder, many)
    gains = [v.parts["with_reasoning"] - v.parts["without"] for v in verdicts]
    assert min(gains) < -1e-4 < 1e-4 < max(gains)
    assert [v.score for v in verdicts] == [max(0.0, gain) for gain in gains]


def test_what_was_answered_does_not_count_only_what_stands_before_it(folder: str) -> None:
    alike = grade(folder, [said(PROMPT, "a b so x"), said(PROMPT, "a b so ab c and more"), said(PROMPT, "a b so ")])
    # Read in other companies: equal up to rounding.
    assert {round(v.score, 6) for v in alike} == {round(alike[0].score, 6)}


def test_a_response_without_the_mark_is_worth_nothing_and_an_empty_answer_says_nothing(folder: str) -> None:
    (verdict,) = grade(folder, [said(PROMPT, "a b")])
    assert (verdict.score, verdict.status) == (0.0, "unparsable")
    for unknown in (None, "", "  "):
        (verdict,) = grade(folder, [ANSWERS[0]], unknown)
        assert (verdict.score, verdict.status) == (None, "unparsable")


def test_an_answer_that_is_no_text_is_read_as_it_is_written(folder: str) -> None:
    (verdict,) = grade(folder, [ANSWERS[0]], 12)
    assert verdict.score == grade(folder, [ANSWERS[0]], " 12 ")[0].score


def test_the_sampled_tokens_are_read_where_they_end_with_the_mark(folder: str) -> None:
    # Two line ends that were sampled as two tokens, which the tokenizer would merge into one.
    prompt, text = PROMPT, "a\n\nb so x"
    ids = (*letters("a"), 12, 12, *letters("b so x"), 1)
    given = {**arguments(prompt, said(prompt, text)), "completion_ids": [ids]}
    (verdict,) = Prob(folder, **SETTINGS)(**given, answer=["ab c"])
    apart = slowly(folder, (*prompt.tokens, *ids[:8]), "ab c")
    merged = slowly(folder, (*prompt.tokens, *letters("a"), 13, *letters("b so ")), "ab c")
    assert verdict.parts["with_reasoning"] == pytest.approx(apart, abs=1e-5)
    assert abs(apart - merged) > 1e-4


def test_another_tokenizer_reads_messages(folder: str) -> None:
    theirs = {**arguments(PROMPT, ANSWERS[0]), "prompt_ids": [(5, *PROMPT.tokens[1:])]}
    (verdict,) = Prob(folder, **SETTINGS)(**{**theirs, "prompts": [[user("how")]]}, answer=["ab c"])
    system = (0, 6, 12, 9, 1, 12)
    value = slowly(folder, (*system, *PROMPT.tokens, *letters("a b so ")), "ab c")
    assert verdict.parts["with_reasoning"] == pytest.approx(value, abs=1e-5)
    (verdict,) = Prob(folder, **SETTINGS)(**theirs, answer=["ab c"])
    assert verdict.status == "error"
    assert "give the row messages" in verdict.reason


def test_settings_that_make_no_sense_are_named(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="before"):
        Prob(folder, before="")
    with pytest.raises(ValueError, match="stage:sft"):
        Prob("stage:sft").prepare()


def test_it_grades_in_a_worker(folder: str) -> None:
    reward = Reward(verifier="posttrain_reward_models.prob:Prob", settings={"path": folder, **SETTINGS})
    with Grader([reward], Grading(workers=1, timeout=60)) as grader:
        (verdicts,) = grader.grade([(PROMPT, ANSWERS)])
    assert [v.score for v in verdicts] == [pytest.approx(v.score, abs=1e-6) for v in grade(folder, ANSWERS)]
