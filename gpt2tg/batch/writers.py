"""Write texts to stdout or to a file, as plain text or as JSON Lines, and read what an interrupted run has written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gpt2tg.batch.prompts import Prompt, answered
from gpt2tg.errors import UserError
from gpt2tg.generation.samples import Sample
from gpt2tg.inspection.tables import token_entry, token_table
from gpt2tg.inspection.tokens import InspectedToken
from gpt2tg.io.outputs import append_whole, holds_something, is_stream, naming, open_stream, write_all, write_whole
from gpt2tg.io.streams import write_out
from gpt2tg.options import DecodingOptions, PromptOptions

# A function that returns the token probabilities of a sample, or None if they are not to be written.
Inspect = Callable[[Sample], Sequence[InspectedToken]] | None


# Prompts that are conversations, by their number.
Questions = Mapping[int, Prompt]
NO_QUESTIONS: Questions = {}


class Sink(Protocol):
    """An output that takes the texts of one prompt after the other."""

    def put(self, samples: Sequence[Sample], options: DecodingOptions) -> None:
        """Write the texts of the next prompt."""

    def close(self) -> None:
        """Finish the output after the last prompt."""


class TextSink:
    """Writes plain texts with a blank line between them. A file appears only once it is complete."""

    def __init__(
        self,
        path: Path | None,
        say: Callable[[str], None],
        inspect: Inspect = None,
        questions: Questions = NO_QUESTIONS,
    ) -> None:
        self._path, self._questions = path, questions
        self._say = say
        self._inspect = inspect
        self._texts: list[str] = []
        self._is_first = True

    def put(self, samples: Sequence[Sample], options: DecodingOptions) -> None:
        """Write the texts of the next prompt. On stdout, a line on stderr numbers each of several texts."""
        if self._path is not None:
            self._texts += [self._shown(sample) for sample in samples]
            return
        for number, sample in enumerate(samples, start=1):
            if len(samples) > 1:
                self._say(f"--- text {number} of {len(samples)} ---")
            between = "" if self._is_first else "\n"
            write_out(f"{between}{self._shown(sample)}\n")
            self._is_first = False

    def close(self) -> None:
        """Write the file, if the output is one."""
        if self._path is not None:
            write_whole(self._path, "\n\n".join(self._texts) + "\n")

    def _shown(self, sample: Sample) -> str:
        text = sample.completion.strip() if sample.prompt_index in self._questions else sample.text
        return text if self._inspect is None else f"{text}\n\n{token_table(self._inspect(sample))}"


class RecordSink:
    """Writes a JSON record per text. A file grows prompt by prompt, so that a later run can resume."""

    def __init__(
        self, path: Path | None, overwrite: bool, inspect: Inspect = None, questions: Questions = NO_QUESTIONS
    ) -> None:
        self._path, self._questions = path, questions
        self._inspect = inspect
        # A file that is replaced is kept until the first prompt is done.
        self._begins = path is not None and (overwrite or not path.exists())
        self._stream: BinaryIO | None = None

    def put(self, samples: Sequence[Sample], options: DecodingOptions) -> None:
        """Write the records of the next prompt in one go."""
        records = [self._record(sample, len(samples), options) for sample in samples]
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in records)
        if self._path is None:
            write_out(lines)
        elif is_stream(self._path):
            self._to_stream(self._path, lines)
        elif self._begins:
            write_whole(self._path, lines)
        else:
            append_whole(self._path, lines)
        self._begins = False

    def _to_stream(self, path: Path, lines: str) -> None:
        with naming(path):
            self._stream = self._stream or open_stream(path)
            try:
                write_all(self._stream, lines)
            except OSError:
                self.close()
                raise

    def _record(self, sample: Sample, texts: int, options: DecodingOptions) -> dict[str, Any]:
        entry = record(sample, texts, options)
        if (question := self._questions.get(sample.prompt_index)) is not None:
            entry["messages"] = answered(question, sample.completion)
        if self._inspect is not None:
            entry["tokens"] = [token_entry(token) for token in self._inspect(sample)]
        return entry

    def close(self) -> None:
        """Close a pipe, so that its reader sees the end."""
        if self._stream is not None:
            self._stream.close()


def record(sample: Sample, texts: int, options: DecodingOptions) -> dict[str, Any]:
    """Return a text as a JSON object. `texts` is the number of texts of its prompt."""
    entry = {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "prompt_index": sample.prompt_index,
        "sample": sample.index,
        "texts": texts,
        "prompt_tokens": sample.prompt_tokens,
        "completion_tokens": len(sample.ids),
        "finish_reason": sample.finish_reason,
        "seed": sample.seed,
        "replay": sample.replay,
        "logprob": sample.logprob,
        "settings": recorded_settings(options),
    }
    if options.end_at_sentence:
        entry["unfinished"] = sample.is_unfinished
    return entry if sample.ranking_score is None else {**entry, "ranking_score": sample.ranking_score}


def recorded_settings(options: DecodingOptions) -> dict[str, Any]:
    """Return the options as a JSON object, with the defaults of the strategy filled in.

    The seed is left out, since records have a field for it, and so is what changes only the speed.
    """
    values = dataclasses.asdict(options)
    values |= {"top_k": options.effective_top_k, "top_p": options.effective_top_p}
    kept = {name: value for name, value in values.items() if name not in ("seed", "replay", "prompt_lookup")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def open_sink(
    options: PromptOptions,
    say: Callable[[str], None],
    inspect: Inspect = None,
    questions: Questions = NO_QUESTIONS,
) -> Sink:
    """Return the output that the options name.

    Args:
        say: called with notices for the user.
        questions: the prompts that are conversations, by their number: only the answers to them are written.
    """
    path = None if options.output is None else Path(options.output)
    if options.format == "jsonl":
        return RecordSink(path, options.overwrite, inspect, questions)
    return TextSink(path, say, inspect, questions)


@dataclass(frozen=True)
class Earlier:
    """The records that an earlier run of the same command has left in its output file."""

    path: Path
    records: list[dict[str, Any]]
    """The records of prompts all of whose texts are there."""
    size: int
    """Their size in bytes. The rest of the file is truncated, or belongs to a prompt that was not finished."""

    def truncate(self) -> None:
        """Truncate the file after the records of the last complete prompt."""
        if self.size < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(self.size)


# The beginning of every record. It identifies a file that holds only one, truncated line.
RECORD_START = b'{"prompt": "'

# The fields of every record. JSON lines of other programs lack some of them.
RECORD_FIELDS = ("prompt_index", "texts", "settings", "prompt", "seed")


def _is_foreign(line: bytes) -> bool:
    """Whether a last line without a line break is complete JSON but no record: another program wrote it."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return not (isinstance(entry, dict) and entry.keys() >= set(RECORD_FIELDS))


def _no_record(path: Path, number: int) -> UserError:
    return UserError(
        f"{path} line {number} is not a record of this program: choose another file, or replace it with --overwrite",
        "output",
    )


def earlier_run(options: PromptOptions, with_tokens: bool = False) -> Earlier | None:
    """Return the records in the output file, or None if it does not exist or is to be replaced.

    Args:
        with_tokens: whether the records of this run have token probabilities.

    Raises:
        UserError: the file does not hold records, or its records differ in having token probabilities.
    """
    if options.output is None or options.format != "jsonl" or options.overwrite:
        return None
    path = Path(options.output)
    if not holds_something(path):
        return None
    content = path.read_bytes()
    *lines, rest = content.split(b"\n")  # what follows the last line break is truncated
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            _ = [entry[name] for name in RECORD_FIELDS]
        except (ValueError, KeyError, TypeError, RecursionError):
            if records and number == len(lines):
                break  # a crash of the machine may leave garbage in the last line
            raise _no_record(path, number) from None
        records.append(entry)
    if records and ("tokens" in records[0]) != with_tokens:
        raise UserError(
            f"{path} belongs to another run: its records {'lack' if with_tokens else 'have'} the probabilities of "
            "--show_probabilities; choose another file, or replace it with --overwrite",
            "output",
        )
    if (not records and content[: len(RECORD_START)] != RECORD_START[: len(content)]) or _is_foreign(rest):
        raise _no_record(path, len(lines) + 1)
    while records and sum(e["prompt_index"] == records[-1]["prompt_index"] for e in records) < records[-1]["texts"]:
        unfinished = records[-1]["prompt_index"]
        records = [entry for entry in records if entry["prompt_index"] != unfinished]
    return Earlier(path, records, sum(len(line) + 1 for line in lines[: len(records)]))
