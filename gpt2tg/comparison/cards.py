"""The texts of the report: prompt by prompt, each token shaded by how improbable the model found it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpt2tg.comparison.results import Comparison, Result
from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.inspection.tokens import InspectedToken, inspect_sample

# Limits that keep the page readable.
MAX_PROMPTS = 4
MAX_TEXTS_PER_STRATEGY = 3

# Most probable tokens listed for each place.
ALTERNATIVES = 5

# Shades from 0 to 9: a token with log-probability -n has shade n, and 9 is the darkest.
SHADES = 9

# Shown before a line break, which has no width to point at.
LINE_BREAK = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"


@dataclass(frozen=True)
class ShownToken:
    """A token of a card."""

    text: str
    shade: int
    number: int
    """Its index in the details of the page."""


@dataclass(frozen=True)
class Card:
    """One text on the page."""

    name: str
    note: str
    tokens: list[ShownToken]
    is_human: bool


@dataclass(frozen=True)
class PromptCards:
    """A prompt with the cards of its texts."""

    text: str
    cards: list[Card]


class CardMaker:
    """Makes the cards of a page, and collects the details that the page shows for each token."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._inspected: dict[int, list[InspectedToken]] = {}
        self.details: list[list[object]] = []
        """For each token: text, probability, rank, entropy, and the most probable tokens with their probabilities."""

    def inspect(self, sample: Sample) -> list[InspectedToken]:
        """Return the tokens of a sample with their probabilities; the model runs once for each sample.

        Raises:
            RunError: the model's logits are not finite.
        """
        if id(sample) not in self._inspected:
            self._inspected[id(sample)] = inspect_sample(self._generator, sample, ALTERNATIVES)
        return self._inspected[id(sample)]

    def cards_by_prompt(self, comparison: Comparison) -> list[PromptCards]:
        """Return the cards of the first prompts, human text first."""
        return [self._prompt_cards(comparison, number) for number in range(len(comparison.prompts[:MAX_PROMPTS]))]

    def _prompt_cards(self, comparison: Comparison, number: int) -> PromptCards:
        cards = []
        prompt = comparison.prompts[number]
        human = human_continuation(comparison, prompt)
        if human is not None and comparison.human is not None:
            cards.append(self._card(comparison.human, human))
        for result in comparison.results:
            samples = [sample for sample in result.samples if sample.prompt_index == number]
            cards += [self._card(result, sample) for sample in samples[:MAX_TEXTS_PER_STRATEGY]]
        return PromptCards(prompt, cards)

    def _card(self, result: Result, sample: Sample) -> Card:
        tokens = [self._shown_token(token) for token in self.inspect(sample) if token.text]
        if tokens:  # the space between prompt and text would look like an indent
            tokens[0] = replace(tokens[0], text=tokens[0].text.removeprefix(" ") or tokens[0].text)
        found = perplexity(-sample.logprob / len(sample.ids)) if sample.ids else math.nan
        note = f"{len(sample.ids)} tokens, perplexity {found:.1f}"
        return Card(result.name, note, tokens, result.options is None)

    def _shown_token(self, token: InspectedToken) -> ShownToken:
        self.details.append(
            [
                token.text,
                _three_digits(token.probability),
                token.rank,
                round(token.entropy, 2),
                [[other.text, _three_digits(other.probability)] for other in token.alternatives],
            ]
        )
        shade = max(0, min(SHADES, round(-token.logprob)))
        return ShownToken(token.text.replace("\n", LINE_BREAK), shade, len(self.details) - 1)


def human_continuation(comparison: Comparison, prompt: str) -> Sample | None:
    """Return the human text after a prompt; None if the prompt does not come from the reference."""
    samples: Sequence[Sample] = comparison.human.samples if comparison.human else ()
    return next((sample for sample in samples if sample.prompt == prompt), None)


def _three_digits(probability: float) -> float:
    """Round to three significant digits, to keep the page small."""
    return float(f"{probability:.3g}")
