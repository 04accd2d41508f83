"""Write rendered texts to stdout, to a file, or to a stream such as a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol

from gpt2tg.batch.earlier import Earlier, sort_records
from gpt2tg.batch.rendering import Rendered
from gpt2tg.io.outputs import append_whole, is_stream, naming, open_stream, write_all, write_whole
from gpt2tg.io.streams import write_out
from gpt2tg.options import PromptOptions


class Sink(Protocol):
    """An output that takes the texts of one prompt after the other."""

    def put(self, rendered: Rendered) -> None:
        """Write the texts of the next prompt."""

    def close(self) -> None:
        """Finish the output after the last prompt."""


class TextSink:
    """Writes plain texts with a blank line between them. A file appears only once it is complete."""

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._texts: list[str] = []
        self._is_first = True

    def put(self, rendered: Rendered) -> None:
        """Write the texts of the next prompt. On stdout, a line on stderr numbers each of several texts."""
        if self._path is not None:
            self._texts += rendered.texts
            return
        for number, text in enumerate(rendered.texts, start=1):
            if len(rendered.texts) > 1:
                self._say(f"--- text {number} of {len(rendered.texts)} ---")
            between = "" if self._is_first else "\n"
            write_out(f"{between}{text}\n")
            self._is_first = False

    def close(self) -> None:
        """Write the file, if the output is one."""
        if self._path is not None:
            write_whole(self._path, "\n\n".join(self._texts) + "\n")


class StreamSink:
    """Writes JSON records to stdout, a device or a pipe."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stream: BinaryIO | None = None

    def put(self, rendered: Rendered) -> None:
        """Write the records of the next prompt in one go."""
        lines = "".join(rendered.texts)
        if self._path is None:
            write_out(lines)
            return
        with naming(self._path):
            self._stream = self._stream or open_stream(self._path)
            try:
                write_all(self._stream, lines)
            except OSError:
                self.close()
                raise

    def close(self) -> None:
        """Close a pipe, so that its reader sees the end."""
        if self._stream is not None:
            self._stream.close()


class RecordSink:
    """Writes JSON records to a file that grows prompt by prompt, so that a later run can resume.

    It takes the prompts in any order. If that was not their own, `close` sorts the file.
    """

    def __init__(self, path: Path, overwrite: bool, earlier: Sequence[int] = ()) -> None:
        """Open nothing yet.

        Args:
            earlier: the numbers of the prompts whose records are in the file, in its order.
        """
        self._path = path
        # A file that is replaced is kept until the first prompt is done.
        self._begins = overwrite or not path.exists()
        self._last = earlier[-1] if earlier else -1
        self._is_sorted = all(one <= following for one, following in pairwise(earlier))

    def put(self, rendered: Rendered) -> None:
        """Write the records of a prompt in one go."""
        (write_whole if self._begins else append_whole)(self._path, "".join(rendered.texts))
        self._begins = False
        self._is_sorted = self._is_sorted and self._last <= rendered.index
        self._last = rendered.index

    def close(self) -> None:
        """Put the records into the order of their prompts."""
        if not self._is_sorted:
            sort_records(self._path)


class InOrder:
    """Passes texts on in the order of their prompts, and holds those back that were finished before their turn."""

    def __init__(self, sink: Sink, order: Iterable[int]) -> None:
        """Take the sink and the numbers of all prompts that it will get."""
        self._sink = sink
        self._coming = iter(order)
        self._next = next(self._coming, None)
        self._held: dict[int, Rendered] = {}

    def put(self, rendered: Rendered) -> None:
        """Write the texts of a prompt, now or when those before it are written."""
        self._held[rendered.index] = rendered
        while self._next is not None and self._next in self._held:
            self._sink.put(self._held.pop(self._next))
            self._next = next(self._coming, None)

    def close(self) -> None:
        """Finish the output."""
        self._sink.close()


def open_sink(options: PromptOptions, say: Callable[[str], None], earlier: Earlier | None = None) -> Sink:
    """Return the output that the options name.

    Args:
        say: called with notices for the user.
        earlier: the records in the output file that are kept.
    """
    path = None if options.output is None else Path(options.output)
    if options.format == "text":
        return TextSink(path, say)
    if path is None or is_stream(path):
        return StreamSink(path)
    return RecordSink(path, options.overwrite, earlier.indexes if earlier else ())
