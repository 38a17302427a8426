"""A patch is as good as it is like the known one, once it has been read and applied."""

from __future__ import annotations

import difflib

import pytest

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout
from posttrain_verifiers.edits import Hunk, apply, read_edits
from posttrain_verifiers.patch import Patch, similarity
from tests.verifiers.shipped_rows import faults, timed

FILES = {"a.py": "one\ntwo\nthree\nfour\nfive\n", "b.py": "x = 1\n"}
ORACLE = "--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
BLOCK = "### a.py\n<<<<<<< SEARCH\ntwo\n=======\nTWO\n>>>>>>> REPLACE\n"
OTHER = "### b.py\n<<<<<<< SEARCH\nx = 1\n=======\nx = 2\n>>>>>>> REPLACE\n"


def test_the_shipped_rows_are_all_judged_as_they_should_be() -> None:
    assert faults("patch", {"gold", "empty", "truncated", "near_miss", "hostile"}) == []


def test_the_score_is_difflibs_ratio_of_the_two_diffs() -> None:
    ours = BLOCK.replace("TWO", "2")
    diffs = ["@@\n one\n-two\n+TWO\n three\n four\n five", "@@\n one\n-two\n+2\n three\n four\n five"]
    expected = difflib.SequenceMatcher(None, diffs[1], diffs[0], autojunk=False).ratio()
    assert Patch()(ours, patch=ORACLE, files=FILES).score == expected
    bare = difflib.SequenceMatcher(None, "-two\n+2", "-two\n+TWO", autojunk=False).ratio()
    assert Patch()(ours, patch=ORACLE).score == bare


def test_the_score_is_the_mean_over_the_files_that_either_edits() -> None:
    both = Patch()(BLOCK + OTHER, patch=ORACLE, files=FILES)
    assert (both.score, both.parts) == (0.5, {"similarity": 0.5, "files": 0.5, "readable": 1.0})
    missed = Patch()(BLOCK, patch=BLOCK + OTHER, files=FILES)
    assert (missed.score, missed.parts["files"]) == (0.5, 0.5)
    assert Patch()(OTHER, patch=ORACLE, files=FILES).score == 0.0
    assert Patch()(OTHER + BLOCK, patch=BLOCK + OTHER, files=FILES).score == 1.0


def test_wrong_format_is_the_papers_minus_1_or_what_the_recipe_says() -> None:
    for text in ("no edit here", "", BLOCK.replace("two", "tow"), BLOCK.replace(">>>>>>> REPLACE", "")):
        verdict = Patch()(text, patch=ORACLE, files=FILES)
        assert (verdict.score, verdict.status, verdict.parts["readable"]) == (-1.0, "unparsable", 0.0)
        assert Patch(wrong_format=0.0)(text, patch=ORACLE, files=FILES).score == 0.0
    for score in (0.5, float("nan")):
        with pytest.raises(ValueError, match="0 or below"):
            Patch(score)


def test_an_edit_that_changes_nothing_is_one_of_wrong_format() -> None:
    idle = ORACLE.replace("+TWO", "+two")
    for text in (BLOCK.replace("TWO", "two"), idle):
        for files in (FILES, None):
            assert Patch()(text, patch=ORACLE, files=files).score == -1.0, text


def test_edits_are_read_from_the_asked_tag_only() -> None:
    draft, right = BLOCK.replace("TWO", "2"), BLOCK
    text = f"<think>\n{draft}</think>\n<solution>\n{right}</solution>"
    assert Patch(tag="solution")(text, patch=ORACLE, files=FILES).score == 1.0
    assert Patch(tag="solution")(right, patch=ORACLE, files=FILES).score == -1.0
    assert Patch(tag="solution")(text.removesuffix("</solution>"), patch=ORACLE, files=FILES).score == -1.0


@pytest.mark.parametrize(
    ("patch", "files"),
    [
        ("", None),
        ("fix it", FILES),
        (ORACLE, {}),
        (ORACLE, {"a.py": "other\n"}),
        (BLOCK.replace("TWO", "two"), FILES),
    ],
)
def test_a_known_patch_that_cannot_be_used_gives_no_score(patch: str, files: dict[str, str] | None) -> None:
    verdict = Patch()(BLOCK, patch=patch, files=files)
    assert (verdict.score, verdict.status) == (None, "unparsable")
    assert "known patch" in verdict.reason


def test_a_hunk_is_read_by_its_lines_where_its_counts_are_wrong() -> None:
    for head in ("-1,3 +1,3", "-1,9 +1,9", "-1 +1", "-7,3 +70,3"):
        (edit,) = read_edits(ORACLE.replace("-1,3 +1,3", head))
        assert [(h.old, h.new) for h in edit.hunks] == [(("one", "two", "three"), ("one", "TWO", "three"))], head


def test_lines_that_look_like_headers_are_lines_where_the_counts_say_so() -> None:
    (edit,) = read_edits("--- a/q.sql\n+++ b/q.sql\n@@ -1,2 +1,2 @@\n--- old note\n+++ new note\n select 1;\n")
    assert edit.hunks == [Hunk(("-- old note", "select 1;"), ("++ new note", "select 1;"), 1)]


def test_a_diff_of_several_files_with_git_headers_is_read_file_by_file() -> None:
    text = (
        "diff --git a/a.py b/a.py\nindex 1..2 100644\n"
        + ORACLE
        + "diff --git a/old.py b/new.py\nsimilarity index 90%\n"
        "rename from old.py\nrename to new.py\n--- a/old.py\n+++ b/new.py\n@@ -1 +1 @@\n-p\n+q\n"
        "--- /dev/null\n+++ b/c.py\t2025-01-01\n@@ -0,0 +1 @@\n+c\n\\ No newline at end of file\n"
        "--- a/d.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-d\n"
    )
    found = [(edit.source, edit.path, len(edit.hunks)) for edit in read_edits(text)]
    assert found == [("a.py", "a.py", 1), ("old.py", "new.py", 1), (None, "c.py", 1), ("d.py", None, 1)]
    after = apply(read_edits(text), {**FILES, "old.py": "p", "d.py": "d"})
    assert after == {"a.py": "one\nTWO\nthree\nfour\nfive\n", "old.py": "", "new.py": "q", "c.py": "c", "d.py": ""}


def test_a_hunk_goes_where_its_lines_stand_nearest_to_the_line_it_names() -> None:
    files = {"f": "a\nb\na\nb\na\nb\n"}
    diff = "--- f\n+++ f\n@@ -{},2 +{},2 @@\n a\n-b\n+B\n"
    for line, after in ((1, "a\nB\na\nb\na\nb\n"), (3, "a\nb\na\nB\na\nb\n"), (6, "a\nb\na\nb\na\nB\n")):
        assert apply(read_edits(diff.format(line, line)), files) == {"f": after}
    two = "--- f\n+++ f\n@@ -1,2 +1,4 @@\n a\n+n\n+n\n b\n@@ -3,2 +5,2 @@\n a\n-b\n+B\n"
    assert apply(read_edits(two), files) == {"f": "a\nn\nn\nb\na\nB\na\nb\n"}


def test_applying_difflibs_own_diff_gives_the_file_it_was_made_for() -> None:
    before = "\n".join(f"line {i % 7}" for i in range(60)) + "\n"
    for step in (2, 5, 9):
        lines = before.split("\n")
        changed = [line + "!" if i % step == 0 else line for i, line in enumerate(lines) if i % (step + 4)]
        after = "\n".join(changed)
        for context in (0, 1, 3):
            made = difflib.unified_diff(lines, after.split("\n"), "a/f", "b/f", n=context, lineterm="")
            assert apply(read_edits("\n".join(made)), {"f": before}) == {"f": after}, (step, context)


def test_blocks_follow_each_other_in_one_file_and_an_empty_search_makes_one() -> None:
    second = BLOCK.replace("two", "TWO").replace("TWO\n>>>", "2\n>>>").split("\n", 1)[1]
    assert apply(read_edits(BLOCK + second), FILES) == {"a.py": "one\n2\nthree\nfour\nfive\n"}
    made = "### c.py\n<<<<<<< SEARCH\n=======\nc\n>>>>>>> REPLACE"
    assert apply(read_edits(made), FILES) == {"c.py": "c"}
    with pytest.raises(ValueError, match="is there"):
        apply(read_edits(made), {"c.py": "old"})
    with pytest.raises(ValueError, match="no file"):
        apply(read_edits(BLOCK), {})


@pytest.mark.parametrize("path", ["### a.py", "a.py", "`a.py`", "**a.py**", "#### a.py:", "a.py\n```python"])
def test_a_block_is_of_the_file_named_before_it(path: str) -> None:
    assert [edit.name for edit in read_edits(BLOCK.replace("### a.py", path))] == ["a.py"]


def test_similarity_falls_back_to_lines_and_then_gives_up() -> None:
    text = "".join(f"value_{i} = compute({i})\n" for i in range(2_000))
    half = "".join(f"value_{i} = compute({i})\n" for i in range(1_000))
    some = text[:3_000]
    # Automatic junk would leave out what is frequent in more than 200 characters.
    assert similarity(some, half[:2_000]) == difflib.SequenceMatcher(None, some, half[:2_000], autojunk=False).ratio()
    assert similarity(some, some[::-1]) == difflib.SequenceMatcher(None, some, some[::-1], autojunk=False).ratio()
    lines = similarity(text, half)
    assert lines == 2 * len(half) / (len(text) + len(half))
    assert similarity("a" * 5000, "a" * 4999) == 0.0  # too many characters alike, and not one line
    assert similarity("x\n" * 10_000, "x\n" * 9_999) is None
    assert similarity("x\n" * 100_000, "x\n" * 100_000) == 1.0


def test_hostile_patches_are_graded_in_a_moment() -> None:
    files = {"a.py": "x\n" * 2_000, "b.py": FILES["a.py"]}
    oracle = "--- a/b.py\n+++ b/b.py\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
    head = "--- a/a.py\n+++ b/a.py\n"
    texts = [
        head + "@@ -1 +1 @@\n-x\n+y\n" * 1_000,
        head + "@@ -1 +1 @@\n" + " x\n" * 1_900 + "+y\n" * 100_000,
        "--- a/b.py\n+++ b/b.py\n@@ -1,3 +1,3 @@\n one\n-two\n+" + "TWO" * 100_000 + "\n three\n",
        "--- a/b.py\n+++ b/b.py\n@@ -1,3 +1,3 @@\n one\n-two\n" + "+TWO\n" * 60_000 + " three\n",
        "### a.py\n" + "<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n" * 1_000,
        "<<<<<<< SEARCH\n" * 20_000,
        "--- a\n+++ b\n" * 20_000,
        "@" * 300_000,
        "a/" * 150_000 + "\n" + BLOCK,
        "rename from a\nrename to b\n" * 5_000,
        "x" * 400_001,
    ]
    for text in texts:
        for known in (files, None):
            verdict, taken = timed(Patch(), text, patch=oracle, files=known)
            assert taken < 5, text[:60]
            assert (verdict.score or 0.0) < 0.5, text[:60]


def test_it_grades_in_worker_processes() -> None:
    rollouts = [Rollout((1,), (True,), t, "stop") for t in (ORACLE, "none")]
    groups = [(Prompt("p", (1,), "", {"patch": ORACLE, "files": FILES}), rollouts)]
    with Grader([Reward(verifier="posttrain_verifiers.patch:Patch")], Grading(timeout=5)) as grader:
        assert [verdict.score for verdict in grader.grade(groups)[0]] == [1.0, -1.0]
