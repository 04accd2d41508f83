"""From options to the filters that a decoder applies, in their one order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding import filters
from gpt2tg.decoding.interface import Filter, Text
from gpt2tg.options import DecodingOptions

# (B, V) -> (B, V), whatever the text; with the settings as keywords.
Shaping = partial[Tensor]


def filter_chain(
    options: DecodingOptions, tokenizer: TextTokenizer, end_ids: Sequence[int], unused: Tensor | None = None
) -> list[Filter]:
    """The filters that the options ask for. The order is that of `decoding/filters.py`.

    Args:
        unused: which ids have no token, (V,); None if there are none. They are banned before anything else.
    """
    first = [_whatever_the_text(change) for change in on_unused(unused)]
    shaping = [_whatever_the_text(change) for change in on_the_distribution(options, len(end_ids))]
    return [*first, *on_the_text_so_far(options, tokenizer, end_ids), *shaping]


def on_unused(unused: Tensor | None) -> list[Shaping]:
    """What keeps ids without a token from being written, whatever the options: (B, V) -> (B, V)."""
    return [] if unused is None else [partial(filters.without, banned=unused)]


def _whatever_the_text(change: Shaping) -> Filter:
    return lambda logits, _: change(logits)


def on_the_text_so_far(options: DecodingOptions, tokenizer: TextTokenizer, end_ids: Sequence[int]) -> list[Filter]:
    """The filters that look at the text, in their order."""
    chain: list[Filter] = []
    window = options.penalty_window
    biases = token_biases(options.biases(), tokenizer)
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


def on_the_distribution(options: DecodingOptions, end_tokens: int) -> list[Shaping]:
    """What shapes the distribution that is drawn from, in its order: (B, V) -> (B, V); nothing where nothing is drawn.

    Args:
        end_tokens: how many tokens end a text.
    """
    chain: list[Shaping] = []
    if not options.strategy.samples:
        return chain
    keep = end_tokens + 1 if options.strategy.beams else 1  # a beam needs a token beside those that end it
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


def token_biases(words: dict[str, float], tokenizer: TextTokenizer) -> dict[tuple[int, ...], float]:
    """Biases by word as biases by sequence of ids, for all the ways the word is usually written within a text."""
    return {ids: bias for word, bias in words.items() for ids in _ways_to_write(word, tokenizer)}


def _ways_to_write(word: str, tokenizer: TextTokenizer) -> Iterator[tuple[int, ...]]:
    if word.isspace():
        yield from _tokens_with(word, tokenizer)
    else:
        encode = partial(tokenizer.encode, continues=True)
        yield from filter(None, (tuple(encode(form)) for form in forms(word)))


def forms(word: str) -> list[str]:
    """A word as it may stand in a text: as given, lower case, capitalised, upper case; with and without a space."""
    bare = word.strip(" ")
    cases = dict.fromkeys((bare, bare.lower(), bare[:1].upper() + bare[1:], bare.upper()))
    return [space + case for case in cases for space in ("", " ")]


def _tokens_with(space: str, tokenizer: TextTokenizer) -> Iterator[tuple[int, ...]]:
    """White space, which is no word of its own but a part of tokens: each token that holds it, and each two tokens
    that hold it where they meet."""
    texts = dict(enumerate(tokenizer.raw.decode_batch([[token] for token in range(tokenizer.raw.get_vocab_size())])))
    without = {token: text for token, text in texts.items() if space not in text}
    yield from ((token,) for token in texts.keys() - without.keys())
    for cut in range(1, len(space)):
        heads = [token for token, text in without.items() if text.endswith(space[:cut])]
        tails = [token for token, text in without.items() if text.startswith(space[cut:])]
        yield from itertools.product(heads, tails)


def _ids(texts: Sequence[Text]) -> list[Sequence[int]]:
    return [text.ids for text in texts]


def _too_short(texts: Sequence[Text], options: DecodingOptions) -> list[int]:
    """The rows that may not end yet."""
    return [row for row, text in enumerate(texts) if options.suppress_eos or text.new_count < options.min_new_tokens]
