"""Text to token ids and back, by the `tokenizers` library alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from gpt2tg.checkpoint.tokenizer_files import END_OF_TEXT, FoundTokenizer, read_tokenizer
from gpt2tg.errors import UserError

# What an incomplete character decodes to.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Some decoders treat the first token of a text in a way of its own. So many ids before a text are decoded with it.
CONTEXT_IDS = 16

# Where byte fallback spells a character that the vocabulary lacks.
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

# A token that is no word of a text.
MARKUP = re.compile(r"<.+>|\[.+\]")

# What transformers replaces, in this order, where a tokenizer cleans up: `a .` becomes `a.`
CLEANED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s"}
CLEANED |= {" 've": "'ve", " 're": "'re"}

# Before such a space nothing is ever replaced together with what follows it.
CLEAN_BORDER = re.compile(r"(?<=[^ '])(?= [^'])")


class TextTokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, end_id: int, cleans_up: bool = False) -> None:
        self.raw = tokenizer
        self.end_id = end_id
        self.cleans_up = cleans_up
        """Whether spaces before punctuation are taken out of what is decoded."""
        self.notes: tuple[str, ...] = ()
        """What its user should know of it, a line each."""

    @cached_property
    def special(self) -> dict[int, str]:
        """The tokens that leave no trace in a text, and their names."""
        decode, added = self.raw.decode, self.raw.get_added_tokens_decoder()
        # Asked of the decoder, which does not go by the flags of a token alone.
        found = {n: token.content for n, token in added.items() if decode([n], False) and not decode([n], True)}
        end = self.raw.id_to_token(self.end_id) or ""
        # Old vocabularies do not mark it.
        return {**found, self.end_id: end} if MARKUP.fullmatch(end) else found

    @cached_property
    def silent(self) -> frozenset[int]:
        """Tokens that complete no text: special ones, and the single bytes of byte fallback, since a run of these is
        decoded as one."""
        spelled = BYTE_TOKENS if "ByteFallback" in json.dumps(_pipeline(self.raw)["decoder"]) else ()
        found = (self.raw.token_to_id(name) for name in spelled)
        return frozenset(self.special) | {number for number in found if number is not None}

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts before a text. One that it puts after it is left out: it ends the text."""
        found = self.raw.encode("a", add_special_tokens=True)
        text = [place for place, is_special in enumerate(found.special_tokens_mask) if not is_special]
        return tuple(found.ids[: text[0]]) if text else ()

    @cached_property
    def _continuing(self) -> Tokenizer:
        """The tokenizer without what it does to the first word of a text; the same one where it does nothing."""
        whole = _pipeline(self.raw)
        changed = {**whole, **{part: _without_first_word(whole[part]) for part in ("normalizer", "pre_tokenizer")}}
        if changed == whole:
            return self.raw
        parts = Tokenizer.from_str(json.dumps(changed))
        found = Tokenizer(self.raw.model)
        found.add_tokens([token for _, token in sorted(self.raw.get_added_tokens_decoder().items())])
        found.pre_tokenizer, found.encode_special_tokens = parts.pre_tokenizer, self.raw.encode_special_tokens
        if parts.normalizer is not None:
            found.normalizer = parts.normalizer
        return found

    @property
    def encodes_in_parts(self) -> bool:
        """Whether parts of a text have the ids of the whole, cut at white space: nothing is done to first words."""
        return self._continuing is self.raw

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Token ids of a text, nothing added.

        Args:
            continues: whether other text stands before it. Some tokenizers put a space before a text's first word.
        """
        if not continues or self.encodes_in_parts:
            return self.raw.encode(text, add_special_tokens=False).ids
        found = self._continuing.encode(text, add_special_tokens=False)
        added = self.raw.get_added_tokens_decoder()
        first = next((place for place, token in enumerate(found.ids) if token in added), None)
        if first is None:
            return found.ids
        # What follows an added token is no first word, whatever stands before.
        rest = text[found.offsets[first][0] :]
        return found.ids[:first] + self.raw.encode(rest, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued. The empty one is the end-of-text token, after which texts
        begin, where the tokenizer puts nothing before a text."""
        return [*self.prefix, *self.encode(text)] or [self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens leave no trace in it."""
        return self.cleaned(self.decode_as_it_is(ids))

    def decode_as_it_is(self, ids: Sequence[int]) -> str:
        """The text of token ids, not cleaned up."""
        special = self.special
        return self.raw.decode([number for number in ids if number not in special], skip_special_tokens=False)

    def cleaned(self, text: str) -> str:
        """The text without spaces before punctuation, where the tokenizer takes them out."""
        for found, replacement in CLEANED.items() if self.cleans_up else ():
            text = text.replace(found, replacement)
        return text

    def context(self, ids: Sequence[int]) -> Sequence[int]:
        """The last ids of a text, as many as decide how what follows is decoded."""
        if not self.cleans_up and isinstance(self.raw.decoder, decoders.ByteLevel):
            return ()
        start = max(0, len(ids) - CONTEXT_IDS)
        while start and (ids[start] in self.silent or ids[start - 1] in self.silent):
            start -= 1
        return ids[start:]

    def added(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ids add to that of the ids before them."""
        context = self.context(before)
        return self.decode([*context, *ids])[len(self.decode(context)) :]

    def name(self, token: int, is_first: bool = False) -> str:
        """A token as tables show it: its text within another, or at the beginning of one; of a special one its name.

        A token that is only a part of a character reads as the replacement character.
        """
        if token in self.special:
            return self.special[token]
        before = () if is_first else self._some_token
        return self.decode_as_it_is([*before, token])[len(self.decode_as_it_is(before)) :]

    @cached_property
    def _some_token(self) -> tuple[int, ...]:
        """A token that has a text."""
        return tuple(self.encode("a")[-1:])

    def tail(self, prompt: Sequence[int], ids: Sequence[int], count: int, marks: Mapping[int, str]) -> str:
        """The text of the last ids, at least `count` of them beside special ones.

        Args:
            ids: what follows the prompt; the text is of these alone.
            marks: for special tokens that show themselves, as what.
        """
        start = len(ids)
        while start and (count > 0 or ids[start - 1] in self.silent):
            start -= 1
            count -= ids[start] not in self.special
        before = ids[:start] if start > CONTEXT_IDS else [*prompt, *ids[:start]]
        if marks.keys().isdisjoint(ids[start:]):
            return self.added(before, ids[start:])
        stream = TextStream(self, before, marks)
        return "".join([*map(stream.push, ids[start:]), stream.finish()])


class TextStream:
    """Turns ids that arrive one by one into pieces of text that are whole characters.

    A character can be spread over several tokens; its piece is held back until it is complete. The pieces and
    the rest given by `finish` together are exactly what decoding all ids at once adds to the text before them.
    """

    def __init__(self, tokenizer: TextTokenizer, before: Sequence[int] = (), marks: Mapping[int, str] | None = None):
        """
        Args:
            before: the ids of the text that goes on.
            marks: for special tokens that show themselves, as what. The text before one is not held back.
        """
        self._tokenizer = tokenizer
        self._marks = marks or {}
        self._ids = list(tokenizer.context(before))
        # Ids before `_start` are done with. Those from `_start` to `_shown` have been shown and are decoded
        # again with the new ones, because some decoders treat the first token of a text in its own way.
        self._start, self._shown = 0, len(self._ids)
        # Where the tokenizer cleans up: what may yet be changed by what follows, and how much of it was there before.
        self._uncleaned = CLEAN_BORDER.split(tokenizer.decode_as_it_is(self._ids))[-1] if tokenizer.cleans_up else ""
        self._before = len(tokenizer.cleaned(self._uncleaned))

    def push(self, token: int) -> str:
        """The text that this token completes, often a word, sometimes nothing."""
        if token in self._marks:
            return self.finish() + self._marks[token]
        self._ids.append(token)
        if token in self._tokenizer.silent:
            return ""
        known, text = self._decoded()
        if len(text) <= len(known) or text.endswith(REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._cleaned(text[len(known) :])

    def finish(self) -> str:
        """What was still held back."""
        known, text = self._decoded()
        if text != known:
            self._start, self._shown = self._shown, len(self._ids)
        return self._cleaned(text[len(known) :], is_last=True)

    def _decoded(self) -> tuple[str, str]:
        decode = self._tokenizer.decode_as_it_is
        return decode(self._ids[self._start : self._shown]), decode(self._ids[self._start :])

    def _cleaned(self, piece: str, is_last: bool = False) -> str:
        if not self._tokenizer.cleans_up:
            return piece
        *ready, rest = CLEAN_BORDER.split(self._uncleaned + piece)
        if is_last:
            ready, rest = [*ready, rest], ""
        self._uncleaned = rest
        text = self._tokenizer.cleaned("".join(ready))
        before, self._before = self._before, max(0, self._before - len(text))
        return text[before:]


def load_tokenizer(directory: Path, vocab_size: int, end_ids: Sequence[int] | None = None) -> TextTokenizer:
    """Read a tokenizer from the files of a checkpoint.

    The end-of-text token is the one that the tokenizer's files name; else the first of `end_ids`; else
    `<|endoftext|>`, or the separator of BERT, where it is known.

    Args:
        vocab_size: rows of the model's embedding; the vocabulary may not have more tokens than that.
        end_ids: the ids that end a text as the settings of the model have it.

    Raises:
        UserError: the files are missing, broken, or belong to another model.
    """
    found = read_tokenizer(directory, vocab_size)
    size = max(found.raw.get_vocab().values(), default=-1) + 1
    if size > vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {size} tokens but the model only {vocab_size}: they do not belong together"
        )
    ends = [found.raw.token_to_id(found.roles["eos_token"])] if "eos_token" in found.roles else []
    ends += [*(end_ids or ()), found.raw.token_to_id(END_OF_TEXT)]
    ends += [found.raw.token_to_id(found.roles["sep_token"])] if "sep_token" in found.roles else []
    end_id = next((end for end in ends if end is not None), None)
    if end_id is None:
        raise UserError(f"{directory}: neither its settings nor its tokenizer name an end-of-text token")
    tokenizer = TextTokenizer(found.raw, end_id, found.cleans_up)
    tokenizer.notes = tuple(_notes(found, tokenizer, end_ids or ()))
    return tokenizer


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


def _notes(found: FoundTokenizer, tokenizer: TextTokenizer, end_ids: Sequence[int]) -> Iterator[str]:
    if found.left_out:
        yield f"the model has no rows for {_list(found.left_out)} of the tokenizer: in a text they are plain characters"
    if found.moved:
        yield f"{_list(found.moved)} of the tokenizer: the files do not agree on the id"
    words = [number for number in end_ids if number not in tokenizer.special]
    if words and (tokenizer.end_id not in end_ids or tokenizer.end_id in words):
        named = _list([f"id {number}, {json.dumps(tokenizer.name(number), ensure_ascii=False)}" for number in words])
        own = "" if tokenizer.end_id in words else f"; training ends them with {tokenizer.special[tokenizer.end_id]}"
        yield f"the model's settings end texts with {named}, which is no special token of the tokenizer{own}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _pipeline(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer does before and after its model, as tokenizer.json has it, without its vocabulary."""
    shell = Tokenizer(BPE())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (value := getattr(tokenizer, part)) is not None:
            setattr(shell, part, value)
    return json.loads(shell.to_str())


def _without_first_word(step: Any) -> Any:
    """A normalizer or pre-tokenizer of tokenizer.json without what it puts before the first word of a text.

    Only the first step of a sequence is looked at: behind one that cuts a text, every word is a first one.
    """
    kind = step["type"] if step else None
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        first, *others = step[name] or [None]
        return {**step, name: [_without_first_word(first), *others]} if first else step
    if kind == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if kind == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {"type": "Sequence", "normalizers": []} if kind == "Prepend" else step
