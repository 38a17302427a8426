"""A policy and its reference are the reward model they are said to be, token by token."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.types import Rollout
from posttrain_reward_models.implicit import Implicit
from tests.data import tiny_tokenizer, user
from tests.reward_models.scorers import arguments, asked, said, scorer_folder
from tests.tiny import tiny_folder

FP32 = {"device": "cpu"}
PROMPT = asked("how")
ANSWERS = [said(PROMPT, "a b"), said(PROMPT, "zzzzzz", stop=False), said(PROMPT, "")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("implicit")
    return tuple(str(tiny_folder(root / str(seed), seed=seed, initializer_range=0.1)) for seed in (1, 2))


def slow_terms(pair: tuple[str, str], rollout: Rollout) -> list[float]:
    """Of every said token log pi - log reference, each from the sequence cut before it, in fp64."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in pair]
    terms = []
    for t in range(len(PROMPT.tokens), len(rollout.tokens)):
        logprobs = []
        for model in models:
            with torch.no_grad():
                logits = model(torch.tensor([rollout.tokens[:t]])).logits[0, -1]
            logprobs.append(float(logits[rollout.tokens[t]] - logits.exp().sum().log()))
        terms.append(logprobs[0] - logprobs[1])
    return terms


@pytest.mark.parametrize("per_token", [False, True])
def test_the_score_is_beta_times_the_log_ratio_of_what_was_said(pair: tuple[str, str], per_token: bool) -> None:
    verdicts = Implicit(*pair, beta=0.3, per_token=per_token, **FP32)(**arguments(PROMPT, *ANSWERS))
    for verdict, rollout in zip(verdicts, ANSWERS, strict=True):
        terms = [0.3 * term for term in slow_terms(pair, rollout)]
        # fp32, of up to seven tokens.
        assert verdict.score == pytest.approx(sum(terms), abs=2e-5)
        assert abs(verdict.score) > 1e-3
        if not per_token:
            assert verdict.steps == ()
            continue
        assert [at for at, _ in verdict.steps] == list(range(rollout.length))
        assert [reward for _, reward in verdict.steps] == pytest.approx(terms, abs=1e-5)
        assert verdict.score == pytest.approx(sum(reward for _, reward in verdict.steps), abs=1e-12)


def test_swapping_policy_and_reference_turns_the_sign(pair: tuple[str, str]) -> None:
    forth, back = (Implicit(*order, **FP32)(**arguments(PROMPT, *ANSWERS)) for order in (pair, pair[::-1]))
    assert [a.score for a in forth] == [pytest.approx(-b.score, abs=1e-12) for b in back]


def test_a_policy_that_is_its_reference_is_indifferent(pair: tuple[str, str]) -> None:
    assert [v.score for v in Implicit(pair[0], pair[0], **FP32)(**arguments(PROMPT, *ANSWERS))] == [0.0] * 3


def test_another_tokenizer_reads_messages_but_knows_no_tokens_of_them(pair: tuple[str, str]) -> None:
    theirs = {**arguments(PROMPT, ANSWERS[0]), "prompt_ids": [(5, *PROMPT.tokens[1:])], "prompts": [[user("how")]]}
    system = [0, 6, 12, 9, 1, 12]
    shifted = Rollout((*system, *ANSWERS[0].tokens), (False,) * 6 + ANSWERS[0].mask, ANSWERS[0].text, "stop")
    (verdict,) = Implicit(*pair, **FP32)(**theirs)
    # fp32.
    assert verdict.score == pytest.approx(0.1 * sum(slow_terms(pair, shifted)[6:]), abs=2e-5)
    (verdict,) = Implicit(*pair, per_token=True, **FP32)(**theirs)
    assert verdict.status == "error"
    assert "use a model with the policy's tokenizer" in verdict.reason


def test_two_vocabularies_are_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match=r"reference: .* another vocabulary"):
        Implicit(pair[0], str(other), **FP32).prepare()


def test_what_is_no_policy_is_named(pair: tuple[str, str], tmp_path: Path) -> None:
    scorer = str(scorer_folder(tmp_path / "scorer"))
    with pytest.raises(ValueError, match=r"reference: .* is a reward model, not a language model"):
        Implicit(pair[0], scorer)
    with pytest.raises(ValueError, match="beta: 0"):
        Implicit(*pair, beta=0)
    with pytest.raises(ValueError, match="stage:dpo"):
        Implicit("stage:dpo", pair[1]).prepare()
