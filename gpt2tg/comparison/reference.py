"""Human text, cut into pieces like those a model writes: a prompt, and what a person wrote to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.inspection.tokens import inspect_ids, token_texts

# Tokens of a prompt that is taken from a reference.
PROMPT_TOKENS = 16

# In characters, on average: of a long text only so much is read for a piece.
LONGEST_TOKEN = 12

# In tokens: too few of them say nothing.
SHORTEST_CONTINUATION = 8

# Where a piece may begin: with a line or a sentence.
BEGINNINGS = re.compile(r"(?:^|(?<=\n)|(?<=[.!?]\s)|(?<=[.!?][\"'\N{RIGHT DOUBLE QUOTATION MARK}]\s))(?=\S)")


@dataclass(frozen=True)
class Piece:
    """A stretch of human text as token ids."""

    prompt: str
    context: tuple[int, ...]
    """The prompt as the model reads it."""
    ids: tuple[int, ...]
    """What follows, and the end-of-text token where the example ends with it."""
    has_ended: bool


def pieces_of(generator: Generator, examples: Sequence[str], prompt_tokens: int, room: int) -> list[Piece]:
    """Cut examples into pieces that do not overlap, each from the beginning of a line or sentence.

    Args:
        prompt_tokens: about how many tokens the prompts have; they end where a word ends.
        room: how many tokens follow. Pieces are shorter only where the whole example is.
    """
    found = []
    for example in examples:
        end = 0
        for match in BEGINNINGS.finditer(example):
            start = match.start()
            if start < end:
                continue
            piece = _piece(generator, example[start:], prompt_tokens, room)
            if piece is not None and (len(piece[0].ids) >= room or start == 0):
                found.append(piece[0])
                end = start + piece[1]
    return found


def _piece(generator: Generator, text: str, prompt_tokens: int, room: int) -> tuple[Piece, int] | None:
    """A piece from the beginning of a text, and how many of its characters it takes; None where the text is short."""
    tokenizer = generator.tokenizer
    enough = text[: LONGEST_TOKEN * (prompt_tokens + room)]
    ids = tokenizer.encode(enough)
    texts = token_texts(tokenizer, ids)
    cut = next((place for place in range(prompt_tokens, len(ids)) if texts[place][:1].isspace()), len(ids))
    if len(ids) - cut < min(SHORTEST_CONTINUATION, room):
        return None
    end = cut + room
    has_ended = enough == text and len(ids) < end
    prompt = "".join(texts[:cut])
    following = (*ids[cut:end], *([tokenizer.end_id] if has_ended else []))
    return Piece(prompt, tuple(tokenizer.encode_prompt(prompt)), following, has_ended), len("".join(texts[:end]))


def spread(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """So many of the pieces, evenly over the text; all of them where there are fewer."""
    if len(pieces) <= count:
        return list(pieces)
    return [pieces[number * len(pieces) // count] for number in range(count)]


def as_samples(generator: Generator, pieces: Sequence[Piece]) -> list[Sample]:
    """The pieces as if they were written to their prompts, with their log-probabilities under the model."""
    return [
        Sample(
            prompt=piece.prompt,
            completion=generator.tokenizer.decode_after(piece.context, piece.ids),
            prompt_index=number,
            index=0,
            prompt_tokens=len(piece.context),
            ids=piece.ids,
            finish_reason="eos" if piece.has_ended else "length",
            logprob=sum(token.logprob for token in inspect_ids(generator, piece.context, piece.ids)),
        )
        for number, piece in enumerate(pieces)
    ]
