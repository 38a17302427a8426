"""Units behind a number: which two can be converted into one another, and by what factor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_TABLE = """
length mm millimeter millimeters millimetre millimetres 1/1000
length cm centimeter centimeters centimetre centimetres 1/100
length m meter meters metre metres 1
length km kilometer kilometers kilometre kilometres 1000
length in inch inches 127/5000
length ft foot feet 381/1250
length yd yard yards 1143/1250
length mi mile miles 201168/125
mass mg milligram milligrams 1/1000
mass g gram grams 1
mass kg kilogram kilograms 1000
mass oz ounce ounces 45359237/1600000
mass lb lbs pound pounds 45359237/100000
time s sec secs second seconds 1
time min mins minute minutes 60
time h hr hrs hour hours 3600
time day days 86400
time week weeks 604800
calendar month months 1
calendar year years yr yrs 12
dollars $ dollar dollars usd 1
dollars cent cents penny pennies 1/100
euros € euro euros 1
sterling £ gbp 1
rupees ₹ rupee rupees 1
yen ¥ yen 1
angle degree degrees deg 1
radians radian radians rad 1
celsius celsius 1
fahrenheit fahrenheit 1
kelvin kelvin 1
volume ml milliliter milliliters millilitre millilitres 1/1000
volume l liter liters litre litres 1
measure cup cups 1
measure pint pints 2
measure quart quarts 4
measure gallon gallons 16
power watt watts 1
energy joule joules 1
force newton newtons 1
"""
KNOWN: dict[str, tuple[str, Fraction]] = {}
for _line in _TABLE.strip().split("\n"):
    _kind, *_names, _factor = _line.split()
    KNOWN |= {name: (_kind, Fraction(_factor)) for name in _names}
SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}


MONEY = ("dollars", "euros", "sterling", "rupees", "yen")


@dataclass(frozen=True, slots=True)
class Unit:
    """`dimension` tells what can be compared; one of it is `factor` of the dimension's own unit."""

    dimension: str
    factor: Fraction


def read_unit(words: str) -> Unit | None:
    """The unit that a phrase begins with ('square inches', 'miles per hour', 'cm^2'); None where it is none we know."""
    match = re.match(
        r"\s*(?:(square|sq\.?|cubic|cu\.?)\s+)?([A-Za-z]+|[$€£₹¥])\.?(?:\s*\^\s*\{?\s*([23])\s*\}?)?", words
    )
    if match is None:
        return None
    prefix, name, exponent = match.groups()
    if name.lower() in ("degree", "degrees") and (
        kind := re.match(r"\s*(celsius|fahrenheit)", words[match.end() :], re.I)
    ):
        return Unit(kind.group(1).lower(), Fraction(1))
    if name.lower() == "mph":
        return Unit("length per time", KNOWN["mi"][1] / 3600)
    known = KNOWN.get(name if len(name) == 1 else name.lower())
    if known is None:
        return None
    power = int(exponent or {"s": 2, "c": 3}.get((prefix or " ")[0], 1))
    dimension, factor = known[0] + ("" if power == 1 else f"^{power}"), known[1] ** power
    # Pay is a sum of money, whatever it is paid for.
    if known[0] not in MONEY and (per := re.match(r"\s*(?:/|per\s|an?\s)\s*", words[match.end() :])):
        below = read_unit(words[match.end() + per.end() :])
        if below is not None:
            return Unit(f"{dimension} per {below.dimension}", factor / below.factor)
    return Unit(dimension, factor)
