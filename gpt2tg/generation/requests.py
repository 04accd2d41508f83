"""Prompts that are fitted into the model's context window, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2tg.checkpoint.text_stream import decode_tail
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding.stopping import Deadline, Endings, StopStrings, with_marks
from gpt2tg.errors import UserError
from gpt2tg.generation.filter_chain import FilterChain
from gpt2tg.generation.visible_text import VisibleText
from gpt2tg.options import DEFAULT_MAX_LENGTH, DecodingOptions


@dataclass(frozen=True)
class Request:
    """A prompt, fitted into the model's context window."""

    prompt: str
    index: int
    """The number of the prompt in its run, which is part of the seed of its texts."""
    ids: tuple[int, ...]
    """The prompt tokens to read."""
    max_new_tokens: int
    dropped: int = 0
    """The number of prompt tokens that were dropped on the left."""
    first: int = 0
    """The number of its first text. Above 0 only when `--replay` generates a later text alone."""


@dataclass(frozen=True)
class RequestBatch:
    """Requests that are generated together, with all that decoding them needs besides the model."""

    requests: Sequence[Request]
    options: DecodingOptions
    """With a seed, if anything is drawn."""
    filters: FilterChain
    tokenizer: TextTokenizer
    end_ids: tuple[int, ...]
    """The tokens that end a text."""

    @property
    def longest(self) -> int:
        """The largest number of tokens that a text may have, prompt included."""
        return max(len(request.ids) + request.max_new_tokens for request in self.requests)

    @property
    def is_single(self) -> bool:
        """Whether a single text is generated, in one row."""
        return len(self.requests) == self.options.draws == 1 and not self.options.strategy.beams

    def endings(self, requests: Sequence[Request]) -> Endings:
        """Return the rule by which texts end. `requests` has the request of each text."""
        limits = [request.max_new_tokens for request in requests]
        strings, marks = with_marks(self.options.stop, self.tokenizer.special)

        def tail(index: int, ids: Sequence[int], count: int) -> str:
            return decode_tail(self.tokenizer, requests[index].ids, ids, count, marks)

        stop = StopStrings(strings, tail)
        if self.options.max_time is None:
            return Endings(self.end_ids, stop, limits)
        return Endings(self.end_ids, stop, limits, Deadline(self.options.max_time))

    def visible_text(self, request: Request) -> VisibleText:
        """Return a new, empty completion of a request."""
        options = self.options
        sentences_after = request.prompt if options.end_at_sentence else None
        return VisibleText(self.tokenizer, options.stop, options.keep_stop, request.ids, sentences_after)


def fit_prompt(prompt: str, ids: Sequence[int], options: DecodingOptions, positions: int, index: int = 0) -> Request:
    """Fit prompt and new tokens into the context window; if they exceed it, do what `options.overflow` says.

    Args:
        ids: the tokens of the prompt.
        positions: the model's context length in tokens.
        index: the number of the prompt in its run. `options.replay` overrides it.

    Raises:
        UserError: the prompt leaves no room for new tokens; the message has the numbers.
    """
    first = 0
    if replayed := options.replayed():
        _, index, first = replayed
        if options.strategy.beams and first >= options.num_beams:
            raise UserError(f"{options.replay}: there is no text {first} of {options.num_beams} beams", "replay")
    limit = _max_new_tokens(len(ids), options, positions)
    if options.min_new_tokens > limit:
        raise UserError(
            f"{options.min_new_tokens} is more than the {limit} new tokens there is room for", "min_new_tokens"
        )
    excess = len(ids) + limit - positions
    if excess <= 0 or options.overflow == "slide":
        return Request(prompt, index, tuple(ids), limit, first=first)
    if options.overflow == "truncate" and limit < positions:
        return Request(prompt, index, tuple(ids[excess:]), limit, dropped=excess, first=first)
    option = "max_new_tokens" if options.max_new_tokens else "max_length"
    raise UserError(
        f"{getattr(options, option)}: a prompt of {len(ids)} tokens and {limit} new ones exceed the context length of "
        f"{positions}: ask for fewer, or use --overflow slide"
        + (", or --overflow truncate" if limit < positions else ""),
        option,
    )


def _max_new_tokens(prompt_tokens: int, options: DecodingOptions, positions: int) -> int:
    """Return the largest number of new tokens after a prompt that the options allow."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    longest = options.max_length if options.max_length is not None else min(DEFAULT_MAX_LENGTH, positions)
    if longest <= prompt_tokens:
        raise UserError(
            f"{longest} leaves no room for text after a prompt of {prompt_tokens} tokens: "
            "raise it, or count new tokens alone with --max_new_tokens",
            "max_length",
        )
    return longest - prompt_tokens
