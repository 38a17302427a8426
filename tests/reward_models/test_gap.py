"""A gap model compares two responses the same way whichever is named first."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from posttrain.data.chat import Chat
from posttrain.data.responses import BETTER
from posttrain.rewards.pairwise import WinRates
from posttrain_reward_models.gap import Gap
from tests.data import assistant, tiny_tokenizer, user
from tests.reward_models.scorers import measured_folder, plainly

FP32 = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(measured_folder(tmp_path_factory.mktemp("gap") / "model", outputs=2))


def by_hand(folder: str, messages: list[dict[str, str]], response: str, other: str) -> float:
    """r(response | other), the mean over heads, of the ids that training on such rows makes."""
    context = [*messages, assistant(other), user(BETTER)]
    ids, _ = Chat(tiny_tokenizer()).conversation([*context, assistant(response)], given=len(context))
    return sum(plainly(Path(folder), ids)) / 2


def test_the_probability_is_that_of_both_gaps(folder: str) -> None:
    gap = Gap(folder, **FP32)
    got = gap("ab", "yz z", question="how")
    better, worse = (by_hand(folder, [user("how")], *pair) for pair in (("ab", "yz z"), ("yz z", "ab")))
    # fp32.
    assert got == pytest.approx(1 / (1 + math.exp(-(better - worse) / 2)), abs=1e-6)
    assert abs(got - 0.5) > 0.01
    assert gap("yz z", "ab", question="how") == pytest.approx(1 - got, abs=1e-12)
    assert gap("ab", "ab", question="how") == 0.5


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "how"},
        {"problem": "how"},
        {"prompt": [user("how")]},
        {"messages": [user("how")]},
        {"messages": [user("how"), assistant("gold")]},
    ],
)
def test_the_question_is_found_and_an_answer_behind_it_is_not_shown(folder: str, columns: dict[str, object]) -> None:
    assert Gap(folder, **FP32)("ab", "c", **columns) == Gap(folder, **FP32)("ab", "c", question="how")


def test_a_system_message_comes_first(folder: str) -> None:
    system = {"role": "system", "content": "be good"}
    better, worse = (by_hand(folder, [system, user("how")], *pair) for pair in (("ab", "c"), ("c", "ab")))
    # fp32.
    expected = 1 / (1 + math.exp(-(better - worse) / 2))
    assert Gap(folder, system="be good", **FP32)("ab", "c", prompt="how") == pytest.approx(expected, abs=1e-6)


def test_a_row_without_a_question_is_named(folder: str) -> None:
    with pytest.raises(ValueError, match=r"columns \(answer\): needs prompt, question, problem or messages"):
        Gap(folder, **FP32)("a", "b", answer="4")


def test_win_rates_of_a_group_add_up_to_half_its_size(folder: str) -> None:
    """Each pair has one point to give away."""
    rates = WinRates(Gap(folder, **FP32))(["ab", "c", "dd e", "f"], question="how")
    assert sum(rates) == pytest.approx(2.0, abs=1e-12)
    assert len(set(rates)) == 4
