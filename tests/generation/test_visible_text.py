"""Which part of a growing text is shown, and when."""

from __future__ import annotations

import random

import pytest

from gpt2tg.checkpoint.text_stream import REPLACEMENT
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.generation.visible_text import VisibleText, last_character

TEXTS = [
    "A plain line, and another.\n\nNew paragraph.",
    "猫は月を見た。",
    "ein Märchen, señor, żółw",
    "cafe\u0301 n\u0303 a\u0308\u0304",
    "\N{CAT FACE}\N{DRAGON} and \N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}!",
    "\N{WOMAN}\u200d\N{PERSONAL COMPUTER} and \U0001f1eb\U0001f1f7",
    "नमस्ते क्षत्रिय",
    "\u1112\u1161\u11ab \u1100\u1173",
    "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f!",
    "1\ufe0f\u20e3",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer: TextTokenizer, text: str) -> None:
    visible = VisibleText(tokenizer)
    pieces = [visible.push(token) for token in tokenizer.encode(text)]
    pieces.append(visible.finish())
    assert "".join(pieces) == visible.shown == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_shown_characters_are_never_extended(tokenizer: TextTokenizer, text: str) -> None:
    visible = VisibleText(tokenizer)
    for token in tokenizer.encode(text):
        visible.push(token)
        rest = text[len(visible.shown) :]
        assert not rest or last_character(visible.shown + rest[0]) >= len(visible.shown)


def test_at_most_one_character_is_held_back(tokenizer: TextTokenizer) -> None:
    visible = VisibleText(tokenizer)
    ids = tokenizer.encode("The owl sold silence by the ounce.")
    for count, token in enumerate(ids, start=1):
        visible.push(token)
        assert len(tokenizer.decode(ids[:count])) - len(visible.shown) <= 1


@pytest.mark.parametrize(
    ("text", "start"),
    [("", 0), ("ab", 1), ("ab ", 3), ("e\u0301", 0), ("xe\u0301\u0302", 1), ("a\U0001f1eb\U0001f1f7", 1),
     ("\N{WOMAN}\u200d\N{PERSONAL COMPUTER}", 0), ("b\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}", 1),
     ("\u0915\u094d\u0937", 0), ("\u0915\u094d\u200d\u0937", 0), ("\u1112\u1161\u11ab\u1100\u1173", 3),
     ("a1\ufe0f\u20e3", 1),
     ("\U0001f1eb\U0001f1f7\U0001f1eb", 2), ("\u0e01\u0e33", 0), ("é ", 2), ("é\n", 2)],
)  # fmt: skip
def test_where_the_last_character_begins(text: str, start: int) -> None:
    assert last_character(text) == start


@pytest.mark.parametrize("keep", [False, True])
def test_no_part_of_a_stop_string_is_shown(tokenizer: TextTokenizer, keep: bool) -> None:
    """Random texts that end with the stop string."""
    chance = random.Random(5)
    for _ in range(100):
        before = "".join(chance.choice("the en\n—é猫") for _ in range(chance.randrange(30)))
        if "the end" in before + "the en":
            continue
        visible = VisibleText(tokenizer, ["the end"], keep)
        for token in tokenizer.encode(before + "the end"):
            visible.push(token)
            assert before.startswith(visible.shown)
        visible.finish()
        assert visible.shown == (before + "the end" if keep else before)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("He left. She st", "He left."),
        ('He said: "Go." She st', 'He said: "Go."'),
        ("(He left.) She st", "(He left.)"),
        ("*He left.* She st", "*He left.*"),
        ("He left. Mr. Fox and Dr. Owl st", "He left."),
        ("He left. The J. R. Fox st", "He left."),
        ("He left. It was 3.5 feet, as e.g. an owl", "He left."),
        ("It rained. So... he st", "It rained."),
        ("He waited... Then he st", "He waited..."),
        ("He waited… Then he st", "He waited…"),
        ('It rained. "Who is there?" asked the f', "It rained."),
        ('It rained. "Run!", he cr', "It rained."),
        ("Really?! Yes, sa", "Really?!"),
        ("猫は寝た。犬は", "猫は寝た。"),
        ("“走吧！”他", "“走吧！”"),
        ("「行け。」彼は", "「行け。」"),
        ("वह गया। फिर", "वह गया।"),
        ("هل ذهب؟ لا أ", "هل ذهب؟"),
        ("It ended.\n\nand th", "It ended."),
        ("It ended. 1 and", "It ended."),
        ("He left.", "He left."),
        ("He said no. Then", "He said no."),
        ("They sat. Then", "They sat."),
        ("He left at 5 p.m. She st", "He left at 5 p.m."),
        ("It rained. At 5 p.m. he st", "It rained."),
    ],
)
def test_text_that_is_cut_short_ends_at_a_sentence(tokenizer: TextTokenizer, text: str, complete: str) -> None:
    """Text that has been shown is never taken back."""
    visible = VisibleText(tokenizer, sentences_after="")
    pieces = [visible.push(token) for token in tokenizer.encode(text)]
    pieces.append(visible.finish(is_cut_short=True))
    assert "".join(pieces) == visible.shown == complete
    assert not visible.is_unfinished
    whole = VisibleText(tokenizer, sentences_after="")
    assert "".join([*map(whole.push, tokenizer.encode(text)), whole.finish()]) == text


@pytest.mark.parametrize("text", ["and so it we", "Mr. Fox", "3.5 feet", "", "J. Fox", "See www.example.com an"])
def test_text_without_a_complete_sentence_is_kept(tokenizer: TextTokenizer, text: str) -> None:
    visible = VisibleText(tokenizer, sentences_after="It rained. ")
    pieces = [visible.push(token) for token in tokenizer.encode(text)]
    pieces.append(visible.finish(is_cut_short=True))
    assert "".join(pieces) == visible.shown == text
    assert visible.is_unfinished


def test_prompt_is_context_for_sentence_ends(tokenizer: TextTokenizer) -> None:
    for prompt, text, complete in (("He met Mr", ". Fox. He s", ". Fox."), ('He said: "Go.', '" Then he', '"')):
        visible = VisibleText(tokenizer, sentences_after=prompt)
        pieces = [*map(visible.push, tokenizer.encode(text)), visible.finish(is_cut_short=True)]
        assert "".join(pieces) == complete


def test_sentences_are_streamed_as_they_are_complete(tokenizer: TextTokenizer) -> None:
    text = "He left. She stayed. It rained. And th"
    visible = VisibleText(tokenizer, sentences_after="")
    pieces = [visible.push(token) for token in tokenizer.encode(text)]
    assert [piece for piece in pieces if piece] == ["He left.", " She stayed.", " It rained."]
