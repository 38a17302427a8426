"""The program of a completion, in each form that models give."""

from __future__ import annotations

import time

import pytest

from posttrain_verifiers.programs.extraction import LONGEST, NoProgramError, continued, module, script
from posttrain_verifiers.programs.streams import same_output, same_value

PROMPT = "import math\n\ndef half(x):\n    return x / 2\n\ndef area(r):\n    '''Of a circle.'''\n"
DEFINED = "def area(r):\n    return math.pi * r * r\n"


def area(source: str) -> float:
    """What the program gives; these are honest ones."""
    space: dict[str, object] = {}
    exec(source, space)
    assert callable(space["half"])
    return round(space["area"](1), 5)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    "completion",
    [
        "    return math.pi * r * r",
        "return math.pi * r * r",
        "square = r * r\nreturn math.pi * square",
        "    return math.pi * r * r\n\nprint(area(1) / 0)\n",
        "    return math.pi * r * r\n\nThis is the formula for a circle's area.\n",
        "    return math.pi * square(r)\n\ndef square(x):\n    return x * x\n\nif __name__ == '__main__':\n    x = 0\n",
        "    return math.pi * r * r\n```\n\nThat is all.",
        "\n    k = math.pi\n    return k * r * r\n\n# Test\nassert area(1) == 3",
        DEFINED,
        PROMPT + "    return math.pi * r * r\n",
        f"```python\n{DEFINED}```",
        f"Here:\n\n```py\n{DEFINED}\nprint(area(2) / 0)\n```\nDone.",
        "1. Here:\n   ```python\n   def area(r):\n       return math.pi * r * r\n   ```\n",
        f"<think>\n```python\ndef area(r): return 0\n```\n</think>\n```python\n{DEFINED}```",
        f"```python\ndef area(r): return 0\n```\nNo:\n```python\n{DEFINED}```\nUse:\n```python\nprint(area(1))\n```",
        f"```python\n{DEFINED}```\n```bash\ndef area\n```",
        f"```python\n{DEFINED}",
        "```python\n    return math.pi * r * r\n```",
        f"Sure, here is the function:\n{DEFINED}\nIt works.",
        f"~~~python\nfrom __future__ import annotations\n{DEFINED}~~~",
        "```python\nPI = 3.14159265\ndef area(r):\n    return PI * r * r; print(1)\n\nX = 1; print(1 / 0)\n```",
    ],
)
def test_a_function_is_found_in_each_form(completion: str) -> None:
    assert area(continued(completion, PROMPT, "area")) == 3.14159


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "   \n",
        "It cannot be done, for a circle has no area.",
        "    return math.pi * r *\n    return 0\n",
        "    x = (\n",
        "```python\ndef area(r)\n    return 1\n```",
        "```\n```",
        "\x00",
        "(" * 5000,
        "    " + "-" * 90_000 + "r",
        "x" * (LONGEST + 1),
    ],
)
def test_what_is_no_program_is_refused_in_a_moment(completion: str) -> None:
    start = time.process_time()
    with pytest.raises(NoProgramError):
        continued(completion, PROMPT, "area")
    assert time.process_time() - start < 5.0


def test_a_function_with_an_error_inside_is_not_cut_short() -> None:
    with pytest.raises(NoProgramError, match="SyntaxError at line 3: unexpected indent"):
        module("def f(x):\n    return x\n     oops\n", ["f"])


def test_a_module_keeps_what_it_needs_and_takes_the_tests_imports() -> None:
    source = module(
        "N = 2\ndef f(x): return math.sqrt(x) * N\nM = 3\nprint(f(4))\nraise SystemExit", ["f"], "import math"
    )
    assert source == "import math\n\nN = 2\ndef f(x): return math.sqrt(x) * N\nM = 3\n"
    assert module("class A: pass\nprint(1)\ndef f(): pass\nf = f\nf()", ["A", "f"]).endswith("f = f\n")
    assert module("def g(): pass", ["f"]) == "def g(): pass"
    assert module("```\ndef f(): 1\n```\n```\ndef f(): 2\n```\n```\ndef g(): 3\n```", ["f"]) == "def f(): 2"
    assert module("f = 1\r\ng = 2\r", ["f"]) == "f = 1\ng = 2\n"


def test_a_script_is_the_last_block_or_the_whole_text() -> None:
    assert script("print(1)") == "print(1)"
    assert script("```python\nprint(1)\n```\nor\n```python\nprint(2)\n```\nOutput:\n```text\n2\n```") == "print(2)"
    assert script("Here:\nimport sys\nprint(sys.stdin.read())") == "import sys\nprint(sys.stdin.read())"
    for nothing in ("", "```python\n```", "I would read the input first.", "print(1"):
        with pytest.raises(NoProgramError):
            script(nothing)


@pytest.mark.parametrize(
    ("came", "due", "same"),
    [
        ("1 2\n3", "1\n2 3\n", True),
        ("3", "3.0", True),
        ("3.0", "3", False),
        ("0.3333333", "0.33333333", True),
        ("0.333", "0.33333333", False),
        ("1000000.4", "1000000.0", True),
        ("1e3", "1000.0", True),
        ("nan", "0.5", False),
        ("inf", "1e308", False),
        ("5", "1e999", False),
        ("1_0.0", "10.0", False),
        ("YES", "yes", False),
        ("1", "1 2", False),
        ("", "", True),
    ],
)
def test_tokens_are_the_same_characters_or_near_decimals(came: str, due: str, same: bool) -> None:
    assert same_output(came, due, 1e-6) is same


@pytest.mark.parametrize(
    ("came", "due", "same"),
    [
        ((1, [2, (3,)]), [1, [2, [3]]], True),
        ([1.0000000001], [1.0], True),
        ([1.1], [1.0], False),
        (1.5, 1, False),
        ({1: 2}, {"1": 2}, True),
        ({1: 2}, {"1": 2, "2": 3}, False),
        ("1", 1, False),
        ({1}, [1], False),
        (None, None, True),
        (float("nan"), 1.0, False),
        (5.0, float("inf"), False),
        (iter([1]), [1], False),
    ],
)
def test_values_are_equal_as_json_is(came: object, due: object, same: bool) -> None:
    assert same_value(came, due, 1e-6) is same
