"""Formulas, LaTeX or plain, read into exact values."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from posttrain_verifiers.mathematics.functions import absolute, binomial, factorial, floor, function, root, scientific
from posttrain_verifiers.mathematics.terms import NonsenseError, TooLargeError, UnreadableError
from posttrain_verifiers.mathematics.values import Value, atom, generator, power, rational

DEEPEST = 30
"""Brackets within brackets."""

_TOKEN = re.compile(
    r"\s*(\\[A-Za-z]+|\\.|(?:\d+\.\d*|\.\d+)[eE][-+]?\d{1,4}|\d+(?:E[-+]?|e(?:[-+](?=\d\d))?)\d{1,4}|1e-\d+|\d+(?:\.\d*)?|\.\d+"
    r"|[A-Za-z]+'*|\*\*|!+|\S)"
)
_GREEK = frozenset(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi"
        " varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell",
    )
)
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
_FUNCTIONS = {*_TRIGONOMETRIC, "log", "ln", "lg", "exp", "det", "gcd", "lcm", "max", "min", "Re", "Im", "arg"}
WORDS = {*_TRIGONOMETRIC, *_GREEK, "log", "ln", "exp", "pi", "sqrt", "abs", "infinity", "infty", "inf", "oo", "cbrt"}
"""What plain text writes without a backslash."""
_PRODUCT = re.compile(r"[abcdfghkmnpqrstuvwxyz]{2,3}")
_CLOSE = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_DIGITS = frozenset("0123456789.")
_STARTS = {"(", "[", "{", "|", r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil", r"\pi", r"\infty", r"\abs"}


def read_expression(text: str) -> Value:
    """The value of a formula. Raises UnreadableError, or TooLargeError where it would be too much to write down."""
    parser = _Parser(tokens(text))
    value = parser.sum()
    if parser.at < len(parser.tokens):
        raise UnreadableError(f"{parser.tokens[parser.at]!r} is left over")
    return value


def tokens(text: str) -> list[str]:
    found: list[str] = []
    for token in _TOKEN.findall(text):
        bare = token.rstrip("'")
        if len(token) == 1 or not token[0].isalpha():
            found.append({"**": "^", "*": r"\cdot"}.get(token, token))
        elif bare in WORDS:
            found.append({"infinity": r"\infty", "inf": r"\infty", "oo": r"\infty"}.get(bare, "\\" + bare))
        elif "'" in token:
            raise UnreadableError("a derivative")
        elif split := re.fullmatch(r"(sqrt|pi)([a-z])", token):
            found += ["\\" + split.group(1), split.group(2)]
        elif split := re.fullmatch(r"([a-z])(sqrt|pi)", token):
            found += [split.group(1), "\\" + split.group(2)]
        elif _PRODUCT.fullmatch(token):
            found += list(token)
        else:
            raise UnreadableError(f"the word {token!r}")
    return found


class _Parser:
    def __init__(self, found: list[str]) -> None:
        self.tokens = found
        self.at = 0
        self.depth = 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise UnreadableError("it ends too early")
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise UnreadableError(f"{token!r} is missing")

    def inside(self, close: str) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooLargeError(f"more than {DEEPEST} brackets within brackets")
        value = self.sum()
        self.expect(close)
        self.depth -= 1
        return value

    def sum(self) -> Value:
        value = self.product()
        while (sign := self.peek()) in ("+", "-"):
            self.at += 1
            term = self.product()
            value = value + term if sign == "+" else value - term
        return value

    def product(self) -> Value:
        value = self.signed()
        while True:
            token = self.peek()
            if token == r"\cdot":
                self.at += 1
                value = value * self.signed()
            elif token == "/":
                self.at += 1
                value = value / self.signed()
            elif self.starts_factor(token):
                if token[0] in _DIGITS and self.tokens[self.at - 1][0] in _DIGITS:
                    raise NonsenseError("two numbers side by side")
                value = value * self.raised()
            else:
                return value

    def starts_factor(self, token: str) -> bool:
        if not token or token in _STARTS:
            return bool(token) and token != "|"
        return (
            token[0].isdigit() or token[0] == "." or token.isalpha() or token[1:] in _FUNCTIONS or token[1:] in _GREEK
        )

    def signed(self) -> Value:
        negative = False
        while (sign := self.peek()) in ("+", "-"):
            self.at += 1
            negative ^= sign == "-"
        value = self.raised()
        return -value if negative else value

    def raised(self) -> Value:
        """A factor with its factorials and its power."""
        value = self.factor()
        while self.peek()[:1] == "!":
            value = factorial(value, len(self.take()))
        if self.peek() == "^":
            self.at += 1
            value = power(value, self.exponent())
            if self.peek()[:1] == "!":
                raise UnreadableError("the factorial of a power")
        return value

    def exponent(self) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooLargeError(f"more than {DEEPEST} powers of powers")
        value = self.signed()
        self.depth -= 1
        return value

    def factor(self) -> Value:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return self.number(token)
        if token == "{" or token == "(" or token == "[":
            return self.inside(_CLOSE[token])
        if token == "|":
            return absolute(self.inside("|"))
        if token.isalpha():
            return self.variable(token)
        name = token[1:]
        if name in _FUNCTIONS:
            return self.function(name)
        if name in _GREEK:
            return self.variable(name)
        special: dict[str, Callable[[], Value]] = {
            "frac": self.fraction,
            "sqrt": self.square_root,
            "cbrt": lambda: root(self.argument(), 3),
            "abs": lambda: absolute(self.argument()),
            "pi": lambda: generator("pi"),
            "infty": lambda: atom("oo"),
            "binom": lambda: binomial(self.argument(), self.argument()),
            "lfloor": lambda: floor(self.inside(r"\rfloor"), 1),
            "lceil": lambda: floor(self.inside(r"\rceil"), -1),
        }
        if token[0] != "\\" or name not in special:
            raise UnreadableError(f"{token!r} is not known")
        return special[name]()

    def number(self, token: str) -> Value:
        if token == ".":
            raise UnreadableError("a point without digits")
        whole = Fraction(token.rstrip(".")) if "e" not in token.lower() else scientific(token)
        if "." in token and self.peek() == r"\overline":
            return rational(whole + self.repetend(len(token.rpartition(".")[2])))
        if not token.isdigit():
            return rational(whole)
        # A mixed number: 1 \frac{4}{5}, 1 4/5.
        if self.peek() == r"\frac":
            start, self.at = self.at, self.at + 1
            part = self.fraction()
            plain = all(t.isdigit() or t in "{}" for t in self.tokens[start + 1 : self.at])
            if plain and part.rational is not None and 0 < part.rational < 1:
                return rational(whole) + part
            self.at = start
        ahead = [self.peek(0), self.peek(1), self.peek(2)]
        if ahead[0].isdigit() and ahead[1] == "/" and ahead[2].isdigit() and self.peek(3) != "^":
            self.at += 3
            top, bottom = int(ahead[0]), int(ahead[2])
            if not 0 < top < bottom:
                raise NonsenseError("two numbers side by side")
            return rational(whole + Fraction(top, bottom))
        return rational(whole)

    def repetend(self, places: int) -> Fraction:
        """What 3 under a bar behind so many decimals is worth."""
        self.at += 1
        self.expect("{")
        digits = self.take()
        self.expect("}")
        if not digits.isdigit():
            raise UnreadableError("a bar over no digits")
        return Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)

    def fraction(self) -> Value:
        return self.argument(digits=True) / self.argument(digits=True)

    def argument(self, digits: bool = False) -> Value:
        """What a command takes: a group, or one token. Without braces a fraction's number is one digit."""
        token = self.peek()
        if token in ("{", "("):
            self.at += 1
            return self.inside(_CLOSE[token])
        if digits and token.isdigit() and len(token) > 1:
            if len(token) > 2:
                raise UnreadableError("a fraction without braces")
            self.tokens[self.at : self.at + 1] = list(token)
        if token[:1].isdigit():
            return rational(Fraction(self.take().rstrip(".")))
        return self.factor()

    def square_root(self) -> Value:
        degree = 2
        if self.peek() == "[":
            self.at += 1
            index = self.inside("]").rational
            if index is None or index.denominator != 1 or not 1 < index < 100:
                raise UnreadableError("a root of such a degree")
            degree = int(index)
        return root(self.argument(), degree)

    def variable(self, name: str) -> Value:
        if self.peek() == "_":
            self.at += 1
            opened = self.peek() == "{"
            part = self.take() + (self.take() + self.take() if opened else "")
            if opened and part[-1] != "}":
                raise UnreadableError("a long subscript")
            name = f"{name}_{part.strip('{}')}"
        return generator(name)

    def function(self, name: str) -> Value:
        base: Value | None = None
        exponent = rational(1)
        if name == "log" and self.peek() == "_":
            self.at += 1
            base = self.argument()
        if self.peek() == "^":
            self.at += 1
            exponent = self.exponent()
            if exponent.rational is None or exponent.rational < 0:
                raise UnreadableError("an inverse function")  # sin^{-1} is the arcsine
        argument = self.inside(")") if self.peek() == "(" and self.take() else self.operand()
        return power(function(name, argument, base), exponent)

    def operand(self) -> Value:
        """What a function without brackets is of: a product up to the next function or sign."""
        value = self.signed()
        while self.starts_factor(self.peek()) and self.peek()[1:] not in _FUNCTIONS:
            value = value * self.raised()
        return value
