"""Held-out problems among training prompts: exact ones, and shares of runs of words against a slow count."""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrain.data.contamination import contamination
from posttrain.errors import DataError
from posttrain.types import Prompt
from tests.runs import ROOT

DATA = ROOT.parent / "shared" / "data"
NINE = "nine men in a boat row to an island that no map of the sea shows"


def prompts(questions, source="train", around="<|user|>{}<|assistant|>", **columns):
    """Prompts as a chat template renders them, question and other columns beside."""
    rows = [{"question": q, **{name: values[k] for name, values in columns.items()}} for k, q in enumerate(questions)]
    return [Prompt(f"{source}/{k}", (k,), around.format(row["question"]), row, source) for k, row in enumerate(rows)]


def duplicates(train, held):
    return [(match.held, match.train) for match in contamination(train, held).duplicates]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 + 5?", "what is  12+5"),
        ("Solve: x = 3.", "Solve x=3"),
        ("He said “no”, then left.", 'he said "NO" then left'),
        ("ﬁnd x²", "Find x2"),
        ("Line one\n\tline two", "Line one line two!?".replace("!?", "?")),
    ],
)
def test_case_spaces_and_the_punctuation_of_sentences_make_no_other_problem(one, other):
    assert duplicates([one], [other]) == [("0", "0")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 + 5?", "What is 12 - 5?"),
        ("(1 + 2) * 3", "1 + (2 * 3)"),
        ("What is 1.5 of 2?", "What is 15 of 2?"),
        ("Add 1.5 and 2", "Add 1, 5 and 2"),
        ("What is 5! over 3?", "What is 5 over 3?"),
        ("f(1, 2)", "f(12)"),
        ("Is a < b?", "Is a > b?"),
        ("x_1 and x", "x1 and x"),
    ],
)
def test_what_changes_the_problem_makes_another_one(one, other):
    assert duplicates([one], [other]) == []


def test_the_first_of_several_equal_prompts_is_named():
    assert duplicates(["other", "Who?", "who"], ["WHO?", "who?"]) == [("0", "1"), ("1", "1")]


@pytest.mark.parametrize("n", [1, 3, 13])
def test_shares_and_the_nearest_prompt_are_those_of_a_slow_count(n):
    rng = np.random.default_rng(n)
    words = [a + b + c for a in "abcdefgh" for b in "uvxyz" for c in "rst"] if n == 1 else list("abcdefghijkl")
    often = 1 / np.arange(1, len(words) + 1)
    often /= often.sum()
    train = [" ".join(rng.choice(words, rng.integers(3, 40), p=often)) for _ in range(40)]
    held = [" ".join(rng.choice(words, rng.integers(3, 40), p=often)) for _ in range(30)]
    for k in range(0, 30, 3):
        piece = train[k].split()[: rng.integers(1, 30)]
        held[k] = " ".join([*held[k].split()[:5], *piece])

    def runs(text):
        split = text.split()
        return {tuple(split[i : i + n]) for i in range(len(split) - n + 1)}

    common = {run for text in held for run in runs(text) if 2 * sum(run in runs(t) for t in held) > 30}
    assert n > 1 or common
    expected = {}
    for k, text in enumerate(held):
        mine = runs(text) - common
        shared = [len(mine & runs(other)) for other in train]
        if sum(shared) and text not in train:
            share = len(mine & set().union(*map(runs, train))) / len(mine)
            expected[str(k)] = (share, str(int(np.argmax(shared))))
    found = contamination(train, held, n)
    assert {m.held: (m.share, m.train) for m in found.overlaps} == expected
    assert len(expected) >= 4
    assert [m.share for m in found.overlaps] == sorted((m.share for m in found.overlaps), reverse=True)


def test_a_problem_shorter_than_a_run_matches_as_a_whole_only():
    found = contamination([f"Once upon a time {NINE}", "Nine men in a boat"], ["nine men in a boat.", "a boat", NINE])
    assert [(m.held, m.train) for m in found.duplicates] == [("0", "1")]
    assert [(m.held, m.train, m.share) for m in found.overlaps] == [("2", "0", 1.0)]


def test_templates_system_prompts_and_worked_examples_do_not_count():
    around = "<|system|>Think step by step and put the final answer in a box at the very end.<|user|>{}<|assistant|>"
    shots = around.format(f"Question: {NINE}? Answer: forty. " * 3 + "Question: {} Answer:")
    train = prompts([f"How many are {k} apples and {k} pears?" for k in range(9)], around=around)
    held = prompts([f"Who has {k} shoes?" for k in range(9)], "held", shots)
    found = contamination(train, held)
    assert (found.duplicates, found.overlaps) == ((), ())
    # The same question is found whatever stands around it.
    held = prompts(["Who has a shoe?", "how many are 3 apples and 3 pears"], "held", shots)
    assert [(m.held, m.train) for m in contamination(train, held).duplicates] == [("held/1", "train/3")]


def test_words_that_most_problems_have_are_a_template_without_columns_too():
    ask = "Answer the question below with a single word and nothing else at all please thank you"
    held = [f"{ask}: who is {name}?" for name in ("Ann", "Bob", "Cid", "Dan")]
    found = contamination([f"{ask}: who is Eve?", f"{NINE} {NINE}"], [*held, f"{ask} {NINE}"])
    assert [(m.held, m.train) for m in found.overlaps] == [("4", "1")]
    assert len(contamination([f"{ask}: who is Eve?"], held[:2]).overlaps) == 2


def test_a_question_of_several_columns_is_all_of_them_and_labels_are_none():
    passages = ["A cat sat on a mat."] * 3 + ["A dog ran."]
    asked = ["Who sat?", "On what?", "Where?", "Who ran?"]
    around = "<|user|>reading: {}<|assistant|>"
    rows = [{"passage": p, "query": q, "level": "reading", "answer": "a"} for p, q in zip(passages, asked, strict=True)]
    held = [
        Prompt(f"held/{k}", (k,), around.format(f"{row['passage']} {row['query']}"), row, "held")
        for k, row in enumerate(rows)
    ]
    # The same passage with another question is another problem.
    assert duplicates(prompts(["A cat sat on a mat. Which colour?", "x"]), held) == []
    assert duplicates(prompts(["A cat sat on a mat. On what?", "x"]), held) == [("held/1", "train/0")]


def test_messages_are_what_the_user_says():
    def chat(k, words):
        turns = [{"role": "system", "content": "Be good."}, {"role": "user", "content": words}]
        return Prompt(f"chat/{k}", (k,), f"[S]Be good.[U]{words}[A]", {"prompt": turns}, "chat")

    assert duplicates(prompts(["Who are you?", "x"]), [chat(0, "who are you"), chat(1, "Where?")]) == [
        ("chat/0", "train/0")
    ]


def test_a_known_answer_is_worse_and_told_apart():
    long = [f"{NINE} {k} times" for k in range(3)]
    train = prompts(["2 + 2", "3 + 3", *long], answer=["4", "6", "so it is 40 #### 4", "#### 5", "#### 9"])
    held = prompts(["2+2", "3+3", *[f"see {q}" for q in long]], "held", answer=["4.", "7", "#### 4", "8", "#### 7"])
    found = contamination(train, held, n=12)
    assert [m.same_answer for m in found.duplicates] == [True, False]
    assert {m.held: m.same_answer for m in found.overlaps} == {"held/2": True, "held/3": False, "held/4": False}
    assert found.as_json()["same_answer"] == 2
    report = found.report()
    assert "2 are training prompts but for case, spaces and punctuation (1 with the same answer)" in report
    assert "3 more share 12 words in a row with one of 5 (1 with the same answer)" in report
    assert "same answer: see nine men" in report
    assert contamination(["a"], ["a"]).duplicates[0].same_answer is None


def test_exact_duplicates_are_refused_by_name_and_overlaps_are_not():
    found = contamination(prompts([f"{k} + {k}" for k in range(8)]), prompts([f"{k}+{k}" for k in range(7)], "held"))
    with pytest.raises(DataError, match=r"7 of 7 problems .*held/0 = train/0.* and 2 more; take these rows out"):
        found.refuse()
    contamination([f"{NINE} now"], [f"then {NINE}"]).refuse()


def test_what_is_written_is_json_and_names_every_match():
    found = contamination(["2 + 2", f"{NINE} now"], ["2+2", f"then {NINE}", "else"]).as_json()
    assert json.loads(json.dumps(found)) == found
    assert (found["train"], found["held_out"], found["words"]) == (2, 3, 13)
    assert found["duplicates"][0] == {"held": "0", "train": "0", "share": 1.0, "same_answer": None, "text": "2+2"}
    assert [match["held"] for match in found["overlaps"]] == ["1"]


def test_a_phrase_that_many_problems_have_still_counts_and_names_a_prompt():
    held = [f"{NINE} {k}" for k in range(60)] + [f"Who is number {k}?" for k in range(70)]
    found = contamination(["nothing", f"so {NINE}"], held)
    assert {m.train for m in found.overlaps} == {"1"}
    assert len(found.overlaps) == 60


@pytest.mark.parametrize(("train", "held"), [([], ["a"]), (["a"], []), ([], []), ([""], ["b"])])
def test_nothing_to_compare_is_no_contamination(train, held):
    found = contamination(train, held)
    assert (found.duplicates, found.overlaps, found.train, found.held) == ((), (), len(train), len(held))
    assert found.report()


def test_a_run_of_no_words_is_refused():
    with pytest.raises(ValueError, match="runs of 0 words"):
        contamination(["a"], ["a"], 0)


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
def test_gsm8ks_test_split_is_clean_but_for_three_phrases_and_the_known_leak_of_a_split_in_itself_is_found():
    train, test = (
        prompts([json.loads(line)["question"] for line in (DATA / f"gsm8k_{split}.jsonl").open()], split)
        for split in ("train", "test")
    )
    found = contamination(train, test)
    assert found.duplicates == ()
    assert [(m.held, m.train) for m in found.overlaps] == [
        ("test/602", "train/1314"),
        ("test/632", "train/20"),
        ("test/581", "train/406"),
    ]
    assert len(contamination(test, test[:100]).duplicates) == 100
