"""Human text, cut into passages like those a model generates: a prompt and its continuation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.inspection.tokens import inspect_ids, token_texts
from gpt2tg.options import DEFAULT_MAX_LENGTH, DecodingOptions

# Length in tokens of a prompt taken from the reference.
PROMPT_TOKENS = 16

# In tokens. The metrics of shorter continuations are meaningless.
MIN_CONTINUATION = 8

# A generous number of characters per token: only so much text is tokenized for a passage, not a whole book.
MAX_TOKEN_CHARACTERS = 12

# Passages measured of a long reference. More would change the metrics by less than they vary.
MAX_PASSAGES = 128

# A passage begins where a line or a sentence begins.
BEGINNINGS = re.compile(r"(?:^|(?<=\n)|(?<=[.!?]\s)|(?<=[.!?][\"'\N{RIGHT DOUBLE QUOTATION MARK}]\s))(?=\S)")


@dataclass(frozen=True)
class Passage:
    """A passage of human text as token ids."""

    prompt: str
    context: tuple[int, ...]
    """The prompt as the model reads it."""
    ids: tuple[int, ...]
    """The continuation, with the end-of-text token if the example ends with it."""
    has_ended: bool


@dataclass(frozen=True)
class HumanText:
    """Passages of a reference with their log-probabilities under the model, and the prompts to compare on."""

    samples: tuple[Sample, ...]
    """If the prompts come from the reference, their passages stand first, in the order of the prompts."""
    prompts: tuple[str, ...]
    new_tokens: int
    """Length in tokens of each continuation."""


def prepare_human_text(
    generator: Generator, examples: Sequence[str], options: DecodingOptions, prompts: Sequence[str], num_prompts: int
) -> HumanText:
    """Cut examples of human text into passages as long as the texts that the model will generate, and measure them.

    Args:
        prompts: the prompts of the comparison; if there are none, they are taken from the passages.
        num_prompts: how many prompts to take from the passages.

    Raises:
        UserError: no example is long enough.
    """
    context_length = generator.model.shape.n_positions
    prompt_tokens, new_tokens = _lengths(generator, options, prompts)
    passages = [
        passage
        for passage in cut_passages(generator, examples, prompt_tokens, new_tokens)
        if options.overflow == "slide" or len(passage.context) + new_tokens <= context_length
    ]
    if not passages:
        raise UserError(
            f"has no passage of {prompt_tokens} prompt tokens and {new_tokens} more: give a longer text, "
            "compare shorter texts with --max_new_tokens, or change what one example is with --examples",
            "reference",
        )
    measured = spread_evenly(passages, max(MAX_PASSAGES, num_prompts))
    taken = [] if prompts else spread_evenly(measured, num_prompts)
    ordered = [*taken, *(passage for passage in measured if passage not in taken)]
    used_prompts = tuple(passage.prompt for passage in taken) or tuple(prompts)
    return HumanText(tuple(as_samples(generator, ordered)), used_prompts, new_tokens)


def _lengths(generator: Generator, options: DecodingOptions, prompts: Sequence[str]) -> tuple[int, int]:
    """Return the length in tokens of the prompts and of their continuations."""
    if prompts:
        requests = [generator.fit(prompt, options) for prompt in prompts]
        prompt_tokens = round(sum(len(request.ids) for request in requests) / len(requests))
        return prompt_tokens, max(request.max_new_tokens for request in requests)
    context_length = generator.model.shape.n_positions
    prompt_tokens = min(PROMPT_TOKENS, max(1, context_length // 4))
    longest = options.max_length if options.max_length is not None else min(DEFAULT_MAX_LENGTH, context_length)
    # A prompt ends where a word ends, so it may be up to half again as long.
    return prompt_tokens, options.max_new_tokens or max(1, longest - prompt_tokens - prompt_tokens // 2)


def cut_passages(generator: Generator, examples: Sequence[str], prompt_tokens: int, new_tokens: int) -> list[Passage]:
    """Cut examples into passages that do not overlap, each from the beginning of a line or sentence.

    Args:
        prompt_tokens: the least length of a prompt; it ends with the word that reaches it.
        new_tokens: length of a continuation. It is shorter only if the whole example is.
    """
    found = []
    for example in examples:
        end = 0
        for match in BEGINNINGS.finditer(example):
            start = match.start()
            if start < end:
                continue
            cut = _cut_passage(generator, example[start:], prompt_tokens, new_tokens)
            if cut is None:
                continue
            passage, length = cut
            if len(passage.ids) >= new_tokens or start == 0:
                found.append(passage)
                end = start + length
    return found


def _cut_passage(generator: Generator, text: str, prompt_tokens: int, new_tokens: int) -> tuple[Passage, int] | None:
    """Cut a passage from the beginning of a text.

    Returns:
        The passage and its length in characters, or None if the text is too short.
    """
    tokenizer = generator.tokenizer
    beginning = text[: MAX_TOKEN_CHARACTERS * (prompt_tokens + new_tokens)]
    ids = tokenizer.encode(beginning)
    texts = token_texts(tokenizer, ids)
    cut = next((place for place in range(prompt_tokens, len(ids)) if texts[place][:1].isspace()), len(ids))
    if len(ids) - cut < min(MIN_CONTINUATION, new_tokens):
        return None
    end = cut + new_tokens
    has_ended = beginning == text and len(ids) < end
    prompt = "".join(texts[:cut])
    following = (*ids[cut:end], *([tokenizer.end_id] if has_ended else []))
    passage = Passage(prompt, tuple(tokenizer.encode_prompt(prompt)), following, has_ended)
    return passage, len("".join(texts[:end]))


def spread_evenly(passages: Sequence[Passage], count: int) -> list[Passage]:
    """Return `count` of the passages, evenly spread over the text, or all of them if there are fewer."""
    if len(passages) <= count:
        return list(passages)
    return [passages[number * len(passages) // count] for number in range(count)]


def as_samples(generator: Generator, passages: Sequence[Passage]) -> list[Sample]:
    """Return the passages as samples, as if the model had generated them, with their log-probabilities under it."""
    return [
        Sample(
            prompt=passage.prompt,
            completion=generator.tokenizer.decode_after(passage.context, passage.ids),
            prompt_index=number,
            index=0,
            prompt_tokens=len(passage.context),
            ids=passage.ids,
            finish_reason="eos" if passage.has_ended else "length",
            logprob=sum(token.logprob for token in inspect_ids(generator, passage.context, passage.ids)),
        )
        for number, passage in enumerate(passages)
    ]
