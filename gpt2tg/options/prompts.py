"""What to continue, where the results go, and what to show of the model's probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2tg.errors import UserError
from gpt2tg.options.data import TEXT_COLUMN
from gpt2tg.options.fields import Options, option

OutputFormat = Literal["text", "jsonl"]

DEFAULT_PROMPT = "Once upon a time"

# What a session generates per turn by default: one sequence of so many new tokens, since its text grows.
SESSION_NEW_TOKENS = 100
SESSION_SEQUENCES = 1


@dataclass(frozen=True)
class PromptOptions(Options):
    """What to continue, and where the texts go."""

    prompt: str = option(
        DEFAULT_PROMPT,
        r"the text to continue; \n is a line break; - reads it from stdin",
        group="prompts",
        metavar="TEXT",
        is_text=True,
        is_common=True,
    )
    prompts_file: str | None = option(
        None,
        'many prompts: a .txt with one per line, a .jsonl with {"prompt": ...} and optional settings per line, or '
        "the column prompt of a .csv or .tsv",
        group="prompts",
        metavar="FILE",
        is_common=True,
    )
    chat: bool = option(
        False,
        "each prompt is a question: it is put into the chat template of the model, and only the answer is written. "
        'Lines with {"messages": [...]} of a .jsonl are conversations without this flag too',
        group="prompts",
        is_common=True,
    )
    text_column: str | None = TEXT_COLUMN
    batch_size: int = option(
        8, "batch size: sequences generated at a time; does not change the texts", group="prompts", low=1
    )
    output: str | None = option(
        None,
        "write the texts to this file; - is stdout",
        group="prompts",
        metavar="FILE",
        shown_default="stdout",
        is_common=True,
    )
    format: OutputFormat = option(
        "text",
        "the texts alone, or one JSON record per text with everything about it",
        group="prompts",
        choices=OutputFormat,
    )
    overwrite: bool = option(False, "replace an existing output file", group="prompts")


@dataclass(frozen=True)
class InspectionOptions(Options):
    """What to show of the model's probabilities, as they are before temperature and all filters."""

    show_probabilities: bool = option(
        False,
        "after each text, show the probability and the rank of each of its tokens and the entropy at each position; "
        "with --format jsonl they are part of the records",
        group="inspection",
    )
    candidates: int | None = option(
        None,
        "generate nothing: show the N most probable next tokens of each prompt",
        group="inspection",
        low=1,
        shown_default="off",
    )
    score: str | None = option(
        None,
        "generate nothing: show log-probability and perplexity of each line of this file; - reads stdin",
        group="inspection",
        metavar="FILE",
        shown_default="off",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None and self.score is not None:
            raise UserError(f"{self.candidates} and --score {self.score}: give one of the two", "candidates")


@dataclass(frozen=True)
class SessionOptions(Options):
    """Whether to start an interactive session."""

    interactive: bool = option(
        False,
        "start an interactive session, in which you and the model write a text in turns; it begins with --prompt if "
        "given",
        group="prompts",
        is_common=True,
    )
