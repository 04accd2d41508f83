"""Read the records that an interrupted run has left, and put records into the order of their prompts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt2tg.errors import UserError
from gpt2tg.io.atomic import replacing
from gpt2tg.io.outputs import holds_something, naming, target_of
from gpt2tg.options import PromptOptions


@dataclass(frozen=True)
class Earlier:
    """The records that an earlier run of the same command has left in its output file."""

    path: Path
    records: list[dict[str, Any]]
    """The records of prompts all of whose texts are there."""
    size: int
    """Their size in bytes. The rest of the file is truncated, or belongs to a prompt that was not finished."""

    @property
    def indexes(self) -> list[int]:
        """The number of the prompt of each record, in the order of the file."""
        return [entry["prompt_index"] for entry in self.records]

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


def sort_records(path: Path) -> None:
    """Put the records in a file into the order of their prompts. The file is replaced in one step.

    Raises:
        RunError: the sorted file cannot be written; the file is as it was.
    """
    target = target_of(path)
    # Always the same name, so that the next run replaces the draft of a killed one.
    draft_name = f".{zlib.crc32(target.name.encode()):08x}.partial"
    with (
        naming(path),
        replacing(target, target.with_name(draft_name), keep_attributes=True) as draft,
        target.open("rb") as file,
        draft.open("wb") as sorted_file,
    ):
        for _, start, size in sorted(_places(file)):
            file.seek(start)
            sorted_file.write(file.read(size))


def _places(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield the number of the prompt, the first byte and the size of each record."""
    start = 0
    for line in file:
        yield json.loads(line)["prompt_index"], start, len(line)
        start += len(line)
