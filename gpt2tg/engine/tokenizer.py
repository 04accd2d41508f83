"""Text to token ids and back, by the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from gpt2tg.engine.adapters import is_adapter
from gpt2tg.engine.checkpoints import base_directory
from gpt2tg.errors import UserError

END_OF_TEXT = "<|endoftext|>"

# What an incomplete character decodes to.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, end_id: int) -> None:
        self.raw = tokenizer
        self.end_id = end_id

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; the end-of-text token leaves no trace in it."""
        return self.raw.decode(ids, skip_special_tokens=True)


class TextStream:
    """Turns ids that arrive one by one into pieces of text that are whole characters.

    A character can be spread over several tokens; its piece is held back until it is complete. The pieces and
    the rest given by `finish` together are exactly what decoding all ids at once gives.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Ids before `_start` are done with. Those from `_start` to `_shown` have been shown and are decoded
        # again with the new ones, because some decoders treat the first token of a text in its own way.
        self._start = self._shown = 0

    def push(self, token: int) -> str:
        """The text that this token completes, often a word, sometimes nothing."""
        self._ids.append(token)
        known, text = self._decoded()
        if len(text) <= len(known) or text.endswith(REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text[len(known) :]

    def finish(self) -> str:
        """What was still held back."""
        known, text = self._decoded()
        self._start = self._shown = len(self._ids)
        return text[len(known) :]

    def _decoded(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return decode(self._ids[self._start : self._shown]), decode(self._ids[self._start :])


def load_tokenizer(directory: Path, vocab_size: int, end_id: int | None) -> TextTokenizer:
    """Read tokenizer.json, or the vocab.json and merges.txt of older checkpoints.

    Args:
        vocab_size: rows of the model's embedding; the tokenizer may not know more tokens than that.
        end_id: the id that ends a text as the checkpoint's settings have it; None looks for `<|endoftext|>`.

    Raises:
        UserError: the files are missing, broken, or belong to another model.
    """
    tokenizer = _read(directory)
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {size} tokens but the model only {vocab_size}: they do not belong together"
        )
    if end_id is None:
        end_id = tokenizer.token_to_id(END_OF_TEXT)
    if end_id is None:
        raise UserError(f"{directory}: neither its settings nor its tokenizer name an end-of-text token")
    return TextTokenizer(tokenizer, end_id)


def unused_ids(tokenizer: TextTokenizer, vocab_size: int, end_ids: Sequence[int]) -> list[int]:
    """Ids that have a row in the model's embedding but no token: a vocabulary is often padded to a round size.

    Args:
        vocab_size: rows of the embedding.
        end_ids: have their meaning from the model's settings, though no token may be written for them.
    """
    if tokenizer.raw.get_vocab_size() >= vocab_size:  # asked first, because the whole vocabulary takes time
        return []
    used = {*tokenizer.raw.get_vocab().values(), *end_ids, tokenizer.end_id}
    return [token for token in range(vocab_size) if token not in used]


def note_on_unused(count: int, vocab_size: int) -> str:
    """The line that tells the user of ids without a token."""
    return f"{count} of the model's {vocab_size} embedding rows belong to no token: they are never written"


def _read(directory: Path) -> Tokenizer:
    whole, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if vocab.is_file() and merges.is_file():
            return byte_level(BPE.from_file(str(vocab), str(merges)), adds_end=False)
    except Exception as error:  # the library raises plain Exception for broken files
        raise UserError(f"{directory}: the tokenizer cannot be read: {error}") from None
    if is_adapter(directory):
        return _read(base_directory(directory))
    raise UserError(f"{directory} holds no tokenizer: expected tokenizer.json, or vocab.json with merges.txt")


def byte_level(model: BPE, adds_end: bool = True) -> Tokenizer:
    """GPT-2's way around a byte-pair encoding: bytes as letters, words split with their leading space.

    Args:
        adds_end: whether the end-of-text token is added where the vocabulary lacks it.
    """
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_end or tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return tokenizer
