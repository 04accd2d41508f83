"""Every option of every command: its name, default, help text and range, once.

The command line, the Python API and the session all read these dataclasses. Nothing here imports more
than the standard library, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.options.escapes import is_utf8, read_escapes

# The name of the model that travels inside the package.
BUNDLED_MODEL = "gpt2-tiny"
# Those of the Hugging Face hub that are named in help and completion.
HUB_MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")

DEFAULT_PROMPT = "Once upon a time"

# What `--resume` means without a path.
NEWEST = "newest"

# Controls beyond these say nothing that smaller ones do not, and sums and powers of them overflow.
LARGEST_NUMBER = 1_000_000
LARGEST_POWER = 20
# A temperature between this and 0 is a mistake: dividing by it overflows, and 0 says what it means.
SMALLEST_TEMPERATURE = 1e-4

# More than anybody counts to; torch counts no further than a few times as far.
LARGEST_COUNT = 2**31 - 1

# The largest seed that torch, numpy and transformers all accept.
LARGEST_SEED = 2**32 - 1


def option(
    default: Any,
    help: str,
    *,
    group: str,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    flag_value: Any = None,
    metavar: str | None = None,
    shown_default: str | None = None,
    is_text: bool = False,
) -> Any:
    """A dataclass field that knows how to present and check itself.

    `low` and `high` are the allowed ends, `above` and `below` the excluded ones. `flag_value` is what the
    flag means when it stands without a value. `shown_default` replaces the default in the help text. `is_text` marks
    what becomes part of texts: where it is typed, `\\n` and `\\t` are read as line break and tab.
    """
    metadata = dict(
        help=help,
        group=group,
        low=low,
        above=above,
        high=high,
        below=below,
        choices=choices,
        flag_value=flag_value,
        metavar=metavar,
        shown_default=shown_default,
        is_text=is_text,
    )
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Strategy:
    """What a decoding strategy is and which of the optional controls it listens to."""

    summary: str
    uses: tuple[str, ...]
    samples: bool = False
    beams: bool = False


# What shapes the distribution that is drawn from; top_k and top_p have strategies of their own.
SHAPING = ("temperature", "min_p", "typical_p", "seed", "replay")
DRAWING = (*SHAPING, "top_k", "top_p")
ALONE = ("best_of", "prompt_lookup")  # for texts that are written without beams
BEAMS = ("num_beams", "early_stopping", "length_penalty")

STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy("the most probable token at every step", ("prompt_lookup",)),
    "beam": Strategy("the most probable of several texts kept side by side", BEAMS, beams=True),
    "diverse_beam": Strategy(
        "beams in groups that keep out of each other's way",
        (*BEAMS, "num_beam_groups", "diversity_penalty"),
        beams=True,
    ),
    "sample": Strategy("draws from the whole distribution", (*SHAPING, *ALONE), samples=True),
    "top_k": Strategy("draws from the k most probable tokens", (*DRAWING, *ALONE), samples=True),
    "top_p": Strategy(
        "draws from the smallest set of tokens that holds probability p", (*DRAWING, *ALONE), samples=True
    ),
    "beam_sample": Strategy("beams that draw their next tokens", (*BEAMS, *DRAWING), samples=True, beams=True),
    "contrastive": Strategy(
        "the probable token that least resembles what the text already holds", ("top_k", "penalty_alpha")
    ),
}

# What strategies use unless told otherwise: `--decoding top_k` and contrastive keep so many tokens, `--decoding top_p`
# so much probability.
DEFAULT_TOP_K = {"top_k": 50, "contrastive": 4}
DEFAULT_TOP_P = {"top_p": 0.9}
# What a caller gets who names no length, and no number of texts.
DEFAULT_MAX_LENGTH = 200
DEFAULT_NUM_SEQUENCES = 3
# How far greedy text, which likes to repeat itself, is guessed ahead: with the token before, a vector unit's fill.
DEFAULT_PROMPT_LOOKUP = 7
# What a session writes at a time unless told otherwise: new tokens, since its texts grow, and one text.
SESSION_NEW_TOKENS = 100
SESSION_SEQUENCES = 1
# How many prompts are taken from a human text, where the caller names no number.
DEFAULT_REFERENCE_PROMPTS = 8
MOST_TUNING_PROMPTS = 128
# What --tune writes to each of them, so many side by side, and the settings that it searches.
TUNING_NEW_TOKENS = 80
TUNING_BATCH_SIZE = 64
SEARCHED_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram")
# Settings that have no meaning there: it writes one text by top_p to each prompt.
NOT_FOR_TUNING = ("decoding", "replay", "num_sequences", "best_of", "max_time")


@dataclass(frozen=True)
class DecodingOptions:
    """How the next token is chosen, how many texts are wanted, and when they end."""

    decoding: str = option(
        "top_p", "how the next token is chosen", group="decoding", choices=tuple(STRATEGIES), metavar="STRATEGY"
    )
    temperature: float = option(
        0.7,
        "below 1 sharpens the distribution, above 1 flattens it, 0 is greedy",
        group="decoding",
        low=0,
        high=LARGEST_NUMBER,
    )
    top_k: int | None = option(
        None,
        "keep the N most probable tokens",
        group="decoding",
        low=1,
        shown_default="50 with --decoding top_k, 4 with contrastive, else off",
    )
    top_p: float | None = option(
        None,
        "keep the most probable tokens that together hold this probability",
        group="decoding",
        low=0,
        high=1,
        shown_default="0.9 with --decoding top_p, else off",
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
        "keep the tokens whose surprise is nearest to the expected one, until they hold this probability",
        group="decoding",
        above=0,
        high=1,
        shown_default="off",
    )
    penalty_alpha: float = option(
        0.6, "weight of the resemblance in contrastive search; 0 is greedy", group="decoding", low=0, high=1
    )
    seed: int | None = option(
        None,
        "same seed, same text",
        group="decoding",
        low=0,
        high=LARGEST_SEED,
        shown_default="chosen and said when generating",
    )
    replay: str | None = option(
        None,
        "write one sample again, by what its record says: its seed, prompt and sample number",
        group="decoding",
        metavar="SEED/PROMPT/SAMPLE",
        shown_default="off",
    )

    num_beams: int = option(5, "texts kept side by side by the beam strategies", group="beams", low=1)
    num_beam_groups: int | None = option(
        None, "groups of diverse_beam", group="beams", low=1, shown_default="as many as beams"
    )
    diversity_penalty: float = option(
        1.0,
        "what a token costs a group of diverse_beam when an earlier group has just taken it",
        group="beams",
        low=0,
        high=LARGEST_NUMBER,
    )
    length_penalty: float = option(
        1.0,
        "power of the length that the score of a beam is divided by: above 0 favours long texts",
        group="beams",
        low=-LARGEST_POWER,
        high=LARGEST_POWER,
    )
    early_stopping: str = option(
        "false",
        "beam search ends when it has as many finished texts as beams (true), when no better one is likely (false), "
        "or when no better one is possible (never)",
        group="beams",
        choices=("true", "false", "never"),
        flag_value="true",
    )

    repetition_penalty: float = option(
        1.0,
        "above 1 makes tokens that the text already holds less probable; 1 is off",
        group="repetition",
        low=0.001,
        high=LARGEST_NUMBER,
    )
    presence_penalty: float = option(
        0.0,
        "taken off the logit of each token that the text already holds",
        group="repetition",
        low=-LARGEST_NUMBER,
        high=LARGEST_NUMBER,
    )
    frequency_penalty: float = option(
        0.0,
        "taken off the logit of a token each time the text holds it",
        group="repetition",
        low=-LARGEST_NUMBER,
        high=LARGEST_NUMBER,
    )
    penalty_window: int | None = option(
        None,
        "the three penalties look at the last N tokens",
        group="repetition",
        low=1,
        shown_default="all, the prompt included",
    )
    no_repeat_ngram: int = option(
        0, "never write the same N tokens in a row twice, prompt included; 0 is off", group="repetition", low=0
    )
    ban_words: tuple[str, ...] = option(
        (),
        "never write these words, capital or not",
        group="repetition",
        metavar="WORD",
        shown_default="none",
        is_text=True,
    )
    bias: tuple[str, ...] = option(
        (),
        "make words more or less probable, capital or not, by what is added to their logit: dragon=+2",
        group="repetition",
        metavar="WORD=X",
        shown_default="none",
        is_text=True,
    )

    num_sequences: int | None = option(
        None,
        "texts to write for each prompt",
        group="output",
        low=1,
        shown_default=f"{DEFAULT_NUM_SEQUENCES}, or as many as the strategy gives",
    )
    best_of: int | None = option(
        None,
        "draw N texts and give the --num_sequences most probable per token, no two equal",
        group="output",
        low=1,
        shown_default="off",
    )
    max_length: int | None = option(
        None,
        "longest text in tokens, the prompt counted",
        group="output",
        low=1,
        shown_default=str(DEFAULT_MAX_LENGTH),
    )
    max_new_tokens: int | None = option(
        None, "longest continuation in tokens, the prompt not counted", group="output", low=1, shown_default="off"
    )
    min_new_tokens: int = option(0, "the text may not end before so many new tokens", group="output", low=0)
    suppress_eos: bool = option(False, "the model may not end the text at all", group="output")
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
        "cut a text that runs out of room or time back to its last complete sentence; one without any stays as it is",
        group="output",
    )
    prompt_lookup: int | None = option(
        None,
        "guess up to N tokens from what followed the same words before, and read them at once: changes the speed, not "
        "the text; for one text at a time; 0 is off",
        group="output",
        low=0,
        high=64,
        shown_default=f"{DEFAULT_PROMPT_LOOKUP} for greedy on the CPU, else off",
    )
    max_time: float | None = option(
        None, "seconds after which texts end wherever they are", group="output", above=0, shown_default="off"
    )
    overflow: str = option(
        "error",
        "when prompt and new tokens are over the model's positions: refuse, drop the left end of the prompt, or go on "
        "beyond them with a sliding window",
        group="output",
        choices=("error", "truncate", "slide"),
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise UserError(
                f"{self.temperature} is too small: use 0 for greedy, or at least {SMALLEST_TEMPERATURE}", "temperature"
            )
        self._check_lengths()
        self._check_texts()
        if self.num_sequences is not None and self.num_sequences > self.most_sequences:
            raise UserError(self._too_many_sequences(), "num_sequences")
        if self.best_of is not None and self.num_sequences is not None and self.best_of < self.num_sequences:
            raise UserError(
                f"{self.best_of} is less than --num_sequences {self.num_sequences}: draw at least as many as are given",
                "best_of",
            )
        if self.decoding == "diverse_beam" and self.num_beams % self.groups:
            raise UserError(f"{self.groups} cannot divide --num_beams {self.num_beams} evenly", "num_beam_groups")
        self.biases()
        self.replayed()

    def _check_lengths(self) -> None:
        if self.max_length is not None and self.max_new_tokens is not None:
            raise UserError(
                f"{self.max_new_tokens} and --max_length {self.max_length} contradict each other: give one of the two",
                "max_new_tokens",
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"{self.min_new_tokens} is more than --max_new_tokens {self.max_new_tokens}", "min_new_tokens"
            )

    def _check_texts(self) -> None:
        if "" in self.stop:
            raise UserError("needs a string that is not empty", "stop")
        for name in ("stop", "ban_words", "bias"):
            if not all(map(is_utf8, getattr(self, name))):
                raise UserError(
                    "is no text: it holds half a character, such as half an emoji, or a byte that is not UTF-8", name
                )

    @property
    def strategy(self) -> Strategy:
        """The strategy after `temperature 0`, which makes every drawing strategy its undrawn twin."""
        if STRATEGIES[self.decoding].samples and self.temperature == 0:
            return STRATEGIES["beam" if STRATEGIES[self.decoding].beams else "greedy"]
        return STRATEGIES[self.decoding]

    @property
    def most_sequences(self) -> float:
        """How many different texts the strategy can give for one prompt."""
        if self.strategy.beams:
            return self.num_beams
        return math.inf if self.strategy.samples else 1

    @property
    def sequences(self) -> int:
        """How many texts are given for a prompt: what was asked for, or the default as far as the strategy gives it."""
        if self.num_sequences is not None:
            return self.num_sequences
        if self.replay:
            return 1
        drawn = self.best_of if self.best_of is not None and "best_of" in self.strategy.uses else math.inf
        return int(min(DEFAULT_NUM_SEQUENCES, self.most_sequences, drawn))

    @property
    def draws(self) -> int:
        """How many texts are written for a prompt, of which `sequences` are given."""
        return self.best_of if self.best_of is not None and "best_of" in self.strategy.uses else self.sequences

    @property
    def guesses(self) -> int:
        """How many tokens prompt lookup may guess at a time; 0 is none."""
        if "prompt_lookup" not in self.strategy.uses:
            return 0
        if self.prompt_lookup is not None:
            return self.prompt_lookup
        return 0 if self.strategy.samples else DEFAULT_PROMPT_LOOKUP

    @property
    def groups(self) -> int:
        """Groups of beams."""
        if self.decoding != "diverse_beam":
            return 1
        return self.num_beams if self.num_beam_groups is None else self.num_beam_groups

    @property
    def effective_top_k(self) -> int | None:
        """The top-k filter after the default of the strategy; None is off."""
        if "top_k" not in self.strategy.uses:
            return None
        return DEFAULT_TOP_K.get(self.decoding) if self.top_k is None else self.top_k

    @property
    def effective_top_p(self) -> float | None:
        """The top-p filter after the default of the strategy; None is off."""
        if "top_p" not in self.strategy.uses:
            return None
        return DEFAULT_TOP_P.get(self.decoding) if self.top_p is None else self.top_p

    def biases(self) -> dict[str, float]:
        """What to add to the logits of which words; banned ones get minus infinity.

        Raises:
            UserError: a bias that is not `word=number`.
        """
        found = {}
        for entry in self.bias:
            word, equals, number = entry.rpartition("=")
            try:
                found[word] = float(number)
            except ValueError:
                found[word] = math.nan
            if not equals or not word or not abs(found[word]) <= LARGEST_NUMBER:
                raise UserError(
                    f"{entry} is no word and number: write it like dragon=+2, within {LARGEST_NUMBER:g} of 0", "bias"
                )
        if "" in self.ban_words:
            raise UserError("needs words that are not empty", "ban_words")
        return {**found, **dict.fromkeys(self.ban_words, -math.inf)}

    def replayed(self) -> tuple[int, int, int] | None:
        """Seed, prompt and sample of `replay`.

        Raises:
            UserError: not of that form, or more than one text asked for.
        """
        if self.replay is None:
            return None
        parts = self.replay.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise UserError(f"{self.replay} is no sample: write seed, prompt and sample number like 7/0/2", "replay")
        if self.seed is not None:
            raise UserError(
                f"{self.replay} and --seed {self.seed} contradict each other: give one of the two", "replay"
            )
        if self.num_sequences not in (None, 1) or self.best_of is not None:
            raise UserError(f"{self.replay} is one text: leave out --num_sequences and --best_of", "replay")
        seed, prompt, sample = map(int, parts)
        return seed, prompt, sample

    @property
    def _name_of_strategy(self) -> str:
        return self.decoding if self.strategy is STRATEGIES[self.decoding] else f"{self.decoding} at temperature 0"

    def _too_many_sequences(self) -> str:
        if self.strategy.beams:
            return (
                f"{self.num_sequences} is more than --num_beams {self.num_beams}: "
                f"ask for at most {self.num_beams}, or for more beams"
            )
        return (
            f"{self.num_sequences} asked for, but {self._name_of_strategy} gives 1 text: "
            "ask for 1, or choose a strategy that draws, such as --decoding top_p with a temperature above 0"
        )


def decoding_options(given: dict[str, Any], **defaults: Any) -> DecodingOptions:
    """The options of one request: what was given, then the caller's defaults, then our own."""
    merged = {**defaults, **given}
    if given.get("max_new_tokens") is not None and "max_length" not in given:
        merged["max_length"] = None
    return DecodingOptions(**merged)


# Controls that do nothing unless another one is set.
NEEDS = {
    "penalty_window": ("repetition_penalty", "presence_penalty", "frequency_penalty"),
    "keep_stop": ("stop",),
}


def unused_options(given: Iterable[str], options: DecodingOptions) -> list[str]:
    """The given controls that do nothing with the chosen strategy, in the order of the dataclass."""
    controls = {name for strategy in STRATEGIES.values() for name in strategy.uses} - set(options.strategy.uses)
    if options.temperature == 0:
        controls -= {"temperature"}
    for name, others in NEEDS.items():
        if all(getattr(options, other) == default_of(DecodingOptions, other) for other in others):
            controls.add(name)
    return [f.name for f in dataclasses.fields(options) if f.name in controls.intersection(given)]


def why_unused(name: str, options: DecodingOptions) -> str:
    """The reason for which an option does nothing."""
    if name in NEEDS:
        return "it does nothing without " + " or ".join(f"--{other}" for other in NEEDS[name])
    if options.temperature == 0:
        return "--temperature 0 is greedy"
    return f"--decoding {options.decoding} has no use for it"


TEXT_COLUMN = option(
    None,
    "the column of a .csv, .tsv or .jsonl that holds the text",
    group="data",
    metavar="NAME",
    shown_default="prompt and completion where both are there, learning the completion alone; else text, or the only "
    "column",
)


@dataclass(frozen=True)
class PromptOptions:
    """What to continue, and where the texts go."""

    prompt: str = option(
        DEFAULT_PROMPT,
        r"the text to continue; \n in it is a line break; - reads it from stdin",
        group="prompts",
        metavar="TEXT",
        is_text=True,
    )
    prompts_file: str | None = option(
        None,
        'several prompts: a .txt with one a line, a .jsonl with {"prompt": ...} and settings of its own in each, or '
        "the column prompt of a .csv or .tsv",
        group="prompts",
        metavar="FILE",
    )
    text_column: str | None = TEXT_COLUMN
    batch_size: int = option(8, "texts written side by side; changes none of them", group="prompts", low=1)
    output: str | None = option(
        None, "write the texts to this file; - is stdout", group="prompts", metavar="FILE", shown_default="stdout"
    )
    format: str = option(
        "text",
        "the texts alone, or a record for each with all that is known of it",
        group="prompts",
        choices=("text", "jsonl"),
    )
    overwrite: bool = option(False, "replace an output file that is there", group="prompts")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class InspectionOptions:
    """What is shown of the model's probabilities. They are its own, before temperature or any other filter."""

    show_probabilities: bool = option(
        False,
        "after each text, the probability of each of its tokens, its rank, and the entropy of its place; with "
        "--format jsonl in the records",
        group="inspection",
    )
    candidates: int | None = option(
        None,
        "write no text: show the N most probable next tokens of each prompt",
        group="inspection",
        low=1,
        shown_default="off",
    )
    score: str | None = option(
        None,
        "write no text: log-probability and perplexity of each line of this file; - reads stdin",
        group="inspection",
        metavar="FILE",
        shown_default="off",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.candidates is not None and self.score is not None:
            raise UserError(f"{self.candidates} and --score {self.score}: give one of the two", "candidates")


@dataclass(frozen=True)
class SessionOptions:
    """Whether to sit with the model."""

    interactive: bool = option(
        False, "a session: texts grow with you at the keyboard; a --prompt given is its first text", group="prompts"
    )


@dataclass(frozen=True)
class DeviceOptions:
    """Where the model computes."""

    device: str = option(
        "auto", "where to compute; auto takes a GPU where there is one", group="model", metavar="auto|cpu|cuda|mps"
    )

    def __post_init__(self) -> None:
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()):
            raise UserError(f"{self.device} is not a device: use auto, cpu, cuda, cuda:N or mps", "device")


@dataclass(frozen=True)
class PrecisionOptions:
    """What the model's weights are held in while it writes."""

    precision: str = option(
        "auto",
        "what the weights are held in: fewer bits are faster and take less memory, fp32 is exact; "
        "auto is fp16 on a CUDA GPU, else fp32",
        group="model",
        choices=("auto", "fp32", "fp16", "int8"),
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ModelNameOptions:
    """A model by name."""

    model_name: str = option(
        "gpt2",
        f"{', '.join(HUB_MODELS)}, another GPT-2 of the hub, a directory, or the bundled {BUNDLED_MODEL}",
        group="model",
        metavar="NAME",
    )


@dataclass(frozen=True)
class ModelPathOptions:
    """A model by the directory that a training run wrote."""

    model_path: str | None = option(
        None,
        "directory of a fine-tuned model, or one of its checkpoint-N; names work too",
        group="model",
        metavar="DIR",
    )


@dataclass(frozen=True)
class CheckpointOptions:
    """Which of the checkpoints of a training run is meant."""

    checkpoint: str | None = option(
        None,
        "of a directory that a training run wrote: best (lowest validation loss), last, or the step of a checkpoint",
        group="model",
        metavar="best|last|STEP",
        shown_default="the model that the directory itself holds",
    )
    list: bool = option(False, "print the checkpoints of that directory, and end", group="model")

    def __post_init__(self) -> None:
        if self.checkpoint not in (None, "best", "last") and not str(self.checkpoint).isdecimal():
            raise UserError(
                f"{self.checkpoint} is no checkpoint: give best, last or the number of a step", "checkpoint"
            )


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, with what, and where the comparison goes."""

    compare: bool = option(
        False, "put the prompts through the strategies, print texts and figures, and end", group="comparison"
    )
    strategies: str | None = option(
        None,
        "what to compare, with settings of its own: greedy,top_p:temperature=0.9:top_p=0.95,beam:num_beams=3",
        group="comparison",
        metavar="LIST",
        shown_default="all",
    )
    reference: str | None = option(
        None,
        "human text to measure too; without --prompt and --prompts_file its own beginnings are the prompts",
        group="comparison",
        metavar="FILE",
    )
    examples: str = option(
        "line",
        "what one example of --reference is, as for training",
        group="comparison",
        choices=("line", "paragraph", "file"),
    )
    num_prompts: int | None = option(
        None,
        "prompts to take from --reference, evenly over the file",
        group="comparison",
        low=1,
        shown_default=f"{DEFAULT_REFERENCE_PROMPTS}; with --tune as many as it holds, at most {MOST_TUNING_PROMPTS}",
    )
    train_file: str | None = option(
        None,
        "the text that the model learned from: says how many words in a row are copied from it",
        group="comparison",
        metavar="FILE",
    )
    report: str | None = option(
        None, "write the comparison to this page, which opens in any browser", group="comparison", metavar="FILE.html"
    )
    output: str | None = option(
        None,
        "write the comparison to this file: a .json with everything, a .csv or .md with the table",
        group="comparison",
        metavar="FILE",
    )
    overwrite: bool = option(False, "replace files of --output and --report that are there", group="comparison")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TuneOptions:
    """The search for settings."""

    tune: bool = option(
        False,
        "search the settings whose texts are nearest to --reference, and print them beside the default ones",
        group="tuning",
    )
    budget: float = option(
        300.0,
        "seconds for the search and the check of what it found; loading the model and --report come on top",
        group="tuning",
        above=0,
    )
    apply: bool = option(
        False,
        "write the settings found into the model's directory, as what is used when no flag says otherwise; not where "
        "they are no clear gain",
        group="tuning",
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TaskOptions:
    """What gpt2_text_generation.py is to do."""

    task: str | None = option(
        None,
        "what to do",
        group="task",
        choices=("train", "generate", "evaluate"),
        shown_default="none, it is required",
    )

    def __post_init__(self) -> None:
        check_ranges(self)


# The linear layers of a GPT-2, as its files call them; c_proj is in attention and in the MLP.
LORA_TARGETS = ("c_attn", "c_proj", "c_fc")


@dataclass(frozen=True)
class TrainingOptions:
    """From text files to a checkpoint directory."""

    train_file: tuple[str, ...] = option(
        (),
        "the text to learn from, UTF-8: plain text, .csv, .tsv or .jsonl; several files, patterns like 'texts/*.txt', "
        "or a folder",
        group="data",
        metavar="FILE",
        shown_default="none, it is required",
    )
    validation_file: tuple[str, ...] = option(
        (),
        "text to measure on; without it a part of the training examples is held out",
        group="data",
        metavar="FILE",
        shown_default="none",
    )
    validation_split: float = option(
        0.05, "share of the text held out for measuring; 0 holds out none", group="data", low=0, below=1
    )
    examples: str = option(
        "line",
        "what one example of plain text is: each non-empty line, each paragraph (blank lines between), or the whole "
        "file; each row of a table is one",
        group="data",
        choices=("line", "paragraph", "file"),
    )
    text_column: str | None = TEXT_COLUMN
    block_size: int = option(128, "tokens the model sees at once; examples are packed into blocks", group="data", low=4)
    no_cross_examples: bool = option(
        False, "examples that share a block do not see each other: positions and attention restart", group="data"
    )

    dry_run: bool = option(
        False, "print what the run would do, how much memory and time it would take, and end", group="data"
    )
    show_blocks: int = option(
        0, "print the first N blocks as the model will see them, with what carries no loss marked", group="data", low=0
    )

    output_dir: str = option("./fine_tuned_model", "where the model goes", group="run", metavar="DIR")
    resume: str | None = option(
        None,
        "go on from the newest whole checkpoint of the output directory, or from the one at PATH",
        group="run",
        flag_value=NEWEST,
        metavar="PATH",
        shown_default="off",
    )
    resume_anyway: bool = option(
        False, "go on although data, model or settings are not those the run was started with", group="run"
    )
    overwrite: bool = option(
        False, "remove what an earlier run left in the output directory, and nothing else", group="run"
    )
    save_steps: int = option(1000, "steps between checkpoints", group="run", low=1)
    save_total_limit: int = option(
        2, "keep this many checkpoints, the newest ones, and the best; 0 keeps all", group="run", low=0
    )
    eval_steps: int | None = option(
        None,
        "steps between measurements on the validation text, beside the one at the end of each epoch",
        group="run",
        low=1,
        shown_default="off",
    )
    keep: str = option(
        "best",
        "the model that the output directory itself holds: that of the lowest validation loss, or of the last step",
        group="run",
        choices=("best", "last"),
    )
    early_stopping_patience: int | None = option(
        None, "end after this many measurements without a new best", group="run", low=1, shown_default="off"
    )
    logging_steps: int = option(10, "steps between lines of the log", group="run", low=1)
    report_to: tuple[str, ...] = option(
        (),
        "also log to tensorboard, wandb or another service that transformers knows",
        group="run",
        metavar="NAME",
        shown_default="none",
    )
    seed: int = option(
        42, "fixes the initial weights, the order of the data and dropout", group="run", low=0, high=LARGEST_SEED
    )

    push_to_hub: bool = option(
        False,
        "upload the model to the hub of Hugging Face when training is done, as transformers does; its name there by "
        "--trainer hub_model_id=NAME",
        group="run",
    )
    try_: tuple[str, ...] = option(
        (),
        "try settings, each with each, ending the hopeless early, and keep the best model: learning_rate=1e-5,5e-5 "
        "epochs=2,3",
        group="training",
        metavar="NAME=X,Y",
        shown_default="off",
    )
    trainer: tuple[str, ...] = option(
        (),
        "any other field of transformers' TrainingArguments: adam_beta1=0.8",
        group="training",
        metavar="NAME=X",
        shown_default="none",
    )

    epochs: float = option(3.0, "times through the data", group="training", above=0)
    max_steps: int | None = option(None, "end after this many steps, whatever the epochs say", group="training", low=1)
    batch_size: int = option(4, "blocks per step", group="training", low=1)
    gradient_accumulation_steps: int = option(
        1, "forward passes per step: a large batch in the memory of a small one", group="training", low=1
    )
    learning_rate: float = option(5e-5, "step size at its peak", group="training", above=0)
    lr_scheduler_type: str = option(
        "linear",
        "how the learning rate falls",
        group="training",
        choices=("linear", "cosine", "constant", "constant_with_warmup"),
    )
    warmup_steps: int = option(0, "steps in which the learning rate rises to its peak", group="training", low=0)
    weight_decay: float = option(0.0, "pull of the weights towards zero", group="training", low=0)
    adam_beta2: float = option(
        0.999, "memory of AdamW's second moment; 0.95 suits training from scratch", group="training", above=0, below=1
    )
    max_grad_norm: float = option(1.0, "longest gradient; 0 does not clip", group="training", low=0)
    dropout: float | None = option(
        None,
        "share of activations dropped while training",
        group="training",
        low=0,
        below=1,
        shown_default="the model's own",
    )
    fp16: bool = option(False, "compute in 16-bit floats, weights in 32 bits (CUDA)", group="memory")
    bf16: bool = option(False, "compute in bfloat16, weights in 32 bits", group="memory")
    gradient_checkpointing: bool = option(
        False, "recompute activations instead of keeping them: a third slower, far less memory", group="memory"
    )
    compile: str = option(
        "auto",
        "let torch.compile fuse the steps: on, off, or on a CUDA GPU where the run is long enough to repay it",
        group="memory",
        choices=("auto", "on", "off"),
        flag_value="on",
    )
    auto_batch_size: bool = option(
        False,
        "when memory runs out, halve the batch and accumulate twice as often, as often as need be",
        group="memory",
    )
    optim: str = option(
        "adamw_torch_fused",
        "the optimizer; adafactor keeps far less memory, sgd none",
        group="memory",
        choices=("adamw_torch_fused", "adamw_torch", "adafactor", "sgd"),
    )
    lora: bool = option(
        False, "train a small adapter (LoRA) and leave the model itself as it is: far less memory", group="memory"
    )
    lora_rank: int = option(8, "rank of the adapter's matrices", group="memory", low=1)
    lora_alpha: float = option(16, "what the adapter adds is scaled by this over the rank", group="memory", above=0)
    lora_dropout: float = option(0.0, "share of the adapter's input dropped", group="memory", low=0, below=1)
    lora_targets: tuple[str, ...] = option(
        ("c_attn",),
        "the layers that get an adapter: c_attn, c_proj, c_fc",
        group="memory",
        metavar="NAME",
        shown_default="c_attn",
    )
    no_merge: bool = option(
        False, "write the adapter alone, not also the whole model with the adapter added", group="memory"
    )
    freeze_layers: int = option(0, "leave the lowest N layers and the embeddings as they are", group="memory", low=0)

    from_scratch: bool = option(
        False, "train a new tokenizer and a new model instead of fine-tuning one", group="from scratch"
    )
    vocab_size: int = option(4096, "tokens of the new tokenizer", group="from scratch", low=257)
    n_layer: int = option(6, "layers of the new model", group="from scratch", low=1)
    n_embd: int = option(256, "width of the new model", group="from scratch", low=1)
    n_head: int = option(4, "attention heads of the new model", group="from scratch", low=1)
    n_positions: int = option(512, "longest text the new model can see, in tokens", group="from scratch", low=2)

    generate_samples: bool = option(False, "write samples from the new model when training is done", group="samples")
    prompt: str = option(DEFAULT_PROMPT, "what the samples continue", group="samples", metavar="TEXT", is_text=True)
    num_samples: int = option(3, "how many samples", group="samples", low=1)
    sample_steps: int | None = option(
        None,
        "write samples every N steps while training, on screen and in samples.md",
        group="samples",
        low=1,
        shown_default="off",
    )

    def __post_init__(self) -> None:
        several(self, "train_file", "validation_file", "try_", "trainer")
        check_ranges(self)
        if self.fp16 and self.bf16:
            raise UserError("and --bf16 contradict each other: give one of the two", "fp16")
        self._check_adapter()
        self._check_tries()
        if self.resume and self.overwrite:
            raise UserError("and --overwrite contradict each other: give one of the two", "resume")
        if self.resume_anyway and not self.resume:
            raise UserError("does nothing without --resume: give both", "resume_anyway")
        if self.early_stopping_patience and not (self.validation_split or self.validation_file):
            raise UserError(
                f"{self.early_stopping_patience} needs something to measure on: leave out --validation_split 0",
                "early_stopping_patience",
            )
        if self.from_scratch and self.n_embd % self.n_head:
            raise UserError(f"{self.n_embd} cannot be divided among --n_head {self.n_head}", "n_embd")
        if self.from_scratch and self.block_size > self.n_positions:
            raise UserError(
                f"{self.block_size} is over the {self.n_positions} positions of the new model: "
                "lower it, or raise --n_positions",
                "block_size",
            )

    def _check_adapter(self) -> None:
        if unknown := [name for name in self.lora_targets if name not in LORA_TARGETS]:
            raise UserError(f"{unknown[0]} is unknown: choose from {', '.join(LORA_TARGETS)}", "lora_targets")
        if self.lora and (self.from_scratch or self.freeze_layers):
            other = "from_scratch" if self.from_scratch else "freeze_layers"
            raise UserError(f"and --{other} contradict each other: give one of the two", "lora")

    def _check_tries(self) -> None:
        if not self.try_:
            return
        if not (self.validation_split or self.validation_file):
            raise UserError("needs something to measure on: leave out --validation_split 0", "try")
        if self.resume not in (None, NEWEST):
            raise UserError(f"{self.resume}: --try goes on with all its runs: give the flag without a path", "resume")
        if self.push_to_hub:
            raise UserError("and --try contradict each other: upload the winner when it is found", "push_to_hub")
        self.tries()

    def tries(self) -> list[TrainingOptions]:
        """The runs that `try_` asks for: each value of each setting with each of the others, the last changing fastest.

        Raises:
            UserError: an entry that is no name with values, or a setting that cannot be tried.
        """
        return [dataclasses.replace(self, try_=(), **settings) for settings in self.tried_settings()]

    def tried_settings(self) -> list[dict[str, Any]]:
        """What sets the runs that `try_` asks for apart, in their order."""
        values: dict[str, list[Any]] = {}
        for entry in self.try_:
            name, equals, text = entry.replace("-", "_", entry.partition("=")[0].count("-")).partition("=")
            if name not in TRIABLE or (name in FROM_SCRATCH_FLAGS and not self.from_scratch):
                near = difflib.get_close_matches(name, TRIABLE, n=1)
                way_out = f"did you mean {near[0]}?" if near else "choose what changes the training, not the text"
                raise UserError(f"{entry}: {name} cannot be tried: {way_out}", "try")
            try:
                found = [option_value(TrainingOptions, name, value) for value in text.split(",") if value]
            except UserError as error:
                raise UserError(f"{entry}: {error.message}", "try") from None
            if not equals or not found:
                raise UserError(f"{entry} is no setting with values: write it like learning_rate=1e-5,5e-5", "try")
            values.setdefault(name, []).extend(value for value in found if value not in values.get(name, []))
        return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


@dataclass(frozen=True)
class EvaluationOptions:
    """How well a model knows a text."""

    eval_file: tuple[str, ...] = option(
        (),
        "the text to measure on, UTF-8; several files, patterns and folders as for training",
        group="evaluation",
        metavar="FILE",
        shown_default="none, it is required",
    )
    stride: int | None = option(
        None,
        "tokens between one window of context and the next; fewer is slower and fairer",
        group="evaluation",
        low=1,
        shown_default="half the positions",
    )
    examples: str = option(
        "line", "what one example is, as for training", group="data", choices=("line", "paragraph", "file")
    )
    text_column: str | None = TEXT_COLUMN
    batch_size: int = option(4, "windows measured side by side", group="evaluation", low=1)

    def __post_init__(self) -> None:
        several(self, "eval_file")
        check_ranges(self)


# Flags that shape a new model: they mean nothing when an existing one is fine-tuned.
FROM_SCRATCH_FLAGS = tuple(f.name for f in dataclasses.fields(TrainingOptions) if f.metadata["group"] == "from scratch")

# What --try may set: what changes the training and leaves the text to measure on, and its tokens, as they are.
TRIABLE = tuple(
    f.name
    for f in dataclasses.fields(TrainingOptions)
    if f.name == "block_size" or f.metadata["group"] in ("training", "memory", "from scratch")
    if f.name
    not in ("try_", "trainer", "from_scratch", "vocab_size", "compile", "auto_batch_size", "no_merge", "lora_targets")
)

# What gpt2_text_generation.py does differently from the two scripts it joins.
ALL_IN_ONE_DEFAULTS: dict[str, Any] = {
    "output_dir": "./trained_model",
    "decoding": "greedy",
    "max_length": 100,
    "num_sequences": 1,
}


def default_of(options: type, name: str) -> Any:
    """The default of one option."""
    return next(f.default for f in dataclasses.fields(options) if f.name == name)


def only(options: type, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that belong to an options dataclass."""
    names = {f.name for f in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if name in names}


def plain_type(options: type, name: str) -> type:
    """The type of an option without its `| None`; `tuple` for one that may be given several times."""
    hint = typing.get_type_hints(options)[name]
    if typing.get_origin(hint) is tuple:
        return tuple
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def several(options: Any, *names: str) -> None:
    """Take a single string for what may be several."""
    for name in names:
        if isinstance(value := getattr(options, name), str):
            object.__setattr__(options, name, (value,))


def option_value(options: type, name: str, text: str) -> Any:
    """The value of an option written as `name=text`; `off` and `none` take an option back that can be off.

    Raises:
        UserError: the text is of another type.
    """
    kind = plain_type(options, name)
    if text.lower() in ("off", "none") and (default := default_of(options, name)) in (None, (), False):
        return default
    if next(f for f in dataclasses.fields(options) if f.name == name).metadata["is_text"]:
        text = read_escapes(text)
    if kind is tuple:
        return (text,)
    if kind is bool:
        if text.lower() in ("on", "true"):
            return True
        raise UserError(f"{text} is no value for it: expected on or off", name)
    if kind in (int, float):
        return number_from(text, kind, name)
    return text


def number_from(text: str, kind: type, name: str) -> Any:
    """The number that a text holds.

    Raises:
        UserError: it holds none of that kind.
    """
    try:
        return kind(text)
    except ValueError:
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        expected = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{shown} is no value for it: expected {expected}", name) from None


def check_ranges(options: Any) -> None:
    """Refuse by name the first option whose value lies outside what its field allows.

    Raises:
        UserError: names the option, the value and the range.
    """
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if value is None:
            continue
        rule = f.metadata
        if rule["choices"] and value not in rule["choices"]:
            near = difflib.get_close_matches(str(value), rule["choices"], n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(rule['choices'])}"
            raise UserError(f"{value} is unknown: {hint}", f.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not _within(value, rule):
            raise UserError(f"{value} is out of range: it must be {_range_in_words(rule, value)}", f.name)


def _within(value: float, rule: Any) -> bool:
    return (
        math.isfinite(value)
        and not _is_beyond_counting(value, rule)
        and (rule["low"] is None or value >= rule["low"])
        and (rule["above"] is None or value > rule["above"])
        and (rule["high"] is None or value <= rule["high"])
        and (rule["below"] is None or value < rule["below"])
    )


def _is_beyond_counting(value: float, rule: Any) -> bool:
    return rule["high"] is None and isinstance(value, int) and value > LARGEST_COUNT


def _range_in_words(rule: Any, value: float) -> str:
    words = {"low": "at least {}", "above": "more than {}", "high": "at most {}", "below": "less than {}"}
    ends = {**rule, "high": LARGEST_COUNT} if _is_beyond_counting(value, rule) else rule
    parts = [text.format(ends[end]) for end, text in words.items() if ends[end] is not None]
    return " and ".join(parts if math.isfinite(value) else [*parts, "finite"])
