"""The probability of each token of a text under the model, and the most probable alternatives.

All probabilities are the model's own, before temperature, top-p, penalties or any other filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding.filters import BANNED
from gpt2tg.decoding.interface import NotFiniteError, log_probabilities
from gpt2tg.engine.sliding import windows
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation.generator import Generator
from gpt2tg.generation.samples import Sample


@dataclass(frozen=True)
class Candidate:
    """One of the most probable next tokens."""

    id: int
    text: str
    """A token that is only part of a character is shown as the replacement character."""
    probability: float
    rank: int
    """1 is the most probable token."""


@dataclass(frozen=True)
class InspectedToken:
    """A token of a text, and the model's distribution at its position."""

    id: int
    text: str
    """The texts of all tokens, joined, are the text. A character of several tokens belongs to the last of them."""
    logprob: float
    """Log-probability in nats."""
    probability: float
    rank: int
    """1 is the most probable token. Equally probable tokens share a rank."""
    entropy: float
    """Entropy of the distribution at this position, in nats."""
    alternatives: tuple[Candidate, ...] = ()
    """The most probable tokens at this position, which may include the token itself."""


@dataclass(frozen=True)
class NextToken:
    """The distribution of the token after a text."""

    entropy: float
    """In nats."""
    candidates: tuple[Candidate, ...]
    """The most probable one first."""


def inspect_sample(generator: Generator, sample: Sample, alternatives: int = 0) -> list[InspectedToken]:
    """Inspect the new tokens of a sample.

    Args:
        alternatives: the number of most probable tokens to return for each position.

    Raises:
        RunError: the model's logits are not finite.
    """
    context = generator.encode(sample.prompt)[-sample.prompt_tokens :]
    return inspect_ids(generator, context, sample.ids, alternatives)


def inspect_text(generator: Generator, text: str, alternatives: int = 0) -> list[InspectedToken]:
    """Inspect all tokens of a text, which is read after the end-of-text token, as in training.

    A text longer than the context length is read in windows that slide by half of it.
    """
    tokenizer = generator.tokenizer
    return inspect_ids(generator, tokenizer.encode_prompt(""), tokenizer.encode(text), alternatives)


def inspect_ids(
    generator: Generator, context: Sequence[int], ids: Sequence[int], alternatives: int = 0
) -> list[InspectedToken]:
    """Inspect tokens that follow a context of at least one token."""
    return [token for part in inspect_parts(generator, context, ids, alternatives) for token in part]


def inspect_parts(
    generator: Generator, context: Sequence[int], ids: Sequence[int], alternatives: int = 0
) -> Iterator[list[InspectedToken]]:
    """Inspect as `inspect_ids` does, and yield the tokens of each forward pass."""
    if not ids:
        return
    stream = TextStream(generator.tokenizer, context, generator.tokenizer.special)
    begins = not generator.tokenizer.decode(context)
    first = 0
    wanted = torch.tensor(list(ids), device=generator.model.device)
    for logprobs in _logprobs(generator, [*context, *ids], len(context)):
        part = ids[first : first + len(logprobs)]
        texts = [stream.push(token) for token in part]
        if first + len(part) == len(ids):
            texts[-1] += stream.finish()
        own = logprobs.gather(1, wanted[first : first + len(logprobs), None])  # (t, 1)
        columns = zip(
            own[:, 0].tolist(),
            own[:, 0].exp().tolist(),
            (1 + (logprobs > own).sum(dim=1)).tolist(),
            torch.special.entr(logprobs.exp()).sum(dim=1).tolist(),
            _likeliest(generator.tokenizer, logprobs, alternatives, begins and not first),
            strict=True,
        )
        yield [InspectedToken(token, text, *row) for token, text, row in zip(part, texts, columns, strict=True)]
        first += len(part)


def next_token(generator: Generator, prompt: str, count: int, overflow: str = "error") -> NextToken:
    """Return the most probable tokens after a prompt.

    Args:
        count: the number of tokens to return.
        overflow: what to do with a prompt longer than the context length: `error` refuses it, `truncate` and `slide`
            read its last tokens.

    Raises:
        UserError: the prompt is too long.
        RunError: the model's logits are not finite.
    """
    ids, positions = generator.encode(prompt), generator.model.shape.n_positions
    if len(ids) > positions and overflow == "error":
        raise UserError(
            f"of {len(ids)} tokens exceeds the context length of {positions}: shorten it, or use --overflow slide",
            "prompt",
        )
    (logprobs,) = _logprobs(generator, [*ids[-positions:], generator.tokenizer.end_id], len(ids[-positions:]))
    entropy = torch.special.entr(logprobs.exp()).sum().item()
    begins = not generator.tokenizer.decode(ids)
    return NextToken(entropy, _likeliest(generator.tokenizer, logprobs, count, begins)[0])


def token_texts(tokenizer: TextTokenizer, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """Return the piece of text that each token adds after the tokens `before`. Special tokens are shown by name."""
    stream = TextStream(tokenizer, before, tokenizer.special)
    texts = [stream.push(token) for token in ids]
    texts[-1] += stream.finish()
    return texts


def _logprobs(generator: Generator, ids: Sequence[int], context: int) -> Iterator[Tensor]:
    """Yield log-probabilities (t, V) at the positions of the ids after the context, computed as in generation.

    Ids without a token get minus infinity, since they are never generated.
    """
    done, unused = context, generator.unused
    try:
        for start, end in windows(context, len(ids) - 1, generator.model.shape.n_positions):
            place = start
            for logits in generator.model.all_logits(ids[start:end]):
                new = logits[max(0, done - 1 - place) :]  # the logits of a token are in the row of the one before it
                place += len(logits)
                if len(new):
                    logprobs = log_probabilities(new.float(), done - context + 1)
                    yield logprobs if unused is None else logprobs.masked_fill(unused, BANNED)
                    done += len(new)
    except NotFiniteError as error:
        raise RunError(str(error)) from None


def _likeliest(tokenizer: TextTokenizer, logprobs: Tensor, count: int, begins: bool) -> list[tuple[Candidate, ...]]:
    """Return the most probable tokens of each row of (t, V); `begins` if the first row is the beginning of a text."""
    used = int((logprobs[0] > BANNED).sum())
    values, ids = logprobs.topk(min(count, used), dim=1)
    found: list[tuple[Candidate, ...]] = []
    for tokens, probabilities in zip(ids.tolist(), values.exp().tolist(), strict=True):
        candidates: list[Candidate] = []
        for place, (token, probability) in enumerate(zip(tokens, probabilities, strict=True)):
            is_tied = place > 0 and probability == candidates[-1].probability
            rank = candidates[-1].rank if is_tied else place + 1
            text = tokenizer.name(token, begins and not found)
            candidates.append(Candidate(token, text, probability, rank))
        found.append(tuple(candidates))
    return found
