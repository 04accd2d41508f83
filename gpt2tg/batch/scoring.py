"""Score given texts, and list the most probable next tokens of prompts. Nothing is generated."""

from __future__ import annotations

import dataclasses
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

# The number of lines that a process takes at a time.
LINES_OF_A_TASK = 8


@dataclass(frozen=True)
class ScoredLine:
    """A line of text, scored as a text of its own. All fields can be stored as JSON."""

    number: int
    """Its number among the scored lines, from 0."""
    shown: str
    """Its row in the table, its record, or its row with a table of tokens."""
    logprob: float
    """The log-probability of the line: the sum over its tokens, in nats."""
    tokens: int


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
    score = _scorer(generator, where, inspection)
    scored = (score(number, *line) for number, line in enumerate(lines))
    _write(_with_totals(_with_progress(scored, len(lines)), where, inspection), where)


def write_scores_together(
    generator: Generator, lines: Sequence[tuple[int, str]], where: PromptOptions, inspection: InspectionOptions
) -> None:
    """Write the scores as `write_scores` does, but compute them in all processes of the launcher.

    The first process calls this, the others `help_to_score`. Nothing is written before all lines are scored.
    """
    from gpt2tg.batch.spread import spread

    numbered = [(number, *line) for number, line in enumerate(lines)]
    tasks = (numbered[start : start + LINES_OF_A_TASK] for start in range(0, len(numbered), LINES_OF_A_TASK))
    scored: list[ScoredLine] = []
    with _bar(len(lines)) as bar:

        def put(result: dict[str, Any]) -> None:
            scored.append(ScoredLine(**result))
            bar.update()

        spread(tasks, _performer(generator, where, inspection), put)
    scored.sort(key=lambda line: line.number)
    _write(_with_totals(iter(scored), where, inspection), where)


def help_to_score(generator: Generator, where: PromptOptions, inspection: InspectionOptions) -> None:
    """Score lines that the first process writes, until none is left."""
    from gpt2tg.batch.spread import spread

    spread(None, _performer(generator, where, inspection))


def _performer(
    generator: Generator, where: PromptOptions, inspection: InspectionOptions
) -> Callable[[list[list[Any]]], Iterator[dict[str, Any]]]:
    """Return the function that scores the lines of a task, and yields them as JSON."""
    score = _scorer(generator, where, inspection)
    return lambda task: (dataclasses.asdict(score(*line)) for line in task)


def _bar(lines: int) -> tqdm[Any]:
    return tqdm(total=lines, desc="measuring", unit=" lines", leave=False, disable=None if lines > 1 else True)


def _with_progress(scored: Iterator[ScoredLine], lines: int) -> Iterator[ScoredLine]:
    with _bar(lines) as bar:
        for line in scored:
            yield line
            bar.update()


def _scorer(
    generator: Generator, where: PromptOptions, inspection: InspectionOptions
) -> Callable[[int, int, str], ScoredLine]:
    """Return the function that scores a line, given its number among the lines, its number in the file and its text."""

    def score(number: int, line: int, text: str) -> ScoredLine:
        tokens = inspect_text(generator, text)
        logprob = math.fsum(token.logprob for token in tokens)
        if where.format == "jsonl":
            shown = json.dumps(_score_entry(line, text, tokens, logprob, inspection), ensure_ascii=False)
        else:
            shown = f"{_figures(str(line), logprob, len(tokens))}  {_excerpt(text)}"
            if inspection.show_probabilities:
                shown = f"{HEADING}\n{shown}\n\n{token_table(tokens)}"
        return ScoredLine(number, shown, logprob, len(tokens))

    return score


def _score_entry(
    line: int, text: str, tokens: Sequence[InspectedToken], logprob: float, inspection: InspectionOptions
) -> dict[str, Any]:
    found = _perplexity(logprob, len(tokens))
    entry: dict[str, Any] = {
        "line": line,
        "text": text,
        "text_tokens": len(tokens),
        "logprob": logprob,
        "perplexity": found if math.isfinite(found) else None,
    }
    if inspection.show_probabilities:
        entry["tokens"] = [token_entry(token) for token in tokens]
    return entry


def _with_totals(lines: Iterator[ScoredLine], where: PromptOptions, inspection: InspectionOptions) -> Iterator[str]:
    """Yield the records of the lines, or a row for each line and one for all lines.

    Each line is yielded as soon as it is scored, so the columns have fixed widths.
    """
    if where.format == "jsonl":
        yield from (line.shown for line in lines)
        return
    logprob, tokens, count = 0.0, 0, 0
    if not inspection.show_probabilities:
        yield HEADING
    for line in lines:
        yield f"\n{line.shown}" if count and inspection.show_probabilities else line.shown
        logprob, tokens, count = logprob + line.logprob, tokens + line.tokens, count + 1
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
