"""The first word that a model would say, in numbers: against a plain forward pass over one question at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rewards.verifier import signature_of
from posttrain_reward_models.yes_no import YesNo
from tests.data import tiny_tokenizer
from tests.reward_models.scorers import asked, letters, said, scorer_folder
from tests.tiny import tiny_folder

QUESTION = "{prompt} so {completion} or {answer}"
SETTINGS = {"question": QUESTION, "yes": ("y", "x", "yes"), "no": ("n", "m"), "device": "cpu", "dtype": "float32"}
TEXTS = ["a b", "zzzzzz", "", "a b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("yes-no") / "m", seed=3))


def slowly(folder: str, text: str) -> tuple[float, float]:
    """P(yes) / (P(yes) + P(no)) and their sum, of one rendered question, in fp64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].tolist()
    weights = [pow(2.718281828459045, logit - max(logits)) for logit in logits]
    yes, no = (sum(weights[letters(c)[0]] for c in word) for word in ("yx", "nm"))
    return yes / (yes + no), (yes + no) / sum(weights)


def rendered(text: str) -> str:
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    return f"{system}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_the_score_is_the_share_of_yes_and_its_mass_is_told(folder: str) -> None:
    verdicts = YesNo(folder, **SETTINGS)(prompts=["q"] * 4, completions=TEXTS, answer=["k", "k", "k", "l"])
    for verdict, text, answer in zip(verdicts, TEXTS, "kkkl", strict=True):
        score, mass = slowly(folder, rendered(f"q so {text} or {answer}"))
        # fp32, of logits of a few units.
        assert verdict.score == pytest.approx(score, abs=1e-5)
        assert verdict.parts["mass"] == pytest.approx(mass, abs=1e-5)
    assert len({verdict.score for verdict in verdicts}) == 4


def test_a_question_scores_alone_what_it_scores_among_others(folder: str) -> None:
    grade = YesNo(folder, **SETTINGS)
    together = grade(["q"] * 3, TEXTS[:3], answer=["k"] * 3)
    for text, verdict in zip(TEXTS[:3], together, strict=True):
        # Kernels differ with the shape of the batch, by rounding.
        assert grade(["q"], [text], answer=["k"])[0].score == pytest.approx(verdict.score, abs=1e-5)


def test_yes_and_no_swapped_add_up_to_one(folder: str) -> None:
    forth = YesNo(folder, **SETTINGS)(["q"], ["a"], answer=["k"])[0]
    back = YesNo(folder, **{**SETTINGS, "yes": SETTINGS["no"], "no": SETTINGS["yes"]})(["q"], ["a"], answer=["k"])[0]
    assert forth.score is not None
    assert back.score == pytest.approx(1 - forth.score, abs=1e-9)


def test_without_a_chat_template_the_question_is_continued(folder: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer(None).save_pretrained(base)
    (verdict,) = YesNo(str(base), **SETTINGS)(["q"], ["a"], answer=["k"])
    assert verdict.score == pytest.approx(slowly(folder, "q so a or k")[0], abs=1e-5)


def test_a_response_cannot_end_its_turn(folder: str) -> None:
    grade = YesNo(folder, **SETTINGS)
    spelt = "a<|im_end|>"
    (verdict,) = grade(["q"], [spelt], answer=["k"])
    assert 1 not in grade._tokenizer.encode(grade._words_only(spelt), add_special_tokens=False)
    assert verdict.score == pytest.approx(slowly(folder, rendered("q so a< |im_end|> or k"))[0], abs=1e-5)


def test_columns_with_braces_are_not_read_again(folder: str) -> None:
    (verdict,) = YesNo(folder, **SETTINGS)(["q"], ["{answer}"], answer=["k"])
    assert verdict.score == pytest.approx(slowly(folder, rendered("q so {answer} or k"))[0], abs=1e-5)


def test_a_model_that_answers_neither_has_no_opinion(folder: str) -> None:
    (verdict,) = YesNo(folder, **SETTINGS, minimum_mass=0.99)(["q"], ["a"], answer=["k"])
    assert (verdict.score, verdict.status) == (None, "unparsable")
    assert "minimum_mass" in verdict.reason


def test_what_is_too_long_is_an_error_of_its_own(folder: str) -> None:
    verdicts = YesNo(folder, **SETTINGS)(["q"] * 2, ["a" * 2000, "a"], answer=["k"] * 2)
    assert [v.status for v in verdicts] == ["error", "ok"]
    assert "longer" in verdicts[0].reason


def test_settings_that_make_no_sense_are_named(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \{completion\}"):
        YesNo(folder, question="{prompt}")
    with pytest.raises(ValueError, match="minimum_mass"):
        YesNo(folder, minimum_mass=1.0)
    with pytest.raises(ValueError, match=r"no: none of \['nope'\] is one token"):
        YesNo(folder, **{**SETTINGS, "no": ("nope",)}).prepare()
    with pytest.raises(ValueError, match="would mean both"):
        YesNo(folder, **{**SETTINGS, "no": ("y",)}).prepare()
    with pytest.raises(ValueError, match="is a reward model"):
        YesNo(str(scorer_folder(tmp_path / "scorer")))
    with pytest.raises(ValueError, match="stage:sft"):
        YesNo("stage:sft").prepare()


def test_it_grades_in_a_worker_with_the_columns_of_its_question(folder: str) -> None:
    reward = Reward(verifier="posttrain_reward_models.yes_no:YesNo", settings={"path": folder, **SETTINGS})
    assert signature_of(reward).required == ("answer",)
    prompt = asked("q", answer="k")
    with Grader([reward], Grading(workers=1, timeout=60)) as grader:
        ((verdict,),) = grader.grade([(prompt, [said(prompt, "a b")])])
    assert verdict.score == pytest.approx(slowly(folder, rendered(f"{prompt.text} so a b or k"))[0], abs=1e-5)
