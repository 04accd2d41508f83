"""How the next token is chosen, how many sequences are generated, and where they end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from gpt2tg.errors import UserError
from gpt2tg.options.entries import is_utf8, read_biases, read_replay
from gpt2tg.options.fields import LARGEST_NUMBER, LARGEST_POWER, LARGEST_SEED, Options, option
from gpt2tg.options.strategies import DEFAULT_TOP_K, DEFAULT_TOP_P, STRATEGIES, Strategy, StrategyName

EarlyStopping = Literal["true", "false", "never"]
Overflow = Literal["error", "truncate", "slide"]

# Used where the caller gives no length and no number of sequences.
DEFAULT_MAX_LENGTH = 200
DEFAULT_NUM_SEQUENCES = 3
# Greedy text often repeats itself. 7 guesses plus the known token make 8 rows, what one kernel pass computes.
DEFAULT_PROMPT_LOOKUP = 7
# A temperature between 0 and this is a mistake: the logits divided by it overflow.
SMALLEST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class DecodingOptions(Options):
    """How the next token is chosen, how many sequences are generated for a prompt, and where they end."""

    decoding: StrategyName = option(
        "top_p",
        "the decoding strategy, which chooses the next token",
        group="decoding",
        choices=StrategyName,
        metavar="STRATEGY",
        is_common=True,
    )
    temperature: float = option(
        0.7,
        "below 1 sharpens the distribution, above 1 flattens it, 0 is greedy",
        group="decoding",
        low=0,
        high=LARGEST_NUMBER,
        is_common=True,
    )
    top_k: int | None = option(
        None,
        "keep the N most probable tokens",
        group="decoding",
        low=1,
        shown_default="50 with --decoding top_k, 4 with contrastive, else off",
        is_common=True,
    )
    top_p: float | None = option(
        None,
        "keep the most probable tokens that together have probability X",
        group="decoding",
        low=0,
        high=1,
        shown_default="0.9 with --decoding top_p, else off",
        is_common=True,
    )
    min_p: float | None = option(
        None,
        "keep tokens at least X times as probable as the most probable one",
        group="decoding",
        low=0,
        high=1,
        shown_default="off",
    )
    typical_p: float | None = option(
        None,
        "keep the tokens whose surprisal is closest to the entropy, up to total probability X",
        group="decoding",
        above=0,
        high=1,
        shown_default="off",
    )
    penalty_alpha: float = option(
        0.6, "weight of the similarity penalty in contrastive search; 0 is greedy", group="decoding", low=0, high=1
    )
    seed: int | None = option(
        None,
        "random seed: the same seed gives the same text",
        group="decoding",
        low=0,
        high=LARGEST_SEED,
        shown_default="random, printed when generating",
        is_common=True,
    )
    replay: str | None = option(
        None,
        "generate one recorded sample again, from the seed, prompt and sample number in its record",
        group="decoding",
        metavar="SEED/PROMPT/SAMPLE",
        shown_default="off",
    )

    num_beams: int = option(5, "beams: sequences kept by beam search", group="beams", low=1, is_common=True)
    num_beam_groups: int | None = option(
        None, "groups of diverse_beam", group="beams", low=1, shown_default="as many as beams"
    )
    diversity_penalty: float = option(
        1.0,
        "subtracted from the score of a token that an earlier group of diverse_beam chose in this step",
        group="beams",
        low=0,
        high=LARGEST_NUMBER,
    )
    length_penalty: float = option(
        1.0,
        "the score of a beam is divided by its length to this power: above 0 favours long sequences",
        group="beams",
        low=-LARGEST_POWER,
        high=LARGEST_POWER,
    )
    early_stopping: EarlyStopping = option(
        "false",
        "beam search ends when it has as many finished sequences as beams (true), when a better one is unlikely "
        "(false), or when a better one is impossible (never)",
        group="beams",
        choices=EarlyStopping,
        flag_value="true",
    )

    repetition_penalty: float = option(
        1.0,
        "above 1 makes tokens that the text already holds less probable; 1 is off",
        group="repetition",
        low=0.001,
        high=LARGEST_NUMBER,
        is_common=True,
    )
    presence_penalty: float = option(
        0.0,
        "subtracted from the logit of each token that the text already holds",
        group="repetition",
        low=-LARGEST_NUMBER,
        high=LARGEST_NUMBER,
    )
    frequency_penalty: float = option(
        0.0,
        "subtracted from the logit of a token once for each time the text holds it",
        group="repetition",
        low=-LARGEST_NUMBER,
        high=LARGEST_NUMBER,
    )
    penalty_window: int | None = option(
        None,
        "the three penalties apply to the last N tokens",
        group="repetition",
        low=1,
        shown_default="all, including the prompt",
    )
    no_repeat_ngram: int = option(
        0,
        "never generate the same N tokens in a row twice, including those of the prompt; 0 is off",
        group="repetition",
        low=0,
        is_common=True,
    )
    ban_words: tuple[str, ...] = option(
        (),
        "never generate these words, capitalised or not",
        group="repetition",
        metavar="WORD",
        shown_default="none",
        is_text=True,
    )
    bias: tuple[str, ...] = option(
        (),
        "add X to the logit of a word, capitalised or not: dragon=+2",
        group="repetition",
        metavar="WORD=X",
        shown_default="none",
        is_text=True,
    )

    num_sequences: int | None = option(
        None,
        "number of sequences to generate for each prompt",
        group="output",
        low=1,
        shown_default=f"{DEFAULT_NUM_SEQUENCES}, or as many as the strategy can give",
        is_common=True,
    )
    best_of: int | None = option(
        None,
        "sample N sequences and return the --num_sequences different ones with the highest mean log-probability",
        group="output",
        low=1,
        shown_default="off",
    )
    max_length: int | None = option(
        None,
        "maximum length in tokens, including the prompt",
        group="output",
        low=1,
        shown_default=str(DEFAULT_MAX_LENGTH),
        is_common=True,
    )
    max_new_tokens: int | None = option(
        None, "maximum number of new tokens", group="output", low=1, shown_default="off", is_common=True
    )
    min_new_tokens: int = option(0, "minimum number of new tokens", group="output", low=0)
    suppress_eos: bool = option(False, "never generate the end-of-text token", group="output")
    stop: tuple[str, ...] = option(
        (),
        r"end the text before this string; \n is a line break",
        group="output",
        metavar="STRING",
        shown_default="none",
        is_text=True,
    )
    keep_stop: bool = option(False, "end the text after the stop string instead of before it", group="output")
    end_at_sentence: bool = option(
        False,
        "cut a text that reaches its length or time limit back to its last complete sentence, if it has one",
        group="output",
    )
    prompt_lookup: int | None = option(
        None,
        "speculative decoding: guess up to N tokens from what followed the same words before, and check them in one "
        "forward pass; changes the speed, not the text; 0 is off",
        group="output",
        low=0,
        high=64,
        shown_default=f"{DEFAULT_PROMPT_LOOKUP} for one greedy text on the CPU, else off",
    )
    max_time: float | None = option(
        None, "time limit in seconds; texts end there", group="output", above=0, shown_default="off"
    )
    overflow: Overflow = option(
        "error",
        "if prompt and new tokens exceed the context length: refuse, drop the beginning of the prompt, or continue "
        "with a sliding window",
        group="output",
        choices=Overflow,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise UserError(
                f"{self.temperature} is too small: use 0 for greedy, or at least {SMALLEST_TEMPERATURE}", "temperature"
            )
        self._check_lengths()
        self._check_texts()
        self._check_counts()
        self.replayed()

    def _check_lengths(self) -> None:
        if self.max_length is not None and self.max_new_tokens is not None:
            raise UserError(
                f"{self.max_new_tokens} and --max_length {self.max_length} contradict each other: give one of the two",
                "max_new_tokens",
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"{self.min_new_tokens} is more than --max_new_tokens {self.max_new_tokens}: lower it, or raise that",
                "min_new_tokens",
            )

    def _check_texts(self) -> None:
        if "" in self.stop:
            raise UserError("needs a string that is not empty", "stop")
        if "" in self.ban_words:
            raise UserError("needs words that are not empty", "ban_words")
        for name in ("stop", "ban_words", "bias"):
            if not all(map(is_utf8, getattr(self, name))):
                raise UserError("is not valid UTF-8: it holds half a character, or bytes of another encoding", name)
        self.biases()

    def _check_counts(self) -> None:
        if self.num_sequences is not None and self.num_sequences > self.most_sequences:
            raise UserError(self._too_many_sequences(self.num_sequences), "num_sequences")
        if self.best_of is not None and self.num_sequences is not None and self.best_of < self.num_sequences:
            raise UserError(
                f"{self.best_of} is less than --num_sequences {self.num_sequences}: sample at least as many", "best_of"
            )
        if self.decoding == "diverse_beam" and self.num_beams % self.groups:
            raise UserError(f"{self.groups} does not divide --num_beams {self.num_beams} evenly", "num_beam_groups")

    def _too_many_sequences(self, wanted: int) -> str:
        if self.strategy.beams:
            return f"{wanted} is more than --num_beams {self.num_beams}: lower it, or raise that"
        is_as_named = self.strategy is STRATEGIES[self.decoding]
        name = self.decoding if is_as_named else f"{self.decoding} at temperature 0"
        return (
            f"{wanted} asked for, but {name} gives 1 sequence: ask for 1, or choose a strategy that samples, such as "
            "--decoding top_p with a temperature above 0"
        )

    @property
    def strategy(self) -> Strategy:
        """The strategy in effect. At temperature 0, sampling becomes greedy, and sampling with beams beam search."""
        chosen = STRATEGIES[self.decoding]
        if chosen.samples and self.temperature == 0:
            return STRATEGIES["beam" if chosen.beams else "greedy"]
        return chosen

    @property
    def most_sequences(self) -> float:
        """The number of different sequences that the strategy can give for one prompt; infinite if it samples."""
        if self.strategy.beams:
            return self.num_beams
        return math.inf if self.strategy.samples else 1

    @property
    def sequences(self) -> int:
        """The number of sequences returned for a prompt: as given, or the default within the strategy's limits."""
        if self.num_sequences is not None:
            return self.num_sequences
        if self.replay:
            return 1
        drawn = self.best_of if self.best_of is not None and "best_of" in self.strategy.uses else math.inf
        return int(min(DEFAULT_NUM_SEQUENCES, self.most_sequences, drawn))

    @property
    def draws(self) -> int:
        """The number of sequences generated for a prompt, of which `sequences` are returned."""
        return self.best_of if self.best_of is not None and "best_of" in self.strategy.uses else self.sequences

    @property
    def guesses(self) -> int:
        """The number of tokens that prompt lookup may guess per step; 0 is off."""
        if "prompt_lookup" not in self.strategy.uses:
            return 0
        if self.prompt_lookup is not None:
            return self.prompt_lookup
        return 0 if self.strategy.samples else DEFAULT_PROMPT_LOOKUP

    @property
    def groups(self) -> int:
        """The number of beam groups."""
        if self.decoding != "diverse_beam":
            return 1
        return self.num_beams if self.num_beam_groups is None else self.num_beam_groups

    @property
    def effective_top_k(self) -> int | None:
        """The top-k filter in effect, with the strategy's default; None is off."""
        if "top_k" not in self.strategy.uses:
            return None
        return DEFAULT_TOP_K.get(self.decoding) if self.top_k is None else self.top_k

    @property
    def effective_top_p(self) -> float | None:
        """The top-p filter in effect, with the strategy's default; None is off."""
        if "top_p" not in self.strategy.uses:
            return None
        return DEFAULT_TOP_P.get(self.decoding) if self.top_p is None else self.top_p

    def biases(self) -> dict[str, float]:
        """Return what to add to the logits of which words; banned words get minus infinity.

        Raises:
            UserError: an entry of `bias` is not `word=number`.
        """
        return {**read_biases(self.bias), **dict.fromkeys(self.ban_words, -math.inf)}

    def replayed(self) -> tuple[int, int, int] | None:
        """Return the seed, prompt number and sample number of `replay`.

        Raises:
            UserError: it has another form, or other options contradict it.
        """
        if self.replay is None:
            return None
        found = read_replay(self.replay)
        if self.seed is not None:
            raise UserError(
                f"{self.replay} and --seed {self.seed} contradict each other: give one of the two", "replay"
            )
        if self.num_sequences not in (None, 1) or self.best_of is not None:
            raise UserError(f"{self.replay} is one text: leave out --num_sequences and --best_of", "replay")
        return found


def decoding_options(given: dict[str, Any], **defaults: Any) -> DecodingOptions:
    """Build the options of one request from what was given, then the caller's defaults, then ours."""
    merged = {**defaults, **given}
    if given.get("max_new_tokens") is not None and "max_length" not in given:
        merged["max_length"] = None
    return DecodingOptions(**merged)
