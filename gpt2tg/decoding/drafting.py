"""Speculative decoding (Leviathan et al. 2023): guess several tokens, and verify them in one forward pass.

The weights are then read once for several tokens. Every token is still chosen from the model's own logits, with the
uniform number of its place, and tokens after the first wrong guess are taken back. Where a context computes the same
bits whether it reads one token or several, the text is the same, to the bit, as without guesses.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Token, apply_filters, is_allowed, log_probabilities
from gpt2tg.decoding.live_texts import LiveTexts
from gpt2tg.decoding.pace import Costs
from gpt2tg.decoding.sampling import Choose


class ExtensibleRows(Rows, Protocol):
    """Rows that can read several tokens at once and remove tokens."""

    def extend(self, tokens: Mapping[int, Sequence[int]], every: bool = True) -> Tensor:
        """Append T tokens to some rows. Returns (T, V) logits of the token after each, row by row; or, without `every`,
        those after the last token of each row."""

    def take_back(self, counts: Sequence[int]) -> None:
        """Remove the last tokens of the rows, so many of each."""


class Drafter(Protocol):
    """Guesses the next tokens of the texts of a batch. Its guesses change the speed, not the texts."""

    @property
    def costs(self) -> Costs:
        """What forward passes cost."""

    def guess(self, live: LiveTexts, limits: Sequence[int]) -> list[list[int]]:
        """Return for each row tokens that may come next, at most so many; empty if no guess is worth reading."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""


def decode_with_drafts(
    rows: ExtensibleRows,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    filters: Sequence[Filter],
    choose: Choose,
    finish: Finish,
    max_new_tokens: Sequence[int],
    drafter: Drafter,
) -> Iterator[Token]:
    """Generate samples as `sampling.decode` does, with several tokens per forward pass where guesses are right.

    Args:
        max_new_tokens: for each sample, the limit that `finish` enforces. Guesses stay within it, and so within the KV
            cache.

    Yields:
        The tokens of each sample in their order. Samples proceed at different speeds.

    Raises:
        NotFiniteError: the model's logits are not finite.
    """
    live = LiveTexts([prompts[owner] for owner in owners], finish)
    guesses: list[list[int]] = [[] for _ in owners]
    logits = rows.start(prompts)[list(owners)]
    rows.select(owners)
    while True:
        confirmed = yield from _verify(logits, guesses, live, filters, choose)
        staying = [row for row, count in enumerate(confirmed) if count is not None]
        if not staying:
            return
        rows.take_back([len(guess) - (count or 0) for guess, count in zip(guesses, confirmed, strict=True)])
        if len(staying) < len(guesses):
            live.keep(staying)
            rows.select(staying)
            drafter.select(staying)
        # One less, since the forward pass also yields the token after the last guess.
        limits = [
            max_new_tokens[sample] - text.new_count - 1 for sample, text in zip(live.samples, live.texts, strict=True)
        ]
        guesses = drafter.guess(live, limits)
        reads = {row: [text.ids[-1], *guess] for row, (text, guess) in enumerate(zip(live.texts, guesses, strict=True))}
        with drafter.costs.measured_pass(sum(map(len, reads.values()))):
            logits = rows.extend(reads)


def _verify(
    logits: Tensor, guesses: Sequence[Sequence[int]], live: LiveTexts, filters: Sequence[Filter], choose: Choose
) -> Generator[Token, None, list[int | None]]:
    """Choose the next tokens of each row, as long as its guesses are right.

    Args:
        logits: for each row those of the next token, then those after each of its guesses. (T, V)

    Yields:
        The tokens: the next one of every row, then the second one of those whose first guess was right, and so on.

    Returns:
        For each row the number of guesses that were right; None if its text has ended.
    """
    starts = list(accumulate((1 + len(guess) for guess in guesses), initial=0))
    confirmed: list[int | None] = [0] * len(guesses)
    going, depth = list(range(len(guesses))), 0
    while going:
        places = [starts[row] + depth for row in going]
        following = logits[places[0] : places[0] + 1] if len(places) == 1 else logits[places]
        texts = [live.texts[row] for row in going]
        logprobs = log_probabilities(following, texts[0].new_count + 1)
        filtered = apply_filters(filters, following, texts)
        chosen = choose(filtered, [live.samples[row] for row in going])
        allowed, ids = is_allowed(filtered, chosen), chosen.tolist()
        of_chosen = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        right = []
        for place, row in enumerate(going):
            token = live.add(row, ids[place], of_chosen[place], allowed[place])
            yield token
            if token.finish_reason is not None:
                confirmed[row] = None
            elif list(guesses[row][depth : depth + 1]) == [token.id]:
                confirmed[row] = depth + 1
                right.append(row)
        going, depth = right, depth + 1
    return confirmed
