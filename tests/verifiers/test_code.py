"""Programs are graded by what their functions give and what they write, and the verdict says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.errors import DataError
from posttrain_verifiers.code import Code
from posttrain_verifiers.sandbox import SandboxUnavailableError

PROMPT = '''import math
from typing import List

def norm(x: float) -> float:
    return math.fabs(x)

def largest(numbers: List[float]) -> float:
    """The number that is farthest from 0."""
'''
TEST = """
METADATA = {}

def check(candidate):
    import copy
    values = [1.0, -3.0]
    assert candidate(copy.copy(values)) == -3.0
    assert norm(candidate([0.5])) < 1
    for k in range(3):
        assert candidate([k]) == k
"""
CHECK = {"prompt": PROMPT, "entry_point": "largest", "test": TEST}
BODY = "    return max(numbers, key=norm)\n"
ADD = {"test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'"]}


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    made = Code(timeout=60.0)  # a busy machine fails no honest program
    yield made
    made.close()


@pytest.fixture(scope="module")
def fraction() -> Iterator[Code]:
    made = Code("fraction", timeout=60.0)
    yield made
    made.close()


def test_a_function_is_graded_by_the_statements_of_check(code: Code, fraction: Code) -> None:
    right, wrong = code(BODY, **CHECK), code("    return max(numbers)\n", **CHECK)
    assert (right.score, right.status, right.reason) == (1.0, "ok", "passed 3 of 3")
    assert (wrong.score, wrong.status) == (0.0, "ok")
    said = "'assert candidate(copy.copy(values)) == -3.0': largest([1.0, -3.0]) gave 1.0, due -3.0"
    assert wrong.reason == f"test 1 of 3, {said}"
    part = fraction("    return max(numbers)\n", **CHECK)
    assert (part.score, part.parts) == (2 / 3, {"all": 0.0})
    assert part.reason == f"passed 2 of 3; test 1 of 3, {said}"
    assert fraction(BODY, **CHECK).parts == {"all": 1.0}


def test_the_prompts_own_stub_of_the_function_is_not_what_is_tested(code: Code) -> None:
    test = "def check(candidate):\n    assert largest([2.0]) == candidate([2.0]) == 2.0\n"
    assert code(BODY, **{**CHECK, "test": test}).score == 1.0


def test_a_check_that_returns_is_one_test(fraction: Code) -> None:
    test = "def check(f):\n    if f(1) != 2:\n        raise AssertionError\n    return\n"
    columns = {"prompt": "def up(x):\n", "entry_point": "up", "test": test}
    assert fraction("    return x + 1\n", **columns).reason == "passed 1 of 1"
    assert fraction("    return x + 2\n", **columns).score == 0.0


def test_asserts_are_counted_one_by_one_and_a_failure_does_not_hide_the_next(fraction: Code) -> None:
    assert fraction("def add(a, b): return a + b", **ADD).score == 1.0
    verdict = fraction("def add(a, b): return abs(a) + abs(b)", **ADD)
    assert verdict.score == 1 / 3
    assert verdict.reason == "passed 1 of 3; test 2 of 3, 'assert add(-1, 1) == 0': add(-1, 1) gave 2, due 0"
    assert fraction("def add(a, b): raise ValueError('no')", **ADD).score == 0.0


def test_a_script_of_tests_is_graded_and_the_program_may_use_its_imports(code: Code) -> None:
    raises = "try:\n    root(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False\n"
    test = f"import math\nassert root(4) == math.sqrt(4)\n{raises}"
    assert code("def root(x): return math.sqrt(x)", test=test).reason == "passed 2 of 2"
    assert code("def root(x): return abs(x) ** 0.5", test=test).score == 0.0
    imports = {"test_list": ["assert root(4) == math.sqrt(4)"], "test_imports": ["import math"]}
    assert code("def root(x): return math.sqrt(x)", **imports).score == 1.0


def test_challenge_tests_count_where_they_are_asked_for(code: Code) -> None:
    columns = {**ADD, "challenge_test_list": ["assert add([1], [2]) == [1, 2]", "assert add(1, 2, 3) == 6"]}
    assert code("def add(a, b): return a + b", **columns).reason == "passed 3 of 3"
    harder = Code(timeout=60.0, challenge=True)
    verdict = harder("def add(a, b): return a + b", **columns)
    harder.close()
    assert verdict.score == 0.0
    assert verdict.reason.startswith("test 5 of 5, 'assert add(1, 2, 3) == 6': TypeError: ")


def test_the_programs_own_objects_are_built_changed_and_handed_back(code: Code) -> None:
    columns = {
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(4)\n",
        "test_list": ["assert depth(root) == 3", "assert depth(root.left) == 2", "assert root.value == 1"],
    }
    node = "class Node:\n    def __init__(self, value):\n        self.value, self.left = value, None\n"
    depth = "def depth(node):\n    return 0 if node is None else 1 + depth(node.left)\n"
    assert code(node + depth, **columns).score == 1.0
    assert code(node + depth.replace("1 +", "2 +"), **columns).score == 0.0
    assert code(depth, **columns).reason == "NameError: name 'Node' is not defined"


def test_an_object_of_the_programs_equals_only_itself_and_is_never_true(code: Code) -> None:
    lies = "class Yes:\n    __eq__ = __lt__ = lambda s, o: True\n    __len__ = lambda s: 1\ndef f(): return Yes()\n"
    for statement in ("f() == 3", "3 == f()", "f() < 3", "f()", "len(f())", "f() in [1, 2]", "f() == f()"):
        assert code(lies, test_list=[f"assert {statement}"]).score == 0.0, statement
    assert code(lies, test_list=["x = f()", "assert x == x"]).score == 1.0


def test_builtins_modules_and_the_prompts_functions_are_the_tests_own(code: Code) -> None:
    cheat = "set = sorted = lambda x: 0\nclass math:\n    pi = 0\ndef f(x): return 0\n"
    assert code(cheat, test_list=["assert set(f(1)) == {1}"]).score == 0.0
    assert code(cheat, test_list=["assert f(1) == math.pi"]).score == 0.0
    lax = "def largest(x): return -3.0 if len(x) > 1 else 5.0 if x == [0.5] else x[0]\n"
    assert code(f"def norm(x): return 0\n{lax}", **CHECK).reason.startswith("test 2 of 3, 'assert norm(")
    assert code("def sum(a, b): return a + b", test_list=["assert sum(1, 2) == 3"]).score == 1.0


def test_an_argument_that_the_program_changes_is_its_own_copy(code: Code) -> None:
    columns = {"test_list": ["x = [3, 1]\nassert sort(x) is None\nassert x == [1, 3]"]}
    assert code("def sort(x): x.sort()", **columns).score == 0.0


def test_a_value_that_would_keep_the_test_busy_for_ever_is_wrong() -> None:
    quick = Code(timeout=3.0)
    endless = quick("def n(): return 1 << 60", test_list=["k = n()\nwhile k:\n    k -= 1\nassert n() == 3"])
    huge = quick("def n(): return 1 << (1 << 21)", test_list=["assert n() ** n() == 4"])
    quick.close()
    assert (endless.score, huge.score) == (0.0, 0.0)
    assert "did not come to an end" in endless.reason
    assert "bits" in huge.reason


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def add(a, b):\n    while True: pass", "timeout in add(1, 2)"),
        ("while True: pass\ndef add(a, b): return a + b", "timeout while the program loaded"),
        ("import os\ndef add(a, b): os._exit(0)", "exited with code 0 in add(1, 2)"),
        ("import os\nos._exit(0)\ndef add(a, b): return a + b", "exited while the program loaded"),
        ("def add(a, b): return [0] * (1 << 40)", "MemoryError"),
        ("1 / 0\ndef add(a, b): return a + b", "the program does not load: ZeroDivisionError: division by zero"),
        ("def add(a, b):\n    while True: print('x' * 9999)", "output in add(1, 2)"),
    ],
)
def test_a_program_that_hangs_crashes_or_floods_is_wrong_and_the_reason_says_how(source: str, reason: str) -> None:
    limited = Code(timeout=2.0 if "timeout" in reason else 60.0)
    verdict = limited(source, **ADD)
    limited.close()
    assert (verdict.score, verdict.status) == (0.0, "ok")
    assert reason in verdict.reason
    assert verdict.lasting == ("timeout" not in reason)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"test_list": ["assert add(1, 2 == 3"]}, "test_list is not Python"),
        ({"test_list": []}, "there are none"),
        ({"test_list": ["assert 1 == 1"]}, "they name nothing that the program could define"),
        ({"test_list": ["assert add(1, int('x')) == 3"]}, "raises ValueError"),
        ({"test_list": ["assert add(lambda: 1) == 3"]}, "raises TypeError: no value of type function"),
        ({"test_list": ["assert add(1) == 1"], "test_setup_code": "import no_such_module"}, "ModuleNotFoundError"),
        ({"test": "x = 1", "entry_point": "add", "prompt": ""}, "test defines no check(candidate)"),
        ({"tests": "[{"}, "tests is no JSON"),
        ({"tests": []}, "there are none"),
        ({"tests": [{"input": "1"}]}, "a test has no input and output"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "not two lists of one length"),
        ({"tests": [{"input": "{", "output": "1"}], "fn_name": "add"}, "an argument is no JSON"),
    ],
)
def test_tests_that_cannot_be_run_give_no_score(code: Code, columns: dict[str, Any], reason: str) -> None:
    verdict = code("def add(a, b=0): return a", **columns)
    assert (verdict.score, verdict.status) == (None, "unparsable")
    assert verdict.reason.startswith("the tests cannot be run: ")
    assert reason in verdict.reason


def test_a_completion_without_a_program_is_a_zero(code: Code) -> None:
    for completion in ("", "I do not know.", "```python\ndef add(a, b:\n```", "x" * 200_000):
        verdict = code(completion, **ADD)
        assert (verdict.score, verdict.status) == (0.0, "unparsable"), completion[:20]
        assert verdict.reason.startswith("no program found: ")


def test_stdout_is_compared_by_tokens_with_a_tolerance_or_exactly(code: Code) -> None:
    columns = {"tests": json.dumps([{"input": "1 3\n", "output": "0.33333333 x\n"}])}
    program = "a, b = map(int, input().split())\nprint(a / b, 'x')"
    assert code(program, **columns).score == 1.0
    exact = Code(timeout=60.0, tolerance=None)
    assert exact(program, **columns).score == 0.0
    assert exact("print('0.33333333 x  ')\nprint()", **columns).score == 1.0
    exact.close()
    assert code("print('0.33333333 y')", **columns).score == 0.0


def test_each_pair_of_stdin_and_stdout_is_one_test(fraction: Code) -> None:
    columns = {"tests": {"inputs": ["2\n", "3\n"], "outputs": ["4", "9"]}}
    assert fraction("n = int(input())\nprint(n * n)", **columns).score == 1.0
    assert fraction("n = int(input())\nprint(n + n)", **columns).score == 0.5
    failing = fraction("n = int(input())\nprint(n * n)\nraise ValueError('late')", **columns)
    assert failing.reason == "passed 0 of 2; test 1 of 2: exit code 1: ValueError: late"


def test_functions_are_called_with_json_arguments(code: Code) -> None:
    columns = {
        "tests": [{"input": "[1, 2]\n3", "output": "[[1, 3], 0.6666666667]", "testtype": "functional"}],
        "metadata": json.dumps({"func_name": "pairs"}),
    }
    body = "(self, x, n): return (x[0], n), 2 / 3"
    assert code(f"class Solution:\n    def pairs{body}", **columns).score == 1.0
    assert code("def pairs(x, n): return [[x[0], n], 2 / 3]", **columns).score == 1.0
    assert code("def pairs(x, n): return [[x[0], n], 0.66]", **columns).score == 0.0
    assert code("def other(x, n): return [[x[0], n], 2 / 3]", **columns).score == 0.0


def test_settings_and_rows_that_mean_nothing_are_refused(code: Code) -> None:
    refused: list[dict[str, Any]] = [
        {"mode": "some"},
        {"timeout": 0},
        {"language": "c"},
        {"tolerance": 2},
        {"memory": -1},
    ]
    for settings in refused:
        with pytest.raises(ValueError, match=next(iter(settings))):
            Code(**settings)
    with pytest.raises(DataError, match="finds no tests in the columns question"):
        code("def f(): pass", question="?")


def test_without_isolation_nothing_is_run() -> None:
    made = Code()
    made.language = "none"  # stands for a machine that has no sandbox
    for grade in (made.prepare, lambda: made("def add(a, b): return a + b", **ADD)):
        with pytest.raises(SandboxUnavailableError):
            grade()
