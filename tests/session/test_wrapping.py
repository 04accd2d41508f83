"""Word wrap of streamed texts, at any width and in any script."""

from __future__ import annotations

import random
import re

import pytest
from wcwidth import iter_graphemes, wcswidth

from gpt2tg.session.front import Front
from gpt2tg.session.wrapping import WordWrap

FAMILY = "\N{WOMAN}\u200d\N{MAN}\u200d\N{GIRL}"
FLAG = "\U0001f1eb\U0001f1f7"
TEXTS = [
    "The owl sold silence by the ounce and kept the scales in a quiet room.",
    "Two bells argued.\n\nThe rope was cut,\n  and the hour went on without them.",
    f"cafe\u0301 n\u0303andu\u0301 {FAMILY} und {FLAG} sowie {FAMILY}{FLAG} am Ende",
    "猫は月を見た。そして、月も「猫だ」と言った。",
    "The 猫 and the 犬 went home together, かな",
    "नमस्ते क्षत्रिय विद्यार्थी",
    "a\tb\tc and the rest of it",
    "\x1b[1mThe owl sold\x1b[0m silence by the ounce",
    "",
    "word",
]


def wrapped(text: str, width: int | None, pieces: int = 0) -> list[str]:
    """Return what is written of a text that comes in pieces of one character, or of random length."""
    written: list[str] = []
    wrap = WordWrap(written.append, None if width is None else lambda: width)
    chance = random.Random(pieces)
    while text:
        length = chance.randint(1, 6) if pieces else 1
        wrap(text[:length])
        text = text[length:]
    wrap.close()
    return written


def seen(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\x1b" not in text])
@pytest.mark.parametrize("width", [2, 3, 5, 8, 13, 20, 40, 80])
def test_lines_fit_and_no_word_is_lost(text: str, width: int) -> None:
    whole = "".join(wrapped(text, width))
    for line in whole.split("\n"):
        assert wcswidth(line.expandtabs(8)) <= width
    assert re.sub(r"\s", "", whole) == re.sub(r"\s", "", text)
    assert whole == "".join(wrapped(text, width, pieces=3))
    if width == 80:
        assert whole == text


@pytest.mark.parametrize("width", [6, 8, 13, 20, 40])
def test_words_shorter_than_a_line_are_not_split(width: int) -> None:
    """Also with accents, flags and emoji families, whose width is not their number of characters."""
    for text in TEXTS[:3]:
        words = [
            word
            for word in text.split()
            if wcswidth(word) <= width and all(wcswidth(character) < 2 for character in iter_graphemes(word))
        ]
        lines = "".join(wrapped(text, width)).split()
        assert [word for word in lines if word in words] == words


def test_lines_are_as_full_as_possible() -> None:
    assert "".join(wrapped("aa bb ccc dd", 5)) == "aa bb\nccc\ndd"
    assert "".join(wrapped("e\u0301e\u0301 bb cc", 5)) == "e\u0301e\u0301 bb\ncc"
    assert "".join(wrapped("猫犬鳥魚", 5)) == "猫犬\n鳥魚"
    assert "".join(wrapped("猫犬。鳥", 4)) == "猫\n犬。\n鳥"
    assert "".join(wrapped("abcdefgh", 5)) == "abcde\nfgh"
    assert "".join(wrapped("aa \x1b[1mbb\x1b[0m cc", 5)) == "aa \x1b[1mbb\x1b[0m\ncc"


@pytest.mark.parametrize("width", [None, 10])
@pytest.mark.parametrize("text", TEXTS)
def test_no_grapheme_is_split_between_two_writes(text: str, width: int | None) -> None:
    written = wrapped(text, width)
    characters = [character for piece in written for character in iter_graphemes(seen(piece))]
    assert characters == list(iter_graphemes("".join(map(seen, written))))


@pytest.mark.parametrize("text", TEXTS)
def test_pipe_gets_the_text_unchanged(text: str) -> None:
    written: list[str] = []
    front = Front(input, written.append, print, width=lambda: 4)
    with front.open_text() as write:
        for character in text:
            write(character)
    assert "".join(written) == text


def test_interrupted_text_is_written_to_its_end() -> None:
    written: list[str] = []
    front = Front(input, written.append, print, width=lambda: 20, wraps=True)

    def stopped() -> None:
        with front.open_text() as write:
            write("The owl so")
            assert "".join(written) == "The owl"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert "".join(written) == "The owl so"
