"""Score given texts, and list the most probable next tokens of prompts. Nothing is generated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt2tg.batch.prompts import Prompt
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.inspection.tables import candidate_entry, candidate_table, quoted, token_entry, token_table
from gpt2tg.inspection.tokens import InspectedToken, inspect_text, next_token
from gpt2tg.io.outputs import write_whole
from gpt2tg.io.streams import write_out
from gpt2tg.options import InspectionOptions, PromptOptions
from gpt2tg.reading import check_text_column, is_table, read_lines, read_stdin, read_table

HEADING = " line  tokens  log-probability  perplexity  text"

# The number of characters of a line that the table shows.
EXCERPT = 40


@dataclass(frozen=True)
class ScoredLine:
    """A line of text and the probabilities of its tokens, scored as a text of its own."""

    number: int
    """The line number in its file, from 1."""
    text: str
    tokens: Sequence[InspectedToken]

    @property
    def logprob(self) -> float:
        """The log-probability of the line: the sum over its tokens, in nats."""
        return math.fsum(token.logprob for token in self.tokens)


def lines_to_score(
    source: str, text_column: str | None = None, say: Callable[[str], None] = lambda _: None
) -> list[tuple[int, str]]:
    """Return the lines of a file that are not blank, or the texts of a table, each with its line number.

    Args:
        source: the name of the file; `-` is stdin.
        text_column: the column of a table to read.
        say: called with a line that names the column read from a table.

    Raises:
        UserError: the file cannot be read or has no text.
    """
    path = Path(source)
    if source != "-" and is_table(path):
        found = [(row.line, row.prompt + row.text) for row in read_table(path, "score", text_column, say)]
    else:
        check_text_column(text_column, path)
        lines = read_stdin("score").split("\n") if source == "-" else read_lines(path, "score", say)
        found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UserError(f"{source} holds no text", "score")
    return found


def write_scores(
    generator: Generator, lines: Sequence[tuple[int, str]], where: PromptOptions, inspection: InspectionOptions
) -> None:
    """Write the log-probability and perplexity of each line, as a table or as JSON records."""
    bar = tqdm(lines, desc="measuring", unit=" lines", leave=False, disable=None if len(lines) > 1 else True)
    scored = (ScoredLine(number, text, inspect_text(generator, text)) for number, text in bar)
    if where.format == "jsonl":
        _write((json.dumps(_score_entry(line, inspection), ensure_ascii=False) for line in scored), where)
    else:
        _write(_score_table(scored, inspection), where)


def _score_entry(line: ScoredLine, inspection: InspectionOptions) -> dict[str, Any]:
    found = _perplexity(line.logprob, len(line.tokens))
    entry: dict[str, Any] = {
        "line": line.number,
        "text": line.text,
        "text_tokens": len(line.tokens),
        "logprob": line.logprob,
        "perplexity": found if math.isfinite(found) else None,
    }
    if inspection.show_probabilities:
        entry["tokens"] = [token_entry(token) for token in line.tokens]
    return entry


def _score_table(lines: Iterator[ScoredLine], inspection: InspectionOptions) -> Iterator[str]:
    """Yield a row for each line and one for all lines; with `--show_probabilities`, a table of tokens for each line.

    Each line is yielded as soon as it is scored, so the columns have fixed widths.
    """
    logprob, tokens, count = 0.0, 0, 0
    if not inspection.show_probabilities:
        yield HEADING
    for line in lines:
        row = f"{_figures(str(line.number), line.logprob, len(line.tokens))}  {_excerpt(line.text)}"
        between = "\n" if count else ""
        yield f"{between}{HEADING}\n{row}\n\n{token_table(line.tokens)}" if inspection.show_probabilities else row
        logprob, tokens, count = logprob + line.logprob, tokens + len(line.tokens), count + 1
    if count > 1:
        between = f"\n{HEADING}\n" if inspection.show_probabilities else ""
        yield between + _figures("all", logprob, tokens)


def _figures(name: str, logprob: float, tokens: int) -> str:
    return f"{name:>5}  {tokens:>6}  {logprob:>15.2f}  {_perplexity(logprob, tokens):>10.2f}"


def _perplexity(logprob: float, tokens: int) -> float:
    return perplexity(-logprob / tokens)


def _excerpt(text: str) -> str:
    line = " ".join(text.splitlines())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 3].rstrip() + "..."


def write_candidates(
    generator: Generator, prompts: Sequence[Prompt], where: PromptOptions, count: int, overflow: str
) -> None:
    """Write the most probable next tokens of each prompt, as tables or as JSON records."""
    if where.format == "jsonl":
        _write(_candidate_records(generator, prompts, count, overflow), where)
    else:
        _write(_candidate_tables(generator, prompts, count, overflow), where)


def _candidate_records(generator: Generator, prompts: Sequence[Prompt], count: int, overflow: str) -> Iterator[str]:
    for index, prompt in enumerate(prompts):
        found = next_token(generator, prompt.text, count, overflow)
        entry = {
            "prompt": prompt.text,
            "prompt_index": index,
            "entropy": found.entropy,
            "candidates": [candidate_entry(candidate) for candidate in found.candidates],
        }
        yield json.dumps(entry, ensure_ascii=False)


def _candidate_tables(generator: Generator, prompts: Sequence[Prompt], count: int, overflow: str) -> Iterator[str]:
    for index, prompt in enumerate(prompts):
        table = candidate_table(next_token(generator, prompt.text, count, overflow))
        between = "\n" if index else ""
        yield f"{between}{quoted(prompt.text)}\n{table}" if len(prompts) > 1 else table


def _write(pieces: Iterator[str], where: PromptOptions) -> None:
    """Write to stdout piece by piece, or to a file once all pieces are complete."""
    if where.output is None:
        for piece in pieces:
            write_out(f"{piece}\n")
    else:
        write_whole(Path(where.output), "".join(f"{piece}\n" for piece in pieces))
