"""Decode token ids one by one into pieces of text that consist of complete characters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gpt2tg.checkpoint.tokenizer import CONTEXT_IDS, TextTokenizer

# Decoders write this for bytes that are not a complete character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A space at which a text can be cut before clean-up, since no replacement spans it.
CLEAN_BORDER = re.compile(r"(?<=[^ '])(?= [^'])")


class TextStream:
    """Decodes ids one by one. A piece of text is held back until its last character is complete.

    All pieces, followed by what `finish` returns, are exactly the text that decoding all ids at once adds to the text
    before them.
    """

    # `tokenizers.decoders.DecodeStream` would save about 10 µs a token. But with byte fallback it raises an error if an
    # invalid byte follows a complete character, and its pieces then differ from the decoded whole. It has no way to
    # flush an incomplete character at the end, and knows no clean-up.

    def __init__(
        self, tokenizer: TextTokenizer, before: Sequence[int] = (), marks: Mapping[int, str] | None = None
    ) -> None:
        """
        Args:
            before: ids of the text that the stream continues.
            marks: texts for special tokens that are to be visible. All text before such a token is shown at once.
        """
        self._tokenizer = tokenizer
        self._marks = marks or {}
        self._ids = list(tokenizer.decoding_context(before))
        # Ids from `_start` to `_shown` have been shown. They are decoded again together with the new ids after them,
        # because some decoders treat the first token of a text specially. Ids before `_start` are not needed any more.
        self._start, self._shown = 0, len(self._ids)
        # Only with clean-up: text whose clean-up may depend on what follows, and how many of its characters, counted
        # after clean-up, were there before this stream.
        self._uncleaned = CLEAN_BORDER.split(tokenizer.decode_uncleaned(self._ids))[-1] if tokenizer.cleans_up else ""
        self._before = len(tokenizer.clean_up(self._uncleaned))

    def push(self, token: int) -> str:
        """Return the text that this token completes: often a word, sometimes nothing."""
        if token in self._marks:
            return self.finish() + self._marks[token]
        self._ids.append(token)
        if token in self._tokenizer.incomplete:
            return ""
        known, text = self._decode()
        if len(text) <= len(known) or text.endswith(REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._clean_up(text[len(known) :])

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens without a mark. Their text is held back until the next piece, so that they are decoded at once."""
        self._ids.extend(tokens)

    def finish(self) -> str:
        """Return the text that was held back. An incomplete character becomes the replacement character."""
        known, text = self._decode()
        if text != known:
            self._start, self._shown = self._shown, len(self._ids)
        return self._clean_up(text[len(known) :], is_last=True)

    def _decode(self) -> tuple[str, str]:
        """Return the text of the ids shown last, and the same text continued with the new ids."""
        decode = self._tokenizer.decode_uncleaned
        return decode(self._ids[self._start : self._shown]), decode(self._ids[self._start :])

    def _clean_up(self, piece: str, is_last: bool = False) -> str:
        """Return the text whose clean-up cannot change any more once this piece is known, cleaned up."""
        if not self._tokenizer.cleans_up:
            return piece
        *ready, rest = CLEAN_BORDER.split(self._uncleaned + piece)
        if is_last:
            ready, rest = [*ready, rest], ""
        self._uncleaned = rest
        text = self._tokenizer.clean_up("".join(ready))
        before, self._before = self._before, max(0, self._before - len(text))
        return text[before:]


def decode_tail(
    tokenizer: TextTokenizer, prompt: Sequence[int], ids: Sequence[int], count: int, marks: Mapping[int, str]
) -> str:
    """Return the text of the last ids: at least `count` of them, special tokens not counted.

    Args:
        ids: the ids after the prompt. The text of the prompt is not returned.
        marks: texts for special tokens that are to be visible.
    """
    start = len(ids)
    while start and (count > 0 or ids[start - 1] in tokenizer.incomplete):
        start -= 1
        count -= ids[start] not in tokenizer.special
    before = ids[:start] if start > CONTEXT_IDS else [*prompt, *ids[:start]]
    if marks.keys().isdisjoint(ids[start:]):
        return tokenizer.decode_after(before, ids[start:])
    stream = TextStream(tokenizer, before, marks)
    return "".join([*map(stream.push, ids[start:]), stream.finish()])
