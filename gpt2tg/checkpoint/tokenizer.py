"""Convert text to token ids and back, with the `tokenizers` library alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer, decoders

from gpt2tg.checkpoint.tokenizer_pipeline import pipeline, without_first_word_space

# Some decoders treat the first token of a text specially, so ids are decoded together with this many ids before them.
CONTEXT_IDS = 16

# The tokens of byte fallback. They spell, byte by byte, a character that the vocabulary lacks.
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

# A token that looks like markup, such as <|endoftext|> or [SEP], and not like a word.
MARKUP = re.compile(r"<.+>|\[.+\]")

# What clean-up replaces, in this order: `a .` becomes `a.`, as in transformers.
CLEANED_UP = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s"}
CLEANED_UP |= {" 've": "'ve", " 're": "'re"}


class TextTokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, end_id: int, cleans_up: bool = False) -> None:
        """
        Args:
            end_id: the end-of-text token.
            cleans_up: whether decoding removes spaces before punctuation.
        """
        self.raw = tokenizer
        self.end_id = end_id
        self.cleans_up = cleans_up
        self.roles: dict[str, str] = {}
        """The special tokens by role, such as `eos_token`, as the files of the checkpoint name them."""
        self.notes: tuple[str, ...] = ()
        """What the user should know about the tokenizer, one line each."""

    @cached_property
    def special(self) -> dict[int, str]:
        """Special tokens, by id: the tokens that decoding drops. The end-of-text token is one if it looks like markup,
        since old vocabularies do not mark it."""
        decode, added = self.raw.decode, self.raw.get_added_tokens_decoder()
        # Compare the decoder's output, because it does not only depend on the flag of the token.
        found = {n: token.content for n, token in added.items() if decode([n], False) and not decode([n], True)}
        end = self.raw.id_to_token(self.end_id) or ""
        return {**found, self.end_id: end} if MARKUP.fullmatch(end) else found

    @cached_property
    def incomplete(self) -> frozenset[int]:
        """Ids that never complete a piece of text: special tokens, and the bytes of byte fallback, whose decoded text
        can change until the run of bytes ends."""
        names = BYTE_TOKENS if "ByteFallback" in json.dumps(pipeline(self.raw)["decoder"]) else ()
        found = (self.raw.token_to_id(name) for name in names)
        return frozenset(self.special) | {number for number in found if number is not None}

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """Ids that the tokenizer puts before a text. Ids after a text would end it, so they are left out."""
        found = self.raw.encode("a", add_special_tokens=True)
        text = [place for place, is_special in enumerate(found.special_tokens_mask) if not is_special]
        return tuple(found.ids[: text[0]]) if text else ()

    @cached_property
    def _continuing(self) -> Tokenizer:
        """The tokenizer for text that continues other text; `raw` itself if it treats first words like all others."""
        return without_first_word_space(self.raw)

    @property
    def encodes_in_parts(self) -> bool:
        """Whether a text that is cut at white space has the same ids as the whole text."""
        return self._continuing is self.raw

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Return the token ids of a text, without ids before or after it.

        Args:
            continues: whether other text precedes it. Some tokenizers put a space before the first word of a text.
        """
        if not continues or self.encodes_in_parts:
            return self.raw.encode(text, add_special_tokens=False).ids
        found = self._continuing.encode(text, add_special_tokens=False)
        added = self.raw.get_added_tokens_decoder()
        first = next((place for place, token in enumerate(found.ids) if token in added), None)
        if first is None:
            return found.ids
        # The library treats the text after each added token as a new text, so from there on `raw` is right.
        rest = text[found.offsets[first][0] :]
        return found.ids[:first] + self.raw.encode(rest, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a prompt. An empty one becomes the end-of-text token, after which new texts begin,
        unless the tokenizer has a prefix."""
        return [*self.prefix, *self.encode(text)] or [self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        return self.clean_up(self.decode_uncleaned(ids))

    def decode_uncleaned(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens, before clean-up."""
        special = self.special
        return self.raw.decode([number for number in ids if number not in special], skip_special_tokens=False)

    def clean_up(self, text: str) -> str:
        """Return the text without spaces before punctuation if the tokenizer cleans up, else unchanged."""
        for found, replacement in CLEANED_UP.items() if self.cleans_up else ():
            text = text.replace(found, replacement)
        return text

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text that `ids` add to the text of the ids before them."""
        context = self.decoding_context(before)
        return self.decode([*context, *ids])[len(self.decode(context)) :]

    def decoding_context(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the last ids of a text: as many as can influence how the ids after them are decoded."""
        if not self.cleans_up and isinstance(self.raw.decoder, decoders.ByteLevel):
            return ()
        start = max(0, len(ids) - CONTEXT_IDS)
        while start and (ids[start] in self.incomplete or ids[start - 1] in self.incomplete):
            start -= 1
        return ids[start:]

    def name(self, token: int, is_first: bool = False) -> str:
        """Return a token as tables show it: its text, or the name of a special token.

        A token that is only a part of a character reads as the replacement character.

        Args:
            is_first: whether the token begins a text; otherwise its text is that within a text.
        """
        if token in self.special:
            return self.special[token]
        before = () if is_first else self._some_word
        return self.decode_uncleaned([*before, token])[len(self.decode_uncleaned(before)) :]

    @cached_property
    def _some_word(self) -> tuple[int, ...]:
        """The id of any token with a text, to put before another one."""
        return tuple(self.encode("a")[-1:])
