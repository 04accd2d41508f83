"""A session driven by a test: lines in, and what is written and said out."""

from __future__ import annotations

from collections.abc import Callable

from gpt2tg.generation.generator import Generator, load_checkpoint
from gpt2tg.options import DecodingOptions, decoding_options
from gpt2tg.session import Front, Session
from gpt2tg.session.loop import run
from gpt2tg.session.style import Style


def greedy_options(**given: object) -> DecodingOptions:
    return decoding_options({"decoding": "greedy", "max_new_tokens": 8, **given}, num_sequences=1)


def sampling_options(**given: object) -> DecodingOptions:
    """Options for texts of a fixed length: with a random seed, the first token could be end-of-text."""
    return greedy_options(**{"decoding": "sample", "temperature": 1.0, "suppress_eos": True, **given})


def greedy_text(generator: Generator, prompt: str) -> str:
    return generator.generate(prompt, greedy_options())[0].text


class Talk:
    """A session, with what it writes and says."""

    def __init__(
        self,
        generator: Generator,
        options: DecodingOptions,
        *,
        at_terminal: bool = True,
        edit: Callable[[str], str] | None = None,
        style: Style = Style(),  # noqa: B008
    ) -> None:
        self.written: list[str] = []
        self.said: list[str] = []
        self.lines: list[object] = []
        front = Front(self._read, self._write, self.said.append, edit, style, lambda: 80, at_terminal)
        self.session = Session(generator, options, "tiny", front, load_checkpoint)
        self.interrupt_after = -1
        """The number of the write that Ctrl-C interrupts, if positive."""

    def _read(self) -> str:
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return str(line)

    def _write(self, text: str) -> None:
        self.written.append(text)
        self.interrupt_after -= 1
        if self.interrupt_after == 0:
            raise KeyboardInterrupt

    def type(self, *lines: object) -> tuple[str, list[str]]:
        """Type lines, and return what is written and what is said. An exception among the lines is raised there."""
        self.written.clear()
        self.said.clear()
        self.lines = list(lines)
        run(self.session)
        return "".join(self.written), list(self.said)

    @property
    def text(self) -> str:
        return str(self.session.text)


def transcript(generator: Generator, options: DecodingOptions, *lines: object) -> tuple[str, list[str]]:
    """Return what a new session writes and says to some lines."""
    return Talk(generator, options).type(*lines)
