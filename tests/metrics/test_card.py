"""The card of a reward model: what was measured comes back, damage is refused, and the picture shows what there is."""

import dataclasses
import json
import math

import matplotlib.image
import pytest

from posttrain.errors import PosttrainError
from posttrain.metrics.card import RewardCard
from posttrain.metrics.reliability import (
    ScoredPair,
    accuracy_by_margin,
    accuracy_by_subset,
    best_of_n,
    calibration,
    consistency,
    length_correlation,
    pair_accuracy,
)

PAIRS = [
    ScoredPair(g, 0.0, 3 + i % 5, 4, float(i), "ab"[i % 2])
    for i, g in enumerate((2.0, -1.0, 0.5, 0.0, 4.0, -0.25, 1.0))
]
CURVE = best_of_n([[0.1, 0.3, 0.2, 0.9]] * 3, [[1, 2, 3, 0], [0, 0, 1, 2], [4, 4, 5, 1]], [1, 2, 4], resamples=20)
OTHERS = {
    "best_of_n": CURVE,
    "consistency": consistency([[[2.0, 1.0], [0.0, 3.0]]]),
    "invariance": {"swap": 0.0, "padding": 3e-7},
    "golden": [{"tokens": [5, 6, 7], "scores": [0.1, -2.5]}, {"tokens": [1], "scores": [1e-300, 3]}],
}


def test_a_card_of_pairs_has_the_numbers_of_their_measurements():
    card = RewardCard.of(PAIRS, **OTHERS)
    assert (card.accuracy, card.accuracy_low, card.accuracy_high) == pair_accuracy(PAIRS)
    assert (card.ece, card.reliability) == calibration(PAIRS)
    assert card.pairs == len(PAIRS)
    assert card.by_margin == accuracy_by_margin(PAIRS)
    assert card.by_subset == accuracy_by_subset(PAIRS)
    assert card.length == length_correlation(PAIRS)
    assert card.as_json() == dataclasses.asdict(card)


@pytest.mark.parametrize("others", [OTHERS, {}])
def test_what_is_written_is_read_back_to_the_last_bit(tmp_path, others):
    card = RewardCard.of(PAIRS, **others)
    folder = tmp_path / "not" / "there"
    card.write(folder)
    found = RewardCard.read(folder)
    assert found.as_json() == card.as_json()
    assert json.loads((folder / "card.json").read_text()) == card.as_json()
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "reliability.png"]
    found.write(folder)
    assert RewardCard.read(folder) == found


def test_a_new_card_takes_the_place_of_the_old(tmp_path):
    RewardCard.of(PAIRS).write(tmp_path)
    RewardCard.of(PAIRS[:1]).write(tmp_path)
    assert RewardCard.read(tmp_path).pairs == 1


def test_no_card_is_none(tmp_path):
    assert RewardCard.read(tmp_path) is None
    assert RewardCard.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize("others", [{"invariance": {"swap": math.nan}}, {"golden": [{"tokens": [1], "scores": {3}}]}])
def test_a_value_that_json_cannot_hold_is_named_and_nothing_is_written(tmp_path, others):
    folder = tmp_path / "card"
    with pytest.raises(PosttrainError, match=next(iter(others))):
        RewardCard.of(PAIRS, **others).write(folder)
    assert not folder.exists()


def changed(**fields):
    return {**RewardCard.of(PAIRS, **OTHERS).as_json(), **fields}


def without(name):
    return {key: value for key, value in changed().items() if key != name}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"),
        ('{"accuracy": 0.9', "not JSON"),
        ("[]", "found list"),
        (without("golden"), r"lacks \['golden'\]"),
        (changed(accurcy=0.9), r"unknown \['accurcy'\]"),
        (changed(accuracy="0.9"), "accuracy is not a share"),
        (changed(accuracy_high=1.5), "accuracy_high is not a share"),
        (changed(ece=True), "ece is not a share"),
        (changed(accuracy=0.01), "accuracy is not within its interval"),
        (changed(pairs=0), "pairs is not a count"),
        (changed(pairs=7.0), "pairs is not a count"),
        (changed(by_margin=None), "by_margin is not a list of rows"),
        (changed(by_subset=["a"]), "by_subset is not a list of rows"),
        (changed(length=[]), "length is not names with values"),
        (changed(best_of_n={"n": 1}), "best_of_n is not a list of rows"),
        (changed(consistency=0.5), "consistency is not names with values"),
        (changed(golden=[{"tokens": [1]}]), "golden is not a list"),
        (changed(golden=[{"tokens": [1], "scores": [None]}]), "golden is not a list"),
    ],
)
def test_a_damaged_card_is_refused_with_its_place_and_the_way_out(tmp_path, content, says):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(PosttrainError, match=says) as error:
        RewardCard.read(tmp_path)
    assert str(tmp_path / "card.json") in str(error.value)
    assert "measure the reward model again" in str(error.value)


def test_a_whole_card_is_not_refused(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(changed()))
    assert RewardCard.read(tmp_path).accuracy == pair_accuracy(PAIRS)[0]


@pytest.mark.parametrize(
    ("others", "width"), [({}, 1200), ({"best_of_n": CURVE}, 1800), ({"best_of_n": CURVE[:1]}, 1800)]
)
def test_the_picture_has_a_panel_for_what_was_measured(tmp_path, others, width):
    RewardCard.of(PAIRS, **others).write(tmp_path)
    assert matplotlib.image.imread(tmp_path / "reliability.png").shape[:2] == (500, width)


def test_the_picture_shows_the_numbers(tmp_path):
    pictures = []
    for name, gap in (("right", 1.0), ("wrong", -1.0)):
        RewardCard.of([ScoredPair(gap * i, 0.0, 3, 3) for i in range(1, 9)]).write(tmp_path / name)
        pictures.append(matplotlib.image.imread(tmp_path / name / "reliability.png")[..., :3].min(axis=-1) < 0.8)
    right, wrong = (picture[100:400, 620:].mean() for picture in pictures)
    assert right > 3 * wrong  # bars of accuracy 1 beside none
