"""Every option of every command: its name, default, help text and range, once.

The command line, the Python API and the session all read these dataclasses. Nothing here imports more
than the standard library, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gpt2tg.errors import UserError

# The name of the model that travels inside the package.
BUNDLED_MODEL = "gpt2-tiny"

DEFAULT_PROMPT = "Once upon a time"

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
) -> Any:
    """A dataclass field that knows how to present and check itself.

    `low` and `high` are the allowed ends, `above` and `below` the excluded ones. `flag_value` is what the
    flag means when it stands without a value. `shown_default` replaces the default in the help text.
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
    )
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Strategy:
    """What a decoding strategy is and which of the optional controls it listens to."""

    summary: str
    uses: tuple[str, ...]
    samples: bool = False
    beams: bool = False


STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy("the most probable token at every step", uses=()),
    "beam": Strategy(
        "the most probable of several texts kept side by side", ("num_beams", "early_stopping"), beams=True
    ),
    "sample": Strategy("draws from the whole distribution", ("temperature", "seed"), samples=True),
    "top_k": Strategy("draws from the k most probable tokens", ("temperature", "top_k", "top_p", "seed"), samples=True),
    "top_p": Strategy(
        "draws from the smallest set of tokens that holds probability p",
        ("temperature", "top_k", "top_p", "seed"),
        samples=True,
    ),
    "beam_sample": Strategy(
        "beams that draw their next tokens",
        ("num_beams", "early_stopping", "temperature", "top_k", "top_p", "seed"),
        samples=True,
        beams=True,
    ),
}

# The number of tokens that `--decoding top_k` keeps unless told otherwise.
DEFAULT_TOP_K = 50
# The probability that `--decoding top_p` keeps unless told otherwise.
DEFAULT_TOP_P = 0.9
# The room for new tokens that a caller gets who names no length.
DEFAULT_MAX_LENGTH = 200


@dataclass(frozen=True)
class DecodingOptions:
    """How the next token is chosen, how many texts are wanted and how long they may be."""

    decoding: str = option(
        "top_p", "how the next token is chosen", group="decoding", choices=tuple(STRATEGIES), metavar="STRATEGY"
    )
    temperature: float = option(
        0.7, "below 1 sharpens the distribution, above 1 flattens it, 0 is greedy", group="decoding", low=0
    )
    top_k: int | None = option(
        None,
        "keep the K most probable tokens",
        group="decoding",
        low=1,
        shown_default=f"{DEFAULT_TOP_K} with --decoding top_k, else off",
    )
    top_p: float | None = option(
        None,
        "keep the most probable tokens that together hold this probability",
        group="decoding",
        low=0,
        high=1,
        shown_default=f"{DEFAULT_TOP_P} with --decoding top_p, else off",
    )
    no_repeat_ngram: int = option(
        0, "never write the same N tokens in a row twice, prompt included; 0 is off", group="decoding", low=0
    )
    num_beams: int = option(5, "texts kept side by side by beam and beam_sample", group="decoding", low=1)
    early_stopping: str = option(
        "false",
        "beam search ends when it has as many finished texts as beams (true), when no better one is likely (false), "
        "or when no better one is possible (never)",
        group="decoding",
        choices=("true", "false", "never"),
        flag_value="true",
    )
    num_sequences: int = option(3, "texts to write for the prompt", group="output", low=1)
    max_length: int | None = option(
        None,
        "longest text in tokens, the prompt counted",
        group="output",
        low=1,
        shown_default=str(DEFAULT_MAX_LENGTH),
    )
    max_new_tokens: int | None = option(
        None, "longest continuation in tokens, the prompt not counted", group="output", low=1
    )
    seed: int | None = option(
        None,
        "same seed, same text",
        group="decoding",
        low=0,
        high=LARGEST_SEED,
        shown_default="chosen and said when generating",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_length is not None and self.max_new_tokens is not None:
            raise UserError(
                f"{self.max_new_tokens} and --max_length {self.max_length} contradict each other: give one of the two",
                "max_new_tokens",
            )
        if self.num_sequences > self.most_sequences:
            raise UserError(self._too_many_sequences(), "num_sequences")

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
    def effective_top_k(self) -> int | None:
        """The top-k filter after the default of the strategy; None is off."""
        if "top_k" not in self.strategy.uses:
            return None
        return DEFAULT_TOP_K if self.top_k is None and self.decoding == "top_k" else self.top_k

    @property
    def effective_top_p(self) -> float | None:
        """The top-p filter after the default of the strategy; None is off."""
        if "top_p" not in self.strategy.uses:
            return None
        return DEFAULT_TOP_P if self.top_p is None and self.decoding == "top_p" else self.top_p

    def _too_many_sequences(self) -> str:
        if self.strategy.beams:
            return (
                f"{self.num_sequences} is more than --num_beams {self.num_beams}: "
                f"ask for at most {self.num_beams}, or for more beams"
            )
        return (
            f"{self.num_sequences} asked for, but {self.decoding} gives 1 text: "
            "ask for 1, or choose a strategy that draws, such as --decoding top_p"
        )


def decoding_options(given: dict[str, Any], **defaults: Any) -> DecodingOptions:
    """The options of one request: what was given, then the caller's defaults, then our own.

    The default number of texts is a wish, not a demand: strategies that give fewer give what they can.
    """
    merged = {**defaults, **given}
    if merged.get("max_new_tokens") is not None and "max_length" not in given:
        merged["max_length"] = None
    if "num_sequences" not in given:
        one = DecodingOptions(**{**merged, "num_sequences": 1})
        wish = merged.get("num_sequences", default_of(DecodingOptions, "num_sequences"))
        merged["num_sequences"] = int(min(wish, one.most_sequences))
    return DecodingOptions(**merged)


def unused_options(given: Iterable[str], options: DecodingOptions) -> list[str]:
    """The given controls that the chosen strategy does not listen to, in the order of the dataclass."""
    controls = {name for strategy in STRATEGIES.values() for name in strategy.uses}
    if options.temperature == 0:
        controls -= {"temperature"}
    given = set(given)
    return [f.name for f in dataclasses.fields(options) if f.name in given & controls - set(options.strategy.uses)]


@dataclass(frozen=True)
class PromptOptions:
    """What to continue."""

    prompt: str = option(DEFAULT_PROMPT, "the text to continue", group="output", metavar="TEXT")


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
class ModelNameOptions:
    """A model by name."""

    model_name: str = option(
        "gpt2",
        "gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, another GPT-2 of the hub, a directory, or the bundled "
        f"{BUNDLED_MODEL}",
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
class CompareOptions:
    """What the demo shows."""

    compare: bool = option(False, "print one prompt through every strategy, and end", group="output")


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


@dataclass(frozen=True)
class TrainingOptions:
    """From a text file to a checkpoint directory."""

    train_file: str | None = option(None, "the text to learn from, UTF-8", group="data", metavar="FILE")
    validation_file: str | None = option(
        None, "text to measure on; without it a part of the training examples is held out", group="data", metavar="FILE"
    )
    validation_split: float = option(
        0.05, "share of the examples held out for measuring; 0 holds out none", group="data", low=0, below=1
    )
    examples: str = option(
        "line",
        "what one example is: each non-empty line, each paragraph (blank lines between), or the whole file",
        group="data",
        choices=("line", "paragraph", "file"),
    )
    block_size: int = option(128, "tokens the model sees at once; examples are packed into blocks", group="data", low=4)

    output_dir: str = option("./fine_tuned_model", "where the model goes", group="run", metavar="DIR")
    resume: bool = option(False, "go on from the newest checkpoint in the output directory", group="run")
    overwrite: bool = option(
        False, "remove what an earlier run left in the output directory, and nothing else", group="run"
    )
    save_steps: int = option(1000, "steps between checkpoints", group="run", low=1)
    save_total_limit: int | None = option(
        None, "keep this many checkpoints, the newest ones", group="run", low=1, shown_default="all"
    )
    logging_steps: int = option(10, "steps between lines of the log", group="run", low=1)
    seed: int = option(
        42, "fixes the initial weights, the order of the data and dropout", group="run", low=0, high=LARGEST_SEED
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
    fp16: bool = option(False, "compute in 16-bit floats, weights in 32 bits (CUDA)", group="training")
    bf16: bool = option(False, "compute in bfloat16, weights in 32 bits", group="training")
    gradient_checkpointing: bool = option(
        False, "recompute activations instead of keeping them: a third slower, far less memory", group="training"
    )

    from_scratch: bool = option(
        False, "train a new tokenizer and a new model instead of fine-tuning one", group="from scratch"
    )
    vocab_size: int = option(4096, "tokens of the new tokenizer", group="from scratch", low=257)
    n_layer: int = option(6, "layers of the new model", group="from scratch", low=1)
    n_embd: int = option(256, "width of the new model", group="from scratch", low=1)
    n_head: int = option(4, "attention heads of the new model", group="from scratch", low=1)
    n_positions: int = option(512, "longest text the new model can see, in tokens", group="from scratch", low=2)

    generate_samples: bool = option(False, "write samples from the new model when training is done", group="samples")
    prompt: str = option(DEFAULT_PROMPT, "what the samples continue", group="samples", metavar="TEXT")
    num_samples: int = option(3, "how many samples", group="samples", low=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.fp16 and self.bf16:
            raise UserError("and --bf16 contradict each other: give one of the two", "fp16")
        if self.resume and self.overwrite:
            raise UserError("and --overwrite contradict each other: give one of the two", "resume")
        if self.from_scratch and self.n_embd % self.n_head:
            raise UserError(f"{self.n_embd} cannot be divided among --n_head {self.n_head}", "n_embd")
        if self.from_scratch and self.block_size > self.n_positions:
            raise UserError(
                f"{self.block_size} is over the {self.n_positions} positions of the new model: "
                "lower it, or raise --n_positions",
                "block_size",
            )


@dataclass(frozen=True)
class EvaluationOptions:
    """How well a model knows a text."""

    eval_file: str | None = option(None, "the text to measure on, UTF-8", group="evaluation", metavar="FILE")
    stride: int | None = option(
        None,
        "tokens between one window of context and the next; fewer is slower and fairer",
        group="evaluation",
        low=1,
        shown_default="half the positions",
    )
    examples: str = option("line", "see above", group="data", choices=("line", "paragraph", "file"))
    batch_size: int = option(4, "see above", group="training", low=1)

    def __post_init__(self) -> None:
        check_ranges(self)


# Flags that shape a new model: they mean nothing when an existing one is fine-tuned.
FROM_SCRATCH_FLAGS = tuple(f.name for f in dataclasses.fields(TrainingOptions) if f.metadata["group"] == "from scratch")

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
    """The type of an option without its `| None`."""
    hint = typing.get_type_hints(options)[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


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
            raise UserError(f"{value} is unknown: choose from {', '.join(rule['choices'])}", f.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not _within(value, rule):
            raise UserError(f"{value} is out of range: it must be {_range_in_words(rule)}", f.name)


def _within(value: float, rule: Any) -> bool:
    return (
        math.isfinite(value)
        and (rule["low"] is None or value >= rule["low"])
        and (rule["above"] is None or value > rule["above"])
        and (rule["high"] is None or value <= rule["high"])
        and (rule["below"] is None or value < rule["below"])
    )


def _range_in_words(rule: Any) -> str:
    words = {"low": "at least {}", "above": "more than {}", "high": "at most {}", "below": "less than {}"}
    parts = [text.format(rule[end]) for end, text in words.items() if rule[end] is not None]
    return " and ".join([*parts, "finite"])
