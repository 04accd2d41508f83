"""Find the ends of sentences, by their full stops. Covers the scripts that have one."""

from __future__ import annotations

import re

# Full stops that are followed by a space, and those that are not.
SPACED, UNSPACED = ".!?…؟۔।॥։።፧‽⁇⁈⁉", "。！？｡．"
# Characters that may follow the full stop within the sentence: quotes, brackets, Markdown emphasis.
CLOSING = "\"'”’»›)\\]}」』）】》〉］｣*_"

_STOPS = re.compile(rf"(?P<stops>[{SPACED}{UNSPACED}]+)(?P<closing>[{CLOSING}]*)")
_WORD_BEFORE = re.compile(r"[^\W_](?:[\w.]*\w)?\Z")
_BEGINNING_OF_NEXT = re.compile(r"(?P<space>\s*)(?P<start>\S.?)?", re.DOTALL)
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")

# Abbreviations that never end a sentence; those that do not if a number follows (No. 5); and those that end one if the
# next word has a capital letter.
_TITLES = "Mr Mrs Ms Mx Messrs Dr Prof Rev Fr St Ste Mt Hon Gen Col Maj Capt Cmdr Lt Sgt Sen Rep Gov Pres Supt Mme Mlle"
_WITHIN = "mr mrs ms dr prof vs cf ca approx e.g i.e E.g I.e viz Hr z.B d.h u.a bzw"
_OF_NUMBERS = "no nos nr vol fig eq sec ch art p pp"
_AT_ENDS_TOO = "etc Jr Sr Inc Ltd Co Corp Bros Dept Ph.D al usw ff Jan Feb Apr Aug Sept Oct Nov Dec Tue Thu Fri"
NEVER_LAST = frozenset(f"{_TITLES} {_WITHIN}".split())
BEFORE_NUMBERS = frozenset(_OF_NUMBERS.split())
SOMETIMES_LAST = frozenset(_AT_ENDS_TOO.split())
_ACRONYM = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # U.S, p.m

# The number of characters before a full stop that are looked at to decide whether it ends a sentence.
LOOKED_BACK = 80


def last_sentence_end(text: str, start: int = 0, is_all: bool = True) -> int:
    """Return the index after the last complete sentence, including its quotes and brackets; `start` if there is none.

    Args:
        start: only ends after this index count. The text before it is context.
        is_all: whether the text is complete. If more may follow, an end counts only if no further text can change it.
    """
    found = start
    for stop in _STOPS.finditer(text, max(0, start - LOOKED_BACK)):
        if stop.end() > start and _ends_sentence(text, stop, is_all):
            found = stop.end()
    return found


def _ends_sentence(text: str, stop: re.Match[str], is_all: bool) -> bool:
    following = _BEGINNING_OF_NEXT.match(text, stop.end())
    assert following
    space, start = following["space"], following["start"] or ""
    is_at_end = not start
    if not is_all and len(start) < 2 and not _BLANK_LINE.search(space):
        return False  # depends on what follows
    if stop["stops"][-1] in UNSPACED:
        return not _goes_on_after_quote(stop, "", start)
    if not space and not is_at_end:
        return False  # 3.5, example.com
    if _BLANK_LINE.search(space):
        return True
    if _begins_with_stop(start):
        return False  # an ellipsis with spaces: . . .
    if stop["stops"] == ".":
        found = _WORD_BEFORE.search(text, max(0, stop.start() - LOOKED_BACK), stop.start())
        word = found[0] if found else ""
        if word in NEVER_LAST or _is_initial(word) or _numbers_a_list(text, found):
            return False
        if word.lower() in BEFORE_NUMBERS and start[:1].isdigit():
            return False
        if word in SOMETIMES_LAST or _ACRONYM.fullmatch(word):
            return not is_at_end and _begins_sentence(start)
        if not word and text[: stop.start()].rstrip().endswith("."):  # the last dot of . . .
            return is_at_end or _begins_sentence(start)
    elif "…" in stop["stops"] or ".." in stop["stops"]:
        return is_at_end or _begins_sentence(start)
    return not _goes_on_after_quote(stop, space, start)


def _goes_on_after_quote(stop: re.Match[str], space: str, start: str) -> bool:
    """Whether the sentence goes on after a quotation: "Who is there?" asked the fox."""
    return bool(stop["closing"]) and (start[:1].islower() or start[:1] in tuple(",;:，、；：—–-と"))


def _begins_sentence(start: str) -> bool:
    """Whether a sentence may begin with `start`. "I" does not count: it is a capital letter within sentences too."""
    is_i = start[:1] == "I" and not start[1:2].isalpha()
    return not start[:1].islower() and not is_i and start[:1] not in tuple(",;:—–-")


def _begins_with_stop(start: str) -> bool:
    return start[:1] in (".", "…")


def _is_initial(word: str) -> bool:
    """Whether a word is one capital letter, as in J. Smith. "I" is a word of its own."""
    return len(word) == 1 and word.isupper() and word != "I"


def _numbers_a_list(text: str, word: re.Match[str] | None) -> bool:
    """Whether a word is a number at the beginning of a line, as in a numbered list."""
    return word is not None and word[0].isdecimal() and text[: word.start()].rpartition("\n")[2].strip() == ""
