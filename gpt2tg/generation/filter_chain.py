"""From options to the filters that the decoders apply, in the one order in which they are ever applied."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding import filters
from gpt2tg.decoding.interface import Filter, Text
from gpt2tg.options import DecodingOptions

# A filter that depends on the logits alone, (B, V) -> (B, V), with its settings as keywords.
LogitsFilter = partial[Tensor]

# The options that decide what the filters do.
FILTER_OPTIONS = (
    *("decoding", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_window", "no_repeat_ngram"),
    *("ban_words", "bias", "min_new_tokens", "suppress_eos"),
)


@dataclass(frozen=True)
class FilterChain:
    """The filters of a generation, grouped by what they depend on. The groups apply in the order of the fields."""

    unused: Sequence[LogitsFilter]
    """Bans the ids that have no token."""
    history: Sequence[Filter]
    """Depend on the text so far."""
    distribution: Sequence[LogitsFilter]
    """Depend on the logits alone, and shape the distribution to draw from."""
    key: tuple[object, ...] = ()
    """Equal for chains that do the same."""

    @property
    def filters(self) -> list[Filter]:
        """All filters in their order."""
        return [*map(_ignoring_texts, self.unused), *self.history, *map(_ignoring_texts, self.distribution)]


def filter_chain(
    options: DecodingOptions,
    tokenizer: TextTokenizer,
    end_ids: Sequence[int],
    unused: Tensor | None = None,
    logit_bias: Mapping[int, float] | None = None,
) -> FilterChain:
    """Return the filters that the options ask for.

    Args:
        end_ids: the tokens that end a text.
        unused: (V,) mask of the ids that have no token, which are always banned; None if every id has one.
        logit_bias: what to add to the logits of single tokens, by id, besides the biases of words in the options.
    """
    biases = logit_bias or {}
    return FilterChain(
        unused=[] if unused is None else [partial(filters.without, banned=unused)],
        history=history_filters(options, tokenizer, end_ids, biases),
        distribution=distribution_filters(options, len(end_ids)),
        key=(*(getattr(options, name) for name in FILTER_OPTIONS), *sorted(biases.items())),
    )


def _ignoring_texts(change: LogitsFilter) -> Filter:
    return lambda logits, _: change(logits)


def history_filters(
    options: DecodingOptions, tokenizer: TextTokenizer, end_ids: Sequence[int], logit_bias: Mapping[int, float]
) -> list[Filter]:
    """Return the filters that depend on the text so far, in their order."""
    chain: list[Filter] = []
    window = options.penalty_window
    biases = {(token,): bias for token, bias in logit_bias.items()} | token_biases(options.biases(), tokenizer)
    added = filters.Biases({sequence: bias for sequence, bias in biases.items() if bias != filters.BANNED})
    banned = filters.Biases({sequence: bias for sequence, bias in biases.items() if bias == filters.BANNED})
    if added.by_stem:
        chain.append(lambda x, texts: filters.sequence_bias(x, _ids(texts), added))
    if options.repetition_penalty != 1:
        chain.append(lambda x, texts: filters.repetition_penalty(x, _ids(texts), options.repetition_penalty, window))
    if options.presence_penalty or options.frequency_penalty:
        presence, frequency = options.presence_penalty, options.frequency_penalty
        chain.append(lambda x, texts: filters.presence_and_frequency(x, _ids(texts), presence, frequency, window))
    if options.no_repeat_ngram:
        chain.append(lambda x, texts: filters.no_repeat_ngram(x, _ids(texts), options.no_repeat_ngram))
    if banned.by_stem:
        chain.append(lambda x, texts: filters.sequence_bias(x, _ids(texts), banned))
    if options.min_new_tokens or options.suppress_eos:
        chain.append(lambda x, texts: filters.ban(x, _too_short(texts, options), end_ids))
    return chain


def distribution_filters(options: DecodingOptions, end_tokens: int) -> list[LogitsFilter]:
    """Return the filters that shape the distribution to draw from, in their order; none if nothing is drawn.

    Args:
        end_tokens: the number of different tokens that end a text.
    """
    chain: list[LogitsFilter] = []
    if not options.strategy.samples:
        return chain
    keep = end_tokens + 1 if options.strategy.beams else 1  # a beam needs a token besides those that end it
    if options.temperature != 1:
        chain.append(partial(filters.temperature, value=options.temperature))
    if (k := options.effective_top_k) is not None:
        chain.append(partial(filters.top_k, k=k, keep=keep))
    if (p := options.effective_top_p) is not None and p < 1:
        chain.append(partial(filters.top_p, p=p, keep=keep))
    if (least := options.min_p) is not None and least > 0:
        chain.append(partial(filters.min_p, p=least, keep=keep))
    if (typical := options.typical_p) is not None and typical < 1:
        chain.append(partial(filters.typical_p, p=typical, keep=keep))
    return chain


def _ids(texts: Sequence[Text]) -> list[Sequence[int]]:
    return [text.ids for text in texts]


def _too_short(texts: Sequence[Text], options: DecodingOptions) -> list[int]:
    """Return the rows whose text may not end yet."""
    return [row for row, text in enumerate(texts) if options.suppress_eos or text.new_count < options.min_new_tokens]


def token_biases(words: dict[str, float], tokenizer: TextTokenizer) -> dict[tuple[int, ...], float]:
    """Turn biases of words into biases of token sequences, for each form in which the word occurs within a text."""
    return {ids: bias for word, bias in words.items() for ids in _token_sequences(word, tokenizer)}


def _token_sequences(word: str, tokenizer: TextTokenizer) -> Iterator[tuple[int, ...]]:
    if word.isspace():
        yield from _tokens_with(word, tokenizer)
    else:
        encode = partial(tokenizer.encode, continues=True)
        yield from filter(None, (tuple(encode(form)) for form in forms(word)))


def forms(word: str) -> list[str]:
    """Return a word as given, in lower case, capitalised and in upper case, each with and without a leading space."""
    bare = word.strip(" ")
    cases = dict.fromkeys((bare, bare.lower(), bare[:1].upper() + bare[1:], bare.upper()))
    return [space + case for case in cases for space in ("", " ")]


def _tokens_with(space: str, tokenizer: TextTokenizer) -> Iterator[tuple[int, ...]]:
    """Yield the tokens that contain some white space, and the pairs of tokens that contain it across their border."""
    texts = dict(enumerate(tokenizer.raw.decode_batch([[token] for token in range(tokenizer.raw.get_vocab_size())])))
    without = {token: text for token, text in texts.items() if space not in text}
    yield from ((token,) for token in texts.keys() - without.keys())
    for cut in range(1, len(space)):
        heads = [token for token, text in without.items() if text.endswith(space[:cut])]
        tails = [token for token, text in without.items() if text.startswith(space[cut:])]
        yield from itertools.product(heads, tails)
