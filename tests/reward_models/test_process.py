"""A process reward model's shares lie on the last tokens of the steps, and add up to the score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.chat import Chat
from posttrain_reward_models.process import Process, step_ends, transformed
from tests.data import tiny_tokenizer, user
from tests.reward_models.scorers import arguments, asked, measured_folder, plainly, said

FP32 = {"dtype": "float32", "device": "cpu"}
PROMPT = asked("how")
ANSWERS = [said(PROMPT, "a b\ncd\n\ne"), said(PROMPT, "zz", stop=False)]
ENDS = [[3, 6, 9], [1]]
"""a, space, b, line end; c, d, line end; line end, e, stop. z, z."""

PROBABILITY = st.floats(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(measured_folder(tmp_path_factory.mktemp("process") / "model", outputs=2))


def by_hand(folder: str) -> list[list[float]]:
    """Sigma of the output after each step, averaged over the heads, from the sequence cut there."""
    start = len(PROMPT.tokens)
    return [
        [
            sum(1 / (1 + math.exp(-x)) for x in plainly(Path(folder), rollout.tokens[: start + end + 1])) / 2
            for end in ends
        ]
        for rollout, ends in zip(ANSWERS, ENDS, strict=True)
    ]


@pytest.mark.parametrize("reduce", [None, "min", "product", "last", "mean"])
def test_the_score_is_reduced_and_each_share_is_what_its_step_changes(folder: str, reduce: Any) -> None:
    verdicts = Process(folder, reduce, **FP32)(**arguments(PROMPT, *ANSWERS))
    for verdict, ps, ends in zip(verdicts, by_hand(folder), ENDS, strict=True):
        product = 1.0
        reached = []
        for k, p in enumerate(ps):
            product *= p
            so_far = {"product": product, "last": p, "mean": sum(ps[: k + 1]) / (k + 1)}
            reached.append(so_far.get(reduce, sorted(ps[: k + 1])[0]))
        # fp32.
        assert verdict.score == pytest.approx(reached[-1], abs=1e-6)
        assert [at for at, _ in verdict.steps] == ends
        shares = [reached[0], *(reached[k] - reached[k - 1] for k in range(1, len(ps)))]
        assert [share for _, share in verdict.steps] == pytest.approx(shares, abs=1e-6)
        assert verdict.score == pytest.approx(sum(share for _, share in verdict.steps), abs=1e-12)
        assert verdict.parts == pytest.approx({"steps": len(ps), "lowest": min(ps), "last": ps[-1]}, abs=1e-6)


@pytest.mark.parametrize("transform", ["clip", "delta", ["clip", "delta"]])
def test_a_transforms_shares_are_the_score(folder: str, transform: Any) -> None:
    verdicts = Process(folder, transform=transform, clip_eta=0.6, **FP32)(**arguments(PROMPT, *ANSWERS))
    for verdict, ps, ends in zip(verdicts, by_hand(folder), ENDS, strict=True):
        clipped = [min(p - 0.6, 0.0) for p in ps] if "clip" in transform else ps
        expected = clipped
        if "delta" in transform:
            # Three steps and one.
            expected = [clipped[0] - clipped[1], clipped[1], 0.0] if len(ps) == 3 else [0.0]
        # fp32.
        assert [share for _, share in verdict.steps] == pytest.approx(expected, abs=1e-6)
        assert [at for at, _ in verdict.steps] == ends
        assert verdict.score == pytest.approx(sum(expected), abs=1e-6)


@given(st.lists(PROBABILITY, min_size=1, max_size=8), st.booleans())
def test_delta_makes_what_is_still_to_come_the_steps_own_value(ps: list[float], clip: bool) -> None:
    rewards = transformed(ps, ["clip", "delta"] if clip else ["delta"], 0.5)
    values = [min(p - 0.5, 0.0) for p in ps] if clip else ps
    for k in range(len(ps) - 1):
        assert sum(rewards[k:]) == pytest.approx(values[k], abs=1e-12)
    assert rewards[-1] == 0.0


@given(st.lists(PROBABILITY, min_size=2, max_size=6), st.integers(1, 20))
def test_repeating_a_first_step_earns_nothing(ps: list[float], times: int) -> None:
    for transforms in (["delta"], ["clip", "delta"]):
        once = sum(transformed(ps, transforms, 0.5))
        assert sum(transformed([ps[0]] * times + ps, transforms, 0.5)) == pytest.approx(once, abs=1e-9)
    assert sum(transformed([1.0] * times + ps, ["clip"], 0.5)) == pytest.approx(
        sum(transformed(ps, ["clip"], 0.5)), abs=1e-9
    )


@pytest.mark.parametrize(
    ("texts", "separator", "ends"),
    [
        (["a", "\n", "b", ""], "\n", [1, 3]),
        (["a", "\n", "\n", "b"], "\n", [1, 3]),
        (["\n", "a", "\n", "b"], "\n", [2, 3]),
        (["a", "\n", ""], "\n", [2]),
        (["a\nb\n", "c"], "\n", [0, 1]),
        (["a", "\nb"], "\n", [1]),
        (["a", "\n", "\n", "b", "\n", "c"], "\n\n", [2, 5]),
        (["a", "St", "ep", "b"], "Step", [2, 3]),
        ([" ", "\n", ""], "\n", []),
        ([], "\n", []),
    ],
)
def test_steps_end_where_the_separator_is_complete(texts: list[str], separator: str, ends: list[int]) -> None:
    assert step_ends(texts, separator) == ends


def test_steps_end_where_the_labels_of_the_training_data_lie() -> None:
    steps, chat = ["ab c", "d", "e\tf"], Chat(tiny_tokenizer())
    ids, borders = chat.in_parts([user("how")], ["ab c\n", "d\n", "e f"])
    texts = [chat.tokenizer.decode([t], skip_special_tokens=True) for t in ids[borders[0] :]]
    assert step_ends(texts, "\n") == [border - borders[0] - 1 for border in borders[1:]]
    assert len(steps) == len(borders) - 1


def test_a_response_without_words_and_one_of_another_vocabulary_have_no_score(folder: str) -> None:
    grader = Process(folder, **FP32)
    (silent,) = grader(**arguments(PROMPT, said(PROMPT, " \n")))
    assert (silent.score, silent.status) == (None, "unparsable")
    theirs = arguments(PROMPT, ANSWERS[0])
    (verdict,) = grader(**{**theirs, "prompts": [[user("how")]], "prompt_ids": [(5, *PROMPT.tokens[1:])]})
    assert verdict.status == "error"
    assert "use a model with the policy's tokenizer" in verdict.reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduce": "min", "transform": "delta"}, "reduce: min.*leave one out"),
        ({"reduce": "sum"}, "reduce: 'sum' is none of min, product"),
        ({"transform": ["clip", "dealt"]}, "transform: 'dealt' is none of clip, delta"),
        ({"step_separator": ""}, "step_separator"),
    ],
)
def test_a_setting_that_means_nothing_is_named(folder: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Process(folder, **settings)
