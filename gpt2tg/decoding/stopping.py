"""When a text ends: at an end token, when its room is full, at a stop string, when time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

# The number of a text, its new token ids, how many of them at least -> the text of the last of them; bytes that make no
# whole character may come out as replacement characters.
Tail = Callable[[int, Sequence[int], int], str]

# No text holds half a character: these stand for tokens without a text.
FIRST_MARK, LAST_MARK = 0xD800, 0xDFFF


class Deadline:
    """A point in time, counted from its making."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def __call__(self) -> bool:
        """Whether it has passed."""
        return self._clock() >= self._end


class StopStrings:
    """Finds strings in a text that grows token by token, across token borders."""

    def __init__(self, strings: Sequence[str], tail: Tail) -> None:
        self._strings = tuple(strings)
        self._tail = tail
        # A token is at least one byte: so many of them hold any string that ends in the newest one, and the bytes
        # of a character that the window may cut at its beginning.
        self._reach = max((len(string.encode(errors="surrogatepass")) for string in strings), default=0) + 3

    def end_in(self, index: int, ids: Sequence[int]) -> bool:
        """Whether the text of the ids holds a stop string, given that without the newest id it held none."""
        if not self._strings:
            return False
        window = self._tail(index, ids, self._reach)
        return any(string in window for string in self._strings)


def with_marks(strings: Sequence[str], special: Mapping[int, str]) -> tuple[tuple[str, ...], dict[int, str]]:
    """Stop strings as they are, and with a mark for each token that leaves no text, but whose name they hold.

    Args:
        special: names of tokens that leave no text.

    Returns:
        The strings, and the marks of the tokens.
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
    """The text up to the first stop string; with `keep`, the string included."""
    found = [(text.find(string), string) for string in strings if string in text]
    if not found:
        return text
    position, string = min(found, key=lambda item: (item[0], -len(item[1])))
    return text[: position + len(string)] if keep else text[:position]


def held_back(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop string and must not be shown yet."""
    longest = 0
    for string in strings:
        for length in range(min(len(string), len(text)), longest, -1):
            if text.endswith(string[:length]):
                longest = length
                break
    return longest


class Endings:
    """Says of a growing text whether it ends, and why: the `finish` of the decoders."""

    def __init__(
        self,
        end_ids: Collection[int],
        stop: StopStrings,
        room: Sequence[int],
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        """`room` is, for each sample or prompt, how many new tokens there may be."""
        self._end_ids = frozenset(end_ids)
        self._stop = stop
        self._room = room
        self._is_late = is_late

    def __call__(self, index: int, ids: Sequence[int]) -> str | None:
        """The reason to end with the newest of the new ids, or None."""
        if ids[-1] in self._end_ids:
            return "eos"
        if self._stop.end_in(index, ids):
            return "stop"
        if len(ids) >= self._room[index]:
            return "length"
        return "time" if self._is_late() else None
