"""When a text ends: at an end token, at a stop string, after `max_new_tokens`, or at a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from gpt2tg.decoding.interface import FinishReason

# The index of a text, its new token ids and a number N -> the text of at least the last N ids. An incomplete character
# at the beginning may come out as replacement characters.
Tail = Callable[[int, Sequence[int], int], str]

# Lone surrogates never occur in decoded text, so they can stand for special tokens, which decode to nothing.
FIRST_MARK, LAST_MARK = 0xD800, 0xDFFF


class Deadline:
    """A point in time, so many seconds after its creation."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def __call__(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock() >= self._end


class StopStrings:
    """Finds stop strings in a text that grows token by token, also if they span several tokens."""

    def __init__(self, strings: Sequence[str], tail: Tail) -> None:
        self._strings = tuple(strings)
        self._tail = tail
        # A token has at least one byte, so this many tokens hold any stop string that ends in the newest one, plus
        # the first bytes of a character that the window may cut.
        self._reach = max((len(string.encode(errors="surrogatepass")) for string in strings), default=0) + 3

    def end_in(self, index: int, ids: Sequence[int]) -> bool:
        """Whether the text of the ids holds a stop string, given that it held none before the newest id."""
        if not self._strings:
            return False
        window = self._tail(index, ids, self._reach)
        return any(string in window for string in self._strings)


def with_marks(strings: Sequence[str], special: Mapping[int, str]) -> tuple[tuple[str, ...], dict[int, str]]:
    """Return the stop strings, plus a copy in which each special token's name is replaced by a one-character mark.

    Special tokens decode to nothing, so a stop string such as `<|endoftext|>` could not be found in the text. The
    caller writes the mark where such a token stands.

    Args:
        special: the names of the special tokens, by id.

    Returns:
        The strings, and the mark of each special token that a string names.
    """
    named = [number for number, name in special.items() if any(name in string for string in strings)]
    longest_first = sorted(named, key=lambda number: -len(special[number]))
    marks = {number: chr(mark) for number, mark in zip(longest_first, range(FIRST_MARK, LAST_MARK), strict=False)}
    marked = []
    for string in strings:
        for number, mark in marks.items():
            string = string.replace(special[number], mark)
        marked.append(string)
    return tuple(dict.fromkeys([*strings, *marked])), marks


def cut_at_stop(text: str, strings: Sequence[str], keep: bool) -> str:
    """Return the text up to the first stop string; with `keep`, including it."""
    found = [(text.find(string), string) for string in strings if string in text]
    if not found:
        return text
    position, string = min(found, key=lambda item: (item[0], -len(item[1])))
    return text[: position + len(string)] if keep else text[:position]


def held_back(text: str, strings: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    longest = 0
    for string in strings:
        for length in range(min(len(string), len(text)), longest, -1):
            if text.endswith(string[:length]):
                longest = length
                break
    return longest


class Endings:
    """Decides after each token whether a text ends, and why: the `Finish` of the decoders."""

    def __init__(
        self,
        end_ids: Collection[int],
        stop: StopStrings,
        max_new_tokens: Sequence[int],
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the limits; `max_new_tokens` has one for each sample or prompt."""
        self._end_ids = frozenset(end_ids)
        self._stop = stop
        self._max_new_tokens = max_new_tokens
        self._is_late = is_late

    def __call__(self, index: int, ids: Sequence[int]) -> FinishReason | None:
        """Return why the text ends with the newest of its new ids, or None."""
        if ids[-1] in self._end_ids:
            return "eos"
        if self._stop.end_in(index, ids):
            return "stop"
        if len(ids) >= self._max_new_tokens[index]:
            return "length"
        return "time" if self._is_late() else None
