"""Responses to hold two programs for IFEval against each other: of each of the 25 instructions, texts that follow it,
nearly follow it and don't, put together at random from the pieces that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Triple = tuple[str, dict[str, Any], str]
"""Name of the instruction, what its row asks for, the response."""
Maker = Callable[[Random], tuple[dict[str, Any], str]]

PROSE = (
    "The bridge was closed last winter, so the children walked to school along the river.",
    "Dr. Smith met Mrs. J. B. Brown at 5 p.m. on Monday!",
    "It costs 3.5 dollars; e.g. a ticket to the U.S. costs more.",
    "Is there anything else I can help with?",
    "I'm sure they don't know it, and I've told them twice.",
    "Wait... what did NASA say? They said NO.",
    "We counted 1,000 sheep. Then we slept",
    "COVID-19 AND FLU ARE NOT THE SAME.",
    'My friend said "it is late" and left.',
    "She works for Acme Inc. and lives in Washington D.C. now.",
)
LANGUAGES = {
    "en": "The bridge was closed for repairs last winter, so the children walked to school along the river instead.",
    "de": "Die Brücke war im letzten Winter wegen Reparaturen gesperrt, deshalb gingen die Kinder am Fluss entlang.",
    "fr": "Le pont était fermé pour travaux l'hiver dernier, alors les enfants allaient à l'école à pied.",
    "es": "El puente estuvo cerrado por obras el invierno pasado, así que los niños iban a la escuela por la orilla.",
    "pt": "A ponte esteve fechada para obras no inverno passado, por isso as crianças iam à escola pela margem do rio.",
    "it": "Il ponte era chiuso per lavori lo scorso inverno, perciò i bambini andavano a scuola lungo il fiume.",
    "fi": "Silta oli viime talvena suljettu korjausten vuoksi, joten lapset kävelivät kouluun joen vartta pitkin.",
    "vi": "Cây cầu bị đóng để sửa chữa vào mùa đông năm ngoái, vì vậy bọn trẻ đi bộ đến trường dọc theo bờ sông.",
    "ru": "Прошлой зимой мост был закрыт на ремонт, поэтому дети ходили в школу вдоль реки.",
    "uk": "Минулої зими міст був закритий на ремонт, тому діти ходили до школи вздовж річки.",
    "bg": "Миналата зима мостът беше затворен за ремонт, затова децата ходеха на училище покрай реката.",
    "ja": "去年の冬は橋が修理のために閉鎖されていたので、子どもたちは川沿いを歩いて学校に通いました。",
    "hi": "पिछली सर्दियों में पुल मरम्मत के लिए बंद था, इसलिए बच्चे नदी के किनारे पैदल स्कूल जाते थे।",
    "th": "สะพานปิดซ่อมเมื่อฤดูหนาวที่แล้ว เด็กๆ จึงเดินไปโรงเรียนเลียบแม่น้ำแทน",
}
SPACES = ("\n", "\n\n", " ", "", "\n \n", "\n\n\n")


def triples(each: int, seed: int = 0) -> Iterator[Triple]:
    """So many responses to each instruction, the same for the same seed."""
    for name, make in MAKERS.items():
        rng = Random(f"{name} {seed}")
        for _ in range(each):
            keys, text = make(rng)
            yield name, keys, text


def joined(rng: Random, pieces: tuple[str, ...], most: int = 7, spaces: tuple[str, ...] = SPACES) -> str:
    """Up to `most` of the pieces and of prose, with any space between them."""
    out = []
    for _ in range(rng.randint(0, most)):
        out.append(rng.choice(pieces if rng.random() < 0.7 else PROSE))
        out.append(rng.choice(spaces))
    return "".join(out) or rng.choice(("", " ", "\n", *pieces))


def counted(key: str, most: int, *pieces: str) -> Maker:
    """A response of pieces, where the row asks for a number of them."""
    return lambda rng: ({key: rng.randint(1, most)}, joined(rng, pieces))


def plain(*pieces: str) -> Maker:
    """A response of pieces, where the row asks for nothing more."""
    return lambda rng: ({}, joined(rng, pieces, most=4))


def compared(key: str, relation: str, most: int, *pieces: str) -> Maker:
    """A response of pieces, of which the row asks for at least or less than a number."""

    def make(rng: Random) -> tuple[dict[str, Any], str]:
        asked = {key: rng.randint(1, most), relation: rng.choice(("at least", "less than"))}
        return asked, joined(rng, pieces)

    return make


def existence(rng: Random) -> tuple[dict[str, Any], str]:
    words = ("river", "School", "walk", "C++", "no.", "(late)", "NASA", "sheep", "a|b")
    return {"keywords": rng.sample(words, rng.randint(1, 2))}, joined(rng, words)


def forbidden(rng: Random) -> tuple[dict[str, Any], str]:
    words = ("her", "river", "C++", ".net", "no", "dollars", "U.S.", "friend")
    near = ("where", "rivers", "C+", "net", "note", "FRIEND", "(her)", "her_", "'no'")
    return {"forbidden_words": rng.sample(words, rng.randint(1, 2))}, joined(rng, (*words, *near), most=3)


def frequency(rng: Random) -> tuple[dict[str, Any], str]:
    keyword = rng.choice(("sneaker", "the", "A", "C++", "no.", "sheep "))
    asked = {"keyword": keyword, "frequency": rng.randint(1, 5), "relation": rng.choice(("at least", "less than"))}
    return asked, joined(rng, ("sneakers", "Sneaker", "The", "a", "C++", "C", "no.", "not", "sheep"))


def letters(rng: Random) -> tuple[dict[str, Any], str]:
    asked = {"letter": rng.choice("aeqZ#!"), "let_frequency": rng.randint(1, 12)}
    asked["let_relation"] = rng.choice(("at least", "less than"))
    return asked, joined(rng, ("a", "QQ", "zZ", "#", "!!", "quiz", "É", "bee"), most=5)


def first_word(rng: Random) -> tuple[dict[str, Any], str]:
    count = rng.randint(1, 4)
    asked = {"num_paragraphs": count, "nth_paragraph": rng.randint(1, count), "first_word": rng.choice(("One", "two"))}
    heads = (
        "One",
        "one,",
        '"Two',
        "'one'",
        "**One**",
        "two:",
        "TWO!",
        "Ones",
        "one's",
        "# One",
        "“one”",
        "two-day",
        "",
    )
    text = rng.choice(("", "", "\n\n", " "))
    for _ in range(rng.choice((count, count, count + 1, 0))):
        text += f"{rng.choice(heads)} {rng.choice(PROSE)}" + rng.choice(
            ("\n\n",) * 6 + ("\n", "\n\n\n", "\n\n\n\n", "\n \n")
        )
    return asked, text if rng.random() < 0.3 else text.strip()


def postscript(rng: Random) -> tuple[dict[str, Any], str]:
    pieces = ("P.S. I love you", "P.P.S. bye", "P.P.S", "p.s.", "P. S. hello", "PS: hi", "P. P. S. yes", "chirp.s. no")
    return {"postscript_marker": rng.choice(("P.S.", "P.P.S"))}, joined(rng, pieces, most=4)


def sections(rng: Random) -> tuple[dict[str, Any], str]:
    word = rng.choice(("Section", "SECTION", "PARAGRAPH", "Day "))
    pieces = (
        "Section 1",
        "SECTION 2",
        "Section3",
        "section 4",
        "Section  5",
        "Section",
        "Day 1",
        "PARAGRAPH 2",
        "Section 12",
    )
    return {"section_spliter": word, "num_sections": rng.randint(1, 4)}, joined(rng, pieces)


def spoken(rng: Random) -> tuple[dict[str, Any], str]:
    said = rng.choices(list(LANGUAGES), k=rng.choice((1, 1, 1, 2)))
    asked = rng.choice([*said, *said, *LANGUAGES])
    return {"language": asked}, rng.choice(("\n", " ")).join(LANGUAGES[code] for code in said)


def repeated(rng: Random) -> tuple[dict[str, Any], str]:
    prompt = rng.choice(("Write a poem. Use <<title>>.", "Is it late? ", "say *hi*"))
    before, after = rng.choice(("", "", "", "Sure! ", "\n", "**")), rng.choice(("", "\n\nYes.", " ", "!", PROSE[0]))
    middle = rng.choice((prompt, prompt.upper(), prompt.strip(), prompt[:-3]))
    return {"prompt_to_repeat": prompt}, before + middle + after


def ended(rng: Random) -> tuple[dict[str, Any], str]:
    phrase = rng.choice(("Any other questions?", "the end.", '"Bye."', " That is all "))
    tail = rng.choice(
        (phrase, phrase.upper(), phrase.strip() + '"', phrase + '" ', phrase + ' "', phrase[:-1], phrase + "*")
    )
    return {"end_phrase": phrase}, rng.choice(PROSE) + rng.choice((" ", "\n", "")) + tail + rng.choice(
        ("", "\n", "\n\n", "\nYes.")
    )


def cased(upper: bool) -> Maker:
    def make(rng: Random) -> tuple[dict[str, Any], str]:
        text = (
            " ".join(rng.sample(PROSE, rng.randint(1, 4)))
            if rng.random() < 0.8
            else LANGUAGES[rng.choice(["de", "fr", "es"])]
        )
        text = text.upper() if upper else text.lower()
        return {}, text + rng.choice(("", "", " Ok", " ok", " OK", "\nok", "\nOK"))

    return make


def wrapped(rng: Random) -> tuple[dict[str, Any], str]:
    ends = ('"', '"', "'", "“", "", '*"')
    return {}, rng.choice(ends) + rng.choice(("", " ", "x", *PROSE)) + rng.choice((*ends, '" ', '"\nBye.'))


MAKERS: dict[str, Maker] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden,
    "keywords:letter_frequency": letters,
    "language:response_language": spoken,
    "length_constraints:number_sentences": compared("num_sentences", "relation", 12, *PROSE),
    "length_constraints:number_paragraphs": counted(
        "num_paragraphs", 4, "***", "\n***\n", " *** ", "****", "**", "*a*"
    ),
    "length_constraints:number_words": compared(
        "num_words", "relation", 40, "don't", "a-b", "c_d", "3.5", "é", "好的", "…"
    ),
    "length_constraints:nth_paragraph_first_word": first_word,
    "detectable_content:number_placeholders": counted(
        "num_placeholders", 3, "[a]", "[]", "[ ]", "[[b]]", "[c", "]", "[a\nb]"
    ),
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": counted(
        "num_bullets",
        4,
        "\n* one",
        "\n- two",
        "\n  * three",
        "\n**bold** text",
        "\n---",
        "\n*",
        "\n-",
        "\n1. x",
        "\n*four*",
        "\n\t-five",
    ),
    "detectable_format:constrained_response": plain(
        "My answer is yes.", "My answer is no.", "My answer is maybe.", "my answer is no."
    ),
    "detectable_format:number_highlighted_sections": counted(
        "num_highlights",
        4,
        "*a*",
        "**b c**",
        "***d***",
        "* e",
        "* f *",
        "**",
        "2 * 3 * 4",
        "*g\nh*",
        "*i**j*",
        "** k **",
        "\n* l **m**",
    ),
    "detectable_format:multiple_sections": sections,
    "detectable_format:json_format": plain(
        '{"a": 1}',
        "[1, 2]",
        '```json\n{"a": 1}\n```',
        "```\n[]\n```",
        '```JSON {"b": null}```',
        "{'a': 1}",
        "NaN",
        '"x"',
        "```",
        '{"a": 1, "a": 2}',
        '```json\n{"a": 1}',
        "```python\n[]\n```",
        "12",
    ),
    "detectable_format:title": plain(
        "<<poem>>", "<<>>", "<< >>", "<x>", "<<a < b>>", "<<<c>>>", "<<d\ne>>", ">>", "<<"
    ),
    "combination:two_responses": plain("******", "***", "A", "B", "\n******\n", "*******"),
    "combination:repeat_prompt": repeated,
    "startend:end_checker": ended,
    "change_case:capital_word_frequency": compared(
        "capital_frequency",
        "capital_relation",
        8,
        "I",
        "I'm",
        "DON'T",
        "**BOLD**",
        "A/B",
        "U.S.A.",
        "R&D",
        "Ab",
        "3D",
        "IT’S",
        "X=Y",
        "NO:YES",
        "CANNOT",
    ),
    "change_case:english_capital": cased(True),
    "change_case:english_lowercase": cased(False),
    "punctuation:no_comma": plain("a, b", "，", "1,000", "no mark", ";"),
    "startend:quotation": wrapped,
}
