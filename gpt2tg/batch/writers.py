"""Where texts go: stdout or a file, as they are or as records, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Sample
from gpt2tg.inspection.tables import token_entry, token_table
from gpt2tg.inspection.tokens import InspectedToken
from gpt2tg.io.outputs import append_whole, holds_something, is_stream, naming, open_stream, write_all, write_whole
from gpt2tg.io.streams import write_out
from gpt2tg.options import DecodingOptions, PromptOptions

# Looks at a text before it goes to its sink; None where nobody wants to know.
Inspect = Callable[[Sample], Sequence[InspectedToken]] | None


class Sink(Protocol):
    """Takes the texts of one prompt after the other."""

    def put(self, samples: Sequence[Sample], options: DecodingOptions) -> None:
        """The texts of the next prompt."""

    def close(self) -> None:
        """All prompts are done."""


class TextSink:
    """The texts, a blank line between them, each with its probabilities if wanted. A file appears when it is whole."""

    def __init__(self, path: Path | None, say: Callable[[str], None], inspect: Inspect = None) -> None:
        self._path = path
        self._say = say
        self._inspect = inspect
        self._texts: list[str] = []
        self._is_first = True

    def put(self, samples: Sequence[Sample], options: DecodingOptions) -> None:
        """The texts of the next prompt; on stdout each is announced by number, on stderr."""
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
        """Write the file."""
        if self._path is not None:
            write_whole(self._path, "\n\n".join(self._texts) + "\n")

    def _shown(self, sample: Sample) -> str:
        return sample.text if self._inspect is None else f"{sample.text}\n\n{token_table(self._inspect(sample))}"


class RecordSink:
    """A line of JSON for each text. A file grows prompt by prompt, and a later run can go on with it."""

    def __init__(self, path: Path | None, overwrite: bool, inspect: Inspect = None) -> None:
        self._path = path
        self._inspect = inspect
        # What is to be replaced stands until the first prompt is done.
        self._begins = path is not None and (overwrite or not path.exists())
        self._stream: BinaryIO | None = None

    def put(self, samples: Sequence[Sample], options: DecodingOptions) -> None:
        """The texts of the next prompt, in one write."""
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
        if self._inspect is not None:
            entry["tokens"] = [token_entry(token) for token in self._inspect(sample)]
        return entry

    def close(self) -> None:
        """Who reads a pipe learns that all is done."""
        if self._stream is not None:
            self._stream.close()


def record(sample: Sample, texts: int, options: DecodingOptions) -> dict[str, Any]:
    """All that is known of a text. `texts` is how many were given for its prompt."""
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
        "settings": settings(options),
    }
    if options.end_at_sentence:
        entry["unfinished"] = sample.is_unfinished
    return entry if sample.ranking_score is None else {**entry, "ranking_score": sample.ranking_score}


def settings(options: DecodingOptions) -> dict[str, Any]:
    """The options as JSON has them, defaults of the strategy filled in. The seed has a field of its own, and what
    changes the speed alone has none."""
    values = dataclasses.asdict(options)
    values |= {"top_k": options.effective_top_k, "top_p": options.effective_top_p}
    kept = {name: value for name, value in values.items() if name not in ("seed", "replay", "prompt_lookup")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def open_sink(options: PromptOptions, say: Callable[[str], None], inspect: Inspect = None) -> Sink:
    """The sink that the options name; `say` takes what is talk and not text."""
    path = None if options.output is None else Path(options.output)
    if options.format == "jsonl":
        return RecordSink(path, options.overwrite, inspect)
    return TextSink(path, say, inspect)


@dataclass(frozen=True)
class Earlier:
    """What an earlier run of the same command has left in a file of records."""

    path: Path
    records: list[dict[str, Any]]
    """Those of whole prompts."""
    size: int
    """Bytes of the file that they take up; what follows was cut, or belongs to a prompt that was not finished."""

    def drop_the_rest(self) -> None:
        """Take what follows the whole records out of the file."""
        if self.size < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(self.size)


# How each of our records begins: a single line that was cut is known by it.
RECORD_START = b'{"prompt": "'

# What each of our records has; others' lines of JSON lack some of them.
RECORD_FIELDS = ("prompt_index", "texts", "settings", "prompt", "seed")


def _is_of_others(line: bytes) -> bool:
    """Whether a line without a line break is complete JSON and no record of ours: somebody else wrote it."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return not (isinstance(entry, dict) and entry.keys() >= set(RECORD_FIELDS))


def _no_record(path: Path, number: int) -> UserError:
    return UserError(
        f"{path} line {number} is no record of ours: choose another file, or replace it with --overwrite", "output"
    )


def earlier_run(options: PromptOptions, with_tokens: bool = False) -> Earlier | None:
    """The records in the output file, or None where there is no such file or it is to be replaced.

    Args:
        with_tokens: whether the records of this run hold the probabilities of their tokens.

    Raises:
        UserError: the file holds something else than records, or records of another kind.
    """
    if options.output is None or options.format != "jsonl" or options.overwrite:
        return None
    path = Path(options.output)
    if not holds_something(path):
        return None
    content = path.read_bytes()
    *lines, rest = content.split(b"\n")  # what follows the last line break was cut
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            _ = [entry[name] for name in RECORD_FIELDS]
        except (ValueError, KeyError, TypeError, RecursionError):
            if records and number == len(lines):
                break  # a crash of the machine may leave rubbish in the last line
            raise _no_record(path, number) from None
        records.append(entry)
    if records and ("tokens" in records[0]) != with_tokens:
        raise UserError(
            f"{path} is of another run: its records {'lack' if with_tokens else 'have'} the probabilities of "
            "--show_probabilities; choose another file, or replace it with --overwrite",
            "output",
        )
    if (not records and content[: len(RECORD_START)] != RECORD_START[: len(content)]) or _is_of_others(rest):
        raise _no_record(path, len(lines) + 1)
    while records and sum(e["prompt_index"] == records[-1]["prompt_index"] for e in records) < records[-1]["texts"]:
        unfinished = records[-1]["prompt_index"]
        records = [entry for entry in records if entry["prompt_index"] != unfinished]
    return Earlier(path, records, sum(len(line) + 1 for line in lines[: len(records)]))
