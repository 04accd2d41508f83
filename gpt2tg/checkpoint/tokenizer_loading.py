"""Load the tokenizer of a checkpoint, choose its end-of-text token, and report what does not fit the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2tg.checkpoint.base_tokenizer import END_OF_TEXT
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_files import StoredTokenizer, read_tokenizer
from gpt2tg.errors import UserError

# Names that a note lists before it says how many more there are.
LISTED_NAMES = 5


def load_tokenizer(directory: Path, vocab_size: int, end_ids: Sequence[int] | None = None) -> TextTokenizer:
    """Load the tokenizer of a checkpoint.

    The end-of-text token is the one that the tokenizer's files name; else the first of `end_ids`; else
    `<|endoftext|>`, or BERT's separator, if the vocabulary has it.

    Args:
        vocab_size: rows of the model's embedding, at least as many as the tokenizer has tokens.
        end_ids: the end-of-text ids in the model's settings.

    Raises:
        UserError: the files are missing, broken, or belong to another model.
    """
    stored = read_tokenizer(directory, vocab_size)
    size = max(stored.raw.get_vocab().values(), default=-1) + 1
    if size > vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {size} tokens but the model only {vocab_size}: "
            "use the tokenizer of the same model"
        )
    tokenizer = TextTokenizer(stored.raw, _choose_end(stored, directory, end_ids or ()), stored.cleans_up)
    tokenizer.roles = stored.roles
    tokenizer.notes = tuple(_notes(stored, tokenizer, end_ids or ()))
    return tokenizer


def _choose_end(stored: StoredTokenizer, directory: Path, end_ids: Sequence[int]) -> int:
    roles, id_of = stored.roles, stored.raw.token_to_id
    ends = [id_of(roles["eos_token"])] if "eos_token" in roles else []
    ends += [*end_ids, id_of(END_OF_TEXT)]
    ends += [id_of(roles["sep_token"])] if "sep_token" in roles else []
    end = next((end for end in ends if end is not None), None)
    if end is None:
        raise UserError(
            f"{directory}: no end-of-text token is known: name it as eos_token in tokenizer_config.json, or its id as "
            "eos_token_id in config.json"
        )
    return end


def unused_ids(tokenizer: TextTokenizer, vocab_size: int, end_ids: Sequence[int]) -> list[int]:
    """Return ids that have a row in the embedding but no token. Embeddings are often padded to a round size.

    Args:
        vocab_size: rows of the embedding.
        end_ids: the end-of-text ids in the model's settings. They count as used even without a token.
    """
    if tokenizer.raw.get_vocab_size() >= vocab_size:  # the usual case, without building the whole vocabulary
        return []
    used = {*tokenizer.raw.get_vocab().values(), *end_ids, tokenizer.end_id}
    return [token for token in range(vocab_size) if token not in used]


def note_on_unused(count: int, vocab_size: int) -> str:
    """Return the note for the user about ids without a token."""
    return f"{count} of the model's {vocab_size} embedding rows have no token: they are never generated"


def _notes(stored: StoredTokenizer, tokenizer: TextTokenizer, end_ids: Sequence[int]) -> Iterator[str]:
    if stored.left_out:
        names = _list(stored.left_out)
        yield f"tokens of the tokenizer without a row in the model's embedding: {names}. They are read as plain text"
    if stored.moved:
        yield f"the tokenizer's files contradict each other about the ids of {_list(stored.moved)}"
    words = [number for number in end_ids if number not in tokenizer.special]
    if words and (tokenizer.end_id not in end_ids or tokenizer.end_id in words):
        named = _list([f"id {number}, {json.dumps(tokenizer.name(number), ensure_ascii=False)}" for number in words])
        own = "" if tokenizer.end_id in words else f"; training ends them with {tokenizer.special[tokenizer.end_id]}"
        yield f"the model's settings end texts with {named}, which is not a special token of the tokenizer{own}"


def _list(names: Sequence[str]) -> str:
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
